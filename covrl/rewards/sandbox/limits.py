# SPDX-License-Identifier: Apache-2.0
"""Enforces a job's time, memory and output limits from outside the sandbox."""

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

_MEASUREMENT_SECONDS = 0.025  # seconds between measurements of a job's usage
_MAX_SLOWDOWN = 10.0  # maximal duration of a job, in time limits


class EndReason(enum.Enum):
  """Reason for which a job ended.

  Attributes:
    ENDED: process 1 has reported its end.
    TIMEOUT: it took longer than its time limit.
    MEMORY: its processes and files exceeded the memory limit.
    TASKS: it had more processes and threads than allowed.
    OUTPUT: it wrote more than allowed.
    STARVED: it waited for a processor for most of the time, and did not end in
      ten times its time limit.
    LOST: process 1 ended without a report.
  """

  ENDED = 'ended'
  TIMEOUT = 'timeout'
  MEMORY = 'memory'
  TASKS = 'tasks'
  OUTPUT = 'output'
  STARVED = 'starved'
  LOST = 'lost'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Resource limits of a sandbox.

  Attributes:
    memory: bytes of all processes and written files together.
    processes: maximal number of processes and threads.
    scratch_size: bytes of each of `/tmp` and `/dev/shm`.
    file_size: bytes of a single file.
  """

  memory: int = 1 << 30
  processes: int = 64
  scratch_size: int = 64 << 20
  file_size: int = 32 << 20

  def settings(self) -> dict[str, int]:
    """Returns the limits that the kernel enforces per process, by name."""
    return {
      # RLIMIT_AS is larger, since threads reserve more than they use.
      'RLIMIT_DATA': self.memory,
      'RLIMIT_AS': 4 * self.memory,
      'RLIMIT_STACK': 64 << 20,
      'RLIMIT_NPROC': self.processes,
      'RLIMIT_NOFILE': 64,
      'RLIMIT_FSIZE': self.file_size,
      'RLIMIT_CORE': 0,
      'RLIMIT_MEMLOCK': 0,
      'RLIMIT_MSGQUEUE': 0,
      'RLIMIT_SIGPENDING': 256,
    }


class OutputPipe:
  """A pipe out of a sandbox, read without blocking, up to a maximal size.

  Attributes:
    data: bytes read so far.
    write_end: descriptor for the sandbox.
  """

  def __init__(self, stack: contextlib.ExitStack, max_size: int) -> None:
    read_end, write_end = os.pipe()
    self._reader = stack.enter_context(os.fdopen(read_end, 'rb', buffering=0))
    self._writer = stack.enter_context(os.fdopen(write_end, 'wb', buffering=0))
    os.set_blocking(read_end, False)
    self._max_size = max_size
    self.write_end = write_end
    self.data = bytearray()

  def fileno(self) -> int:
    """Returns the descriptor to poll."""
    return self._reader.fileno()

  def close_write_end(self) -> None:
    """Closes the write end, once the sandbox has its copy."""
    self._writer.close()

  @property
  def is_over_limit(self) -> bool:
    """Whether the maximal size is exceeded."""
    return len(self.data) > self._max_size

  def read(self) -> bool:
    """Reads available bytes; returns whether more can follow."""
    chunk = self._reader.read(1 << 16)
    self.data += chunk or b''
    return chunk != b''


def supervise_job(
  control: socket.socket,
  outputs: Sequence[OutputPipe],
  seconds: float,
  measure: Callable[[], Usage],
  waited: Callable[[], float],
  limits: Limits,
) -> tuple[EndReason, bytes]:
  """Waits until a job ends or exceeds a limit.

  Args:
    control: socket on which the sandbox's process 1 reports the job's end.
    outputs: pipes to read meanwhile.
    seconds: time limit, without the time of waiting for a processor.
    measure: returns the current usage of the sandbox.
    waited: returns the seconds for which the job has waited for a processor.
    limits: resource limits.

  Returns:
    The reason for which the job ended, and the report of process 1.
  """
  start = now = time.monotonic()
  deadline, next_measurement = now + seconds, now + _MEASUREMENT_SECONDS
  last_deadline = now + _MAX_SLOWDOWN * seconds
  poll = select.poll()
  poll.register(control, select.POLLIN)
  pipe_by_descriptor = {pipe.fileno(): pipe for pipe in outputs}
  for descriptor in pipe_by_descriptor:
    poll.register(descriptor, select.POLLIN)
  while now < deadline:
    wait_seconds = min(deadline, next_measurement) - now
    for descriptor, _ in poll.poll(max(0, wait_seconds) * 1000):
      if descriptor == control.fileno():
        return _read_remaining_output(_receive(control), outputs)
      pipe = pipe_by_descriptor[descriptor]
      if not pipe.read():
        poll.unregister(descriptor)
      if pipe.is_over_limit:
        return EndReason.OUTPUT, b''
    now = time.monotonic()
    if now >= min(next_measurement, deadline):
      usage = measure()
      if usage.memory > limits.memory:
        return EndReason.MEMORY, b''
      # The count includes process 1.
      if usage.tasks > limits.processes + 1:
        return EndReason.TASKS, b''
      deadline = start + seconds + waited()
      if now >= last_deadline and now < deadline:
        return EndReason.STARVED, b''
      next_measurement = time.monotonic() + _MEASUREMENT_SECONDS
  return EndReason.TIMEOUT, b''


def _receive(control: socket.socket) -> bytes:
  """Reads the report of process 1; empty if it has ended without one."""
  try:
    return control.recv(4096)
  except OSError:
    return b''


def _read_remaining_output(
  report: bytes, outputs: Sequence[OutputPipe]
) -> tuple[EndReason, bytes]:
  """Reads remaining output; returns the reason of the job's end, and the report."""
  if not report:
    return EndReason.LOST, b''
  for pipe in outputs:
    # All writers have ended: no more output can follow.
    size_before = -1
    while size_before < len(pipe.data) and not pipe.is_over_limit:
      size_before = len(pipe.data)
      pipe.read()
    if pipe.is_over_limit:
      return EndReason.OUTPUT, report
  return EndReason.ENDED, report
