# SPDX-License-Identifier: Apache-2.0
"""A job in a sandbox, watched from outside: by clock, scales and ruler."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from covrl.rewards.sandbox.resource_usage import Usage

_TICK = 0.025


class End(enum.Enum):
  """How a job ended: by itself, or by what it was killed for."""

  ENDED = 'ended'
  TIMEOUT = 'timeout'
  MEMORY = 'memory'
  TASKS = 'tasks'
  OUTPUT = 'output'
  LOST = 'lost'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What the programs of a sandbox may take.

  Attributes:
    memory: bytes of all its processes and files together.
    processes: how many processes and threads there may be at a time.
    scratch: bytes that may be written to each of `/tmp` and `/dev/shm`.
    file: bytes of any one file.
  """

  memory: int = 1 << 30
  processes: int = 64
  scratch: int = 64 << 20
  file: int = 32 << 20

  def settings(self) -> dict[str, int]:
    """Those that the kernel enforces per process, by name."""
    return {
      # What is written to; threads reserve a lot more than they use.
      'RLIMIT_DATA': self.memory,
      'RLIMIT_AS': 4 * self.memory,
      'RLIMIT_STACK': 64 << 20,
      'RLIMIT_NPROC': self.processes,
      'RLIMIT_NOFILE': 64,
      'RLIMIT_FSIZE': self.file,
      'RLIMIT_CORE': 0,
      'RLIMIT_MEMLOCK': 0,
      'RLIMIT_MSGQUEUE': 0,
      'RLIMIT_SIGPENDING': 256,
    }


class Channel:
  """A pipe out of a sandbox, read without waiting, up to a cap.

  Attributes:
    data: what has come so far.
    theirs: the descriptor to hand over, ours to close then.
  """

  def __init__(self, stack: contextlib.ExitStack, cap: int) -> None:
    near, far = os.pipe()
    self._near = stack.enter_context(os.fdopen(near, 'rb', buffering=0))
    self._far = stack.enter_context(os.fdopen(far, 'wb', buffering=0))
    os.set_blocking(near, False)
    self._cap = cap
    self.theirs = far
    self.data = bytearray()

  def fileno(self) -> int:
    """The descriptor to wait for."""
    return self._near.fileno()

  def hand_over(self) -> None:
    """Closes what the sandbox has a copy of by now."""
    self._far.close()

  @property
  def is_full(self) -> bool:
    """Whether there is more than there may be."""
    return len(self.data) > self._cap

  def read(self) -> bool:
    """Takes what is there; whether there can be more."""
    part = self._near.read(1 << 16)
    self.data += part or b''
    return part != b''


def watch(
  control: socket.socket,
  channels: Sequence[Channel],
  seconds: float,
  measure: Callable[[], Usage],
  limits: Limits,
) -> tuple[End, bytes]:
  """Waits for a job to end, or for a reason to end it.

  Args:
    control: where the sandbox's process 1 says that the job has ended.
    channels: to be read meanwhile.
    seconds: that it may take.
    measure: what the sandbox takes at the moment.
    limits: what it may take.

  Returns:
    How it ended, and what process 1 said.
  """
  now = time.monotonic()
  deadline, tick = now + seconds, now + _TICK
  poll = select.poll()
  poll.register(control, select.POLLIN)
  by_number = {channel.fileno(): channel for channel in channels}
  for number in by_number:
    poll.register(number, select.POLLIN)
  while now < deadline:
    wait = min(deadline, tick) - now
    for number, _ in poll.poll(max(0, wait) * 1000):
      if number == control.fileno():
        return _conclude(_receive(control), channels)
      channel = by_number[number]
      if not channel.read():
        poll.unregister(number)
      if channel.is_full:
        return End.OUTPUT, b''
    now = time.monotonic()
    if now >= tick:
      usage = measure()
      if usage.memory > limits.memory:
        return End.MEMORY, b''
      # Process 1 is one of them.
      if usage.tasks > limits.processes + 1:
        return End.TASKS, b''
      tick = time.monotonic() + _TICK
  return End.TIMEOUT, b''


def _receive(control: socket.socket) -> bytes:
  try:
    return control.recv(4096)
  except OSError:
    return b''


def _conclude(said: bytes, channels: Sequence[Channel]) -> tuple[End, bytes]:
  if not said:
    return End.LOST, b''
  for channel in channels:
    # Whoever could write to it is dead: what is in it now is all.
    before = -1
    while before < len(channel.data) and not channel.is_full:
      before = len(channel.data)
      channel.read()
    if channel.is_full:
      return End.OUTPUT, said
  return End.ENDED, said
