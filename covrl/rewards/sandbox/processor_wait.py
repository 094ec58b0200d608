# SPDX-License-Identifier: Apache-2.0
"""Time for which a sandbox's program waits for a processor that others use."""

from __future__ import annotations

import contextlib
import os

from covrl.rewards.sandbox.resource_usage import list_processes, read_proc

_TICKS_PER_SECOND = os.sysconf('SC_CLK_TCK')


class ProcessorWait:
  """Measures the waits of a sandbox's program, from construction on.

  A thread that is ready to run waits while its processor runs another thread. The
  program waits for others for at least

      max over its threads i of (delay_i - (cpu - cpu_i)),

  with `delay_i` the time for which thread i was ready and did not run, `cpu_i` the
  time for which it ran, and `cpu` the sum over all threads of the program, also
  over those that have ended. Hence a program cannot wait for itself: threads that
  contend with each other gain no time. A program that sleeps does not wait.

  With child processes, whose CPU time cannot be known once they have ended, a
  program is taken not to wait, and so where the kernel does not account for
  delays.

  Args:
    pid: the sandbox's process 1, which runs the program in a child process.
  """

  def __init__(self, pid: int) -> None:
    self._pid = pid
    self._seconds = 0.0
    self._has_children = False
    # Process 1 has waited before; its child is newer than this object.
    self._first = _read_times(pid)

  def seconds(self) -> float:
    """Returns the seconds of waiting so far."""
    processes = list_processes(self._pid)
    if len(processes) > 2:
      self._has_children = True
    if self._has_children:
      return 0.0
    cpu, threads = _read_times(processes[-1])
    first_cpu, first_threads = (
      self._first if processes[-1] == self._pid else (0.0, {})
    )
    cpu -= first_cpu
    for thread, (thread_cpu, delay) in threads.items():
      first_thread_cpu, first_delay = first_threads.get(thread, (0.0, 0.0))
      others = max(0.0, cpu - (thread_cpu - first_thread_cpu))
      self._seconds = max(self._seconds, delay - first_delay - others)
    return self._seconds


def _read_times(pid: int) -> tuple[float, dict[int, tuple[float, float]]]:
  """Returns a process's CPU seconds, and the CPU and delay seconds of its threads.

  Those of threads that have ended are included in the first number only.
  """
  threads = {}
  with contextlib.suppress(FileNotFoundError, ProcessLookupError):
    for thread in os.listdir(f'/proc/{pid}/task'):
      fields = read_proc(f'/proc/{pid}/task/{thread}/schedstat').split()
      if len(fields) >= 2:
        threads[int(thread)] = int(fields[0]) / 1e9, int(fields[1]) / 1e9
  # The name of a program, in parentheses, may contain blanks.
  fields = read_proc(f'/proc/{pid}/stat').rpartition(')')[2].split()
  ticks = int(fields[11]) + int(fields[12]) if fields else 0
  return ticks / _TICKS_PER_SECOND, threads
