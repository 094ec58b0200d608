# SPDX-License-Identifier: Apache-2.0
"""One sandbox from outside: jobs in, bytes out.

Nothing that comes out of a sandbox is believed beyond being bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import marshal
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from covrl.rewards.sandbox.launcher import Launcher
from covrl.rewards.sandbox.limits import (
  Channel,
  End,
  Limits,
  watch,
)
from covrl.rewards.sandbox.resource_usage import Usage, descendants, measure
from covrl.rewards.sandbox.scripts import compile_script
from covrl.rewards.sandbox.seccomp import make_filter

_START = 'import marshal,os,sys;exec(marshal.loads(os.pread({},1<<20,0)))'
_TIMEOUT = 30.0


class SandboxError(Exception):
  """A sandbox could not be had, through no fault of a program."""


@dataclasses.dataclass(frozen=True)
class Run:
  """What came of a job.

  Attributes:
    end: how it ended.
    output: what it printed, up to a cap.
    result: what it wrote where results go, up to a cap.
    said: what process 1 had to say of it.
  """

  end: End
  output: bytes = b''
  result: bytes = b''
  said: bytes = b''


class Sandbox:
  """A sandbox that is up, to be closed by the thread that made it.

  Args:
    launcher: how to start one.
    limits: what its programs may take.
    cpu: the one processor that they may use; any if none is given.

  Attributes:
    is_fit: whether it may have another job: nothing was killed in it, and
      nothing left behind.

  Raises:
    SandboxError: it could not be started.
  """

  def __init__(
    self, launcher: Launcher, limits: Limits, cpu: int | None = None
  ) -> None:
    self.is_fit = True
    self._launcher = launcher
    self._limits = limits
    self._stack = contextlib.ExitStack()
    try:
      self._start(cpu)
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> Sandbox:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    """Kills everything in it; nothing of it is left when this returns."""
    self.is_fit = False
    self._stack.close()

  def usage(self, *, exact: bool = False) -> Usage:
    """What it takes at the moment; exactly, or where it may be too much."""
    limit = 0 if exact else self._limits.memory
    return measure(self._pid, self._launcher.writable, limit)

  def load(self, program: bytes, seconds: float) -> Run:
    """Compiles the program; what is said, after a dot, is why it failed."""
    with memory_file(program) as source:
      return self._do({'kind': 'load'}, [source], seconds, [])

  def run(
    self,
    job: Mapping[str, Any],
    stdin: bytes,
    *,
    seconds: float,
    most_output: int,
    most_result: int,
    pipes: Sequence[int] = (),
  ) -> Run:
    """Runs a job in a process of its own.

    Args:
      job: what the runner is to do.
      stdin: the program's input, a file.
      seconds: after which it is killed, with all else in here.
      most_output: bytes; a program that prints more is killed.
      most_result: likewise for its result.
      pipes: descriptors that the process gets as its 4 and 5; they are closed
        here once it has them.
    """
    with contextlib.ExitStack() as stack:
      for pipe in pipes:
        stack.callback(os.close, pipe)
      file = stack.enter_context(memory_file(stdin))
      channels = [Channel(stack, most) for most in (most_output, most_result)]
      descriptors = [file, *(channel.theirs for channel in channels), *pipes]
      run = self._do(
        {**job, 'seconds': seconds}, descriptors, seconds, channels
      )
      # `<status> <0 or 1>`: whether anything lies in the writable directories.
      if run.end is not End.ENDED or not run.said.endswith(b' 1'):
        self.close()
      return run

  def _do(
    self,
    job: Mapping[str, Any],
    descriptors: Sequence[int],
    seconds: float,
    channels: Sequence[Channel],
  ) -> Run:
    try:
      socket.send_fds(self._control, [marshal.dumps(dict(job))], descriptors)
    except OSError:
      return Run(End.LOST)
    for channel in channels:
      channel.hand_over()
    end, said = watch(
      self._control, channels, seconds, self.usage, self._limits
    )
    if end is End.LOST:
      said = self._complaint().encode()
    return Run(end, *(bytes(channel.data) for channel in channels), said=said)

  def _start(self, cpu: int | None) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    self._control = self._stack.enter_context(near)
    near.settimeout(_TIMEOUT)
    self._errors = self._stack.enter_context(memory_file(b''))
    with far:
      try:
        self._pid = self._spawn(far.fileno())
        far.close()
        if cpu is not None:
          os.sched_setaffinity(self._pid, {cpu})
        self._greet()
      except (OSError, ValueError) as error:
        raise SandboxError(self._complaint() or str(error)) from None

  def _complaint(self) -> str:
    """The last line that bubblewrap or process 1 wrote to standard error."""
    text = os.pread(self._errors, 1 << 16, 0).decode(errors='replace')
    return next((line for line in text.splitlines()[::-1] if line.strip()), '')

  def _spawn(self, control: int) -> int:
    """Starts it, and gives its process 1 as it is known out here."""
    with (
      memory_file(compile_script('_runner.py')) as code,
      memory_file(make_filter(processes=True)) as rules,
      contextlib.ExitStack() as stack,
    ):
      read, write = os.pipe()
      info = stack.enter_context(os.fdopen(read, 'rb', buffering=0))
      ours = stack.enter_context(os.fdopen(write, 'wb', buffering=0))
      process = subprocess.Popen(
        [
          *self._launcher.command(filter_fd=rules, info_fd=write),
          *('-s', '-P', '-S', '-B', '-c', _START.format(code), str(control)),
        ],
        env=self._launcher.environment,
        cwd='/',
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=self._errors,
        pass_fds=(control, code, rules, write),
        # Ctrl-C is the trainer's to handle.
        start_new_session=True,
      )
      ours.close()
      if not self._launcher.has_namespaces:
        self._stack.callback(_dismiss, self._control, process)
        return process.pid
      self._stack.callback(_await, process)
      pid = _read_pid(info)
      self._stack.callback(_kill, os.pidfd_open(pid))
      return pid

  def _greet(self) -> None:
    settings = {
      'limits': self._limits.settings(),
      'writable': self._launcher.writable,
      **self._launcher.settings(),
    }
    self._control.send(marshal.dumps(settings))
    if self._control.recv(64) != b'ready':
      raise OSError('its process 1 did not become ready')


@contextlib.contextmanager
def memory_file(data: bytes) -> Iterator[int]:
  """A descriptor of a file that has no name, at its start."""
  descriptor = os.memfd_create('judge')
  try:
    with open(descriptor, 'wb', closefd=False) as file:
      file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    yield descriptor
  finally:
    os.close(descriptor)


def _read_pid(info: IO[bytes]) -> int:
  """Which process bubblewrap says that it has started."""
  poll = select.poll()
  poll.register(info, select.POLLIN)
  text = b''
  while poll.poll(_TIMEOUT * 1000) and (part := info.read(4096)):
    text += part
  try:
    return json.loads(text)['child-pid']
  except ValueError:
    raise OSError('bubblewrap did not say what it has started') from None


def _kill(handle: int) -> None:
  """Kills process 1, and with it its namespace."""
  with contextlib.suppress(ProcessLookupError):
    signal.pidfd_send_signal(handle, signal.SIGKILL)
  os.close(handle)


def _await(process: subprocess.Popen[bytes]) -> None:
  """Waits for bubblewrap, which ends after the namespace that it made."""
  try:
    process.wait(_TIMEOUT)
  except subprocess.TimeoutExpired:
    # It hangs: and what it has started by now may not be told of its death.
    for pid in (*descendants(process.pid), process.pid):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    process.wait(_TIMEOUT)


def _dismiss(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
  """Has the runner kill its program and end, where nothing else holds them."""
  with contextlib.suppress(OSError):
    control.shutdown(socket.SHUT_RDWR)
  try:
    process.wait(2.0)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(_TIMEOUT)
