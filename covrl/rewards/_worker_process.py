# SPDX-License-Identifier: Apache-2.0
"""The parent's handle on a worker process of the reward pool."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.rewards import _worker_isolation
from covrl.rewards._worker_channel import (
  MAX_FIRST_REPLY_BYTES,
  ReplyError,
  WorkerChannel,
)
from covrl.rewards.outcome import Status

ENVIRONMENT = (
  'HOME',
  'LANG',
  'LANGUAGE',
  'LC_ALL',
  'LC_CTYPE',
  'LD_LIBRARY_PATH',
  'PATH',
  'PYTHONPATH',
  'TMPDIR',
  'TZ',
  'USER',
  'VIRTUAL_ENV',
)
"""Names of the environment variables that every worker receives."""

# Times that a response is scored, at most, if the processes are stopped meanwhile.
_MAX_ATTEMPTS = 3
_WORKER_SCRIPT = pathlib.Path(__file__).with_name('_worker_main.py')

Reply = tuple[str, float, str]
"""Status, score, and a sentence if the score is missing."""

_STATUSES = tuple(status.value for status in Status)


Modules = Mapping[str, tuple[str, str]]
"""File and text of each module, by its name."""


class StartError(Exception):
  """A worker could not be started."""


class LoadedFiles:
  """Files that the workers of a pool have loaded, the same for all of them.

  A worker that replaces another one imports the score function again, perhaps
  from files that have been changed meanwhile.
  """

  def __init__(self) -> None:
    self._checksums: dict[str, object] = {}

  def check(self, checksums: Mapping[str, object]) -> None:
    """Compares the files of a worker with those of the workers before it.

    Args:
      checksums: checksum by file.

    Raises:
      StartError: a file has changed.
    """
    for file, checksum in checksums.items():
      if self._checksums.setdefault(file, checksum) != checksum:
        raise StartError(
          f'{file!r} was changed while the run used it, and other workers have'
          ' scored with its old content'
        )


def _path() -> list[str]:
  """Returns the directories that workers import from, all of them the same.

  A console script's path lacks the working directory, where users keep their
  functions. One that has been removed is left out.
  """
  try:
    here = os.getcwd()
  except FileNotFoundError:
    return [entry for entry in sys.path if entry]
  return [*(entry or here for entry in sys.path), here]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerSettings:
  """Settings of a pool's workers; see `RewardPool`.

  Attributes:
    score_fn: the score function, pickled.
    example: response and reference that are scored before the first call.
    timeout: seconds after which the scoring of a response is aborted.
    memory_limit: bytes that a worker may allocate.
    start_timeout: seconds for a worker to become ready.
    environment: names of further environment variables that it receives.
    network: whether it may use the network.
    modules: file and text of modules beside a recipe, by their names.
    path: directories that it imports from.
    loaded_files: files that the workers with these settings have loaded.
  """

  score_fn: bytes
  example: tuple[str, Any] | None
  timeout: float
  memory_limit: int
  start_timeout: float
  environment: tuple[str, ...] = ()
  network: bool = False
  modules: Modules = dataclasses.field(default_factory=dict)
  path: Sequence[str] = dataclasses.field(default_factory=_path)
  loaded_files: LoadedFiles = dataclasses.field(default_factory=LoadedFiles)


class WorkerProcess:
  """Handle on a worker process, which is replaced when it hangs or dies.

  It is used by one thread; only `close` may be called from another.

  Attributes:
    start_finished: set once the first process is ready or has failed to start.
  """

  def __init__(self, settings: WorkerSettings) -> None:
    self.start_finished = threading.Event()
    self._settings = settings
    self._lock = threading.Lock()
    self._closed = False
    self._process: subprocess.Popen[bytes] | None = None
    self._channel: WorkerChannel | None = None
    self._num_requests = 0
    # Write end of a pipe; the supervisor kills the worker when it is closed.
    self._pipe: int | None = None

  def ensure_ready(self) -> None:
    """Starts a process unless one is alive, and waits until it is ready.

    Raises:
      StartError: if it exits, fails or takes too long, or the pool is closed.
    """
    if self._process is not None and self._process.poll() is None:
      return
    try:
      self.stop()
      self._start()
    except BaseException:
      self.stop()
      raise
    finally:
      self.start_finished.set()

  def score(self, response: str, reference: Any) -> Reply:
    """Scores a response; reports a timeout or crash of the worker.

    The end of an idle worker before does not count as a crash of this response.
    It is scored again if all processes may have been stopped meanwhile, as a
    scheduler does that suspends a job: limits of the scorer count that time.

    Raises:
      StartError: the worker cannot be started again.
    """
    attempts = 0
    while True:
      self.ensure_ready()
      channel = self._channel
      assert channel is not None
      reply = self._score_once(channel, response, reference)
      attempts += 1
      if not channel.was_stopped or attempts == _MAX_ATTEMPTS:
        return reply

  def _score_once(
    self, channel: WorkerChannel, response: str, reference: Any
  ) -> Reply:
    self._num_requests += 1
    try:
      channel.send((self._num_requests, response, reference))
      return self._check_reply(channel.receive(self._settings.timeout))
    except TimeoutError:
      self.stop()
      limit = self._settings.timeout
      return 'timeout', float('nan'), f'no score after {limit:g} s'
    except ReplyError:
      self.stop()
      reason = (
        'the worker sent a malformed reply, perhaps because the scorer wrote to its'
        ' connection'
      )
    except (EOFError, OSError):
      reason = f'the worker ended with exit code {self.stop()}'
    return 'crash', float('nan'), reason

  def _check_reply(self, reply: list[Any]) -> Reply:
    """Returns the reply to the latest request.

    Raises:
      ReplyError: it is malformed, or the reply to another request.
    """
    match reply:
      case [self._num_requests, str(status), float(score), str(detail)] if (
        status in _STATUSES
      ):
        # Halves of surrogate pairs cannot be written to files.
        text = detail.encode(errors='backslashreplace').decode()
        return status, score, text
    raise ReplyError

  def stop(self) -> int | None:
    """Ends the process, if any, and returns its exit code."""
    process, self._process = self._process, None
    channel, self._channel = self._channel, None
    if channel is not None:
      channel.close()
    if process is None:
      return None
    # Collects the exit code of a process that has ended; kills one that still runs,
    # and all processes that it has started.
    with contextlib.suppress(subprocess.TimeoutExpired):
      return process.wait(timeout=0.1)
    with self._lock:
      self._close_pipe()
    with contextlib.suppress(subprocess.TimeoutExpired):
      return process.wait(timeout=10.0)
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
      return process.wait(timeout=10.0)
    return None

  def close(self) -> None:
    """Kills the process and prevents another one from starting."""
    with self._lock:
      self._closed = True
      self._close_pipe()

  def _close_pipe(self) -> None:
    """Makes the supervisor kill the worker; called with the lock held."""
    pipe, self._pipe = self._pipe, None
    if pipe is not None:
      os.close(pipe)

  def _start(self) -> None:
    """Starts a process and waits until it is ready.

    Raises:
      StartError: it ends, fails or takes too long, or the pool is closed.
    """
    trainer_end, worker_end = socket.socketpair()
    channel = self._channel = WorkerChannel(trainer_end, self._settings.timeout)
    with worker_end, self._lock:
      if self._closed:
        raise StartError('the pool is closed')
      self._close_pipe()
      read_end, self._pipe = os.pipe()
      try:
        self._process = _launch(worker_end.fileno(), read_end, self._settings)
      finally:
        os.close(read_end)
    try:
      channel.send(self._settings_message())
      reply = channel.receive(
        self._settings.start_timeout, MAX_FIRST_REPLY_BYTES
      )
    except TimeoutError:
      limit = self._settings.start_timeout
      raise StartError(f'it was not ready after {limit:g} s') from None
    except ReplyError:
      raise StartError('it sent a malformed reply') from None
    except (EOFError, OSError) as error:
      code = self.stop()
      raise StartError(f'it ended with exit code {code}') from error
    match reply:
      case [True, _, dict(checksums)]:
        self._settings.loaded_files.check(checksums)
        return
      case [False, str(reason), _]:
        raise StartError(reason)
    raise StartError('it sent a malformed reply')

  def _settings_message(self) -> dict[str, Any]:
    """Returns the settings that the process receives first."""
    return {
      'path': [*self._settings.path],
      'modules': dict(self._settings.modules),
      'score_fn': self._settings.score_fn,
      'example': self._settings.example,
      'timeout': self._settings.timeout,
      'memory_limit': self._settings.memory_limit,
    }


def _launch(
  connection: int, trainer_pipe: int, settings: WorkerSettings
) -> subprocess.Popen[bytes]:
  """Starts a supervised interpreter that serves a connection.

  Args:
    connection: the worker's end of a socket pair.
    trainer_pipe: read end of a pipe; the worker is killed when its write end closes.
    settings: environment and network of the worker.
  """
  names = (*ENVIRONMENT, *settings.environment)
  environment = {
    **{name: os.environ[name] for name in names if name in os.environ},
    # A scorer that uses JAX must not take the trainer's device.
    'JAX_PLATFORMS': 'cpu',
    'OMP_NUM_THREADS': '1',
    'OPENBLAS_NUM_THREADS': '1',
    'PYTHONHASHSEED': '0',
  }
  namespaces = _worker_isolation.has_namespaces()
  filter_code = (
    None
    if namespaces
    else _worker_isolation.worker_filter(network=settings.network)
  )
  with contextlib.ExitStack() as stack:
    filter_descriptor = -1
    if filter_code is not None:
      filter_descriptor = os.memfd_create('filter')
      stack.callback(os.close, filter_descriptor)
      os.write(filter_descriptor, filter_code)
    supervisor_settings = json.dumps(
      {
        'trainer_pipe': trainer_pipe,
        'connection': connection,
        'filter': filter_descriptor,
        'namespaces': namespaces,
        'network': settings.network,
      }
    )
    return subprocess.Popen(
      [
        *(
          sys.executable,
          '-I',
          '-S',
          str(_worker_isolation.SUPERVISOR_SCRIPT),
          supervisor_settings,
        ),
        *(sys.executable, '-P', str(_WORKER_SCRIPT), str(connection)),
      ],
      pass_fds=[
        connection,
        trainer_pipe,
        *([] if filter_code is None else [filter_descriptor]),
      ],
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      # Ctrl-C is handled by the trainer.
      start_new_session=True,
    )
