# SPDX-License-Identifier: Apache-2.0
"""A worker process of the reward pool, as seen by the parent."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

_SCRIPT = pathlib.Path(__file__).with_name('_worker_main.py')
_PACKAGE = pathlib.Path(__file__).parents[1]

Reply = tuple[str, float, str]
"""Status, score, and a sentence if the score is missing."""


class StartError(Exception):
  """A worker could not be started."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerSettings:
  """Settings of a pool's workers; see `RewardPool`."""

  score_fn: bytes
  example: tuple[str, Any] | None
  timeout: float
  memory_limit: int
  start_timeout: float


class WorkerProcess:
  """A worker that is replaced when it hangs or dies.

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
    self._connection: Connection | None = None

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
    """Scores a response; reports a timeout or crash of the worker."""
    connection = self._connection
    if connection is None:
      raise StartError('it was never started')
    try:
      connection.send((response, reference))
      if connection.poll(self._settings.timeout):
        return connection.recv()
    except (EOFError, OSError):
      code = self.stop()
      return 'crash', float('nan'), f'the worker ended with exit code {code}'
    self.stop()
    seconds = f'{self._settings.timeout:g} s'
    return 'timeout', float('nan'), f'no score after {seconds}'

  def stop(self) -> int | None:
    """Ends the process, if any, and returns its exit code."""
    process, self._process = self._process, None
    connection, self._connection = self._connection, None
    if connection is not None:
      connection.close()
    if process is None:
      return None
    # Collects the exit code of a process that ended; kills any other.
    with contextlib.suppress(subprocess.TimeoutExpired):
      return process.wait(timeout=0.1)
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
      return process.wait(timeout=10.0)
    return None

  def close(self) -> None:
    """Kills the process and prevents another one from starting."""
    with self._lock:
      self._closed = True
      process = self._process
    if process is not None:
      process.kill()

  def _start(self) -> None:
    near, theirs = socket.socketpair()
    ours = self._connection = Connection(near.detach())
    with theirs, self._lock:
      if self._closed:
        raise StartError('the pool is closed')
      self._process = _launch(theirs.fileno())
    try:
      ours.send(self._message())
      if not ours.poll(self._settings.start_timeout):
        seconds = f'{self._settings.start_timeout:g} s'
        raise StartError(f'it was not ready after {seconds}')
      ready, reason = ours.recv()
    except (EOFError, OSError) as error:
      code = self.stop()
      raise StartError(f'it ended with exit code {code}') from error
    if not ready:
      raise StartError(reason)

  def _message(self) -> dict[str, Any]:
    return {
      # A console script's path lacks the working directory, where users keep
      # their functions.
      'path': [*(entry or os.getcwd() for entry in sys.path), os.getcwd()],
      'package_path': str(_PACKAGE),
      'score_fn': self._settings.score_fn,
      'example': self._settings.example,
      'timeout': self._settings.timeout,
      'memory_limit': self._settings.memory_limit,
    }


def _launch(descriptor: int) -> subprocess.Popen[bytes]:
  """Starts an interpreter that serves the other end of a socket pair."""
  environment = {
    **os.environ,
    # A scorer that uses JAX must not take the trainer's device.
    'JAX_PLATFORMS': 'cpu',
    'OMP_NUM_THREADS': '1',
    'OPENBLAS_NUM_THREADS': '1',
    'PYTHONHASHSEED': '0',
  }
  return subprocess.Popen(
    [sys.executable, '-P', str(_SCRIPT), str(descriptor)],
    pass_fds=[descriptor],
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    # Ctrl-C is handled by the trainer.
    start_new_session=True,
  )
