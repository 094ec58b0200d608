# SPDX-License-Identifier: Apache-2.0
"""Watchdog: dumps all stacks and exits when nothing progresses for too long."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from typing import NoReturn, Self

from covrl.exit_codes import Exit
from covrl.parallel.running_time import RunningTime

# Seconds in which the stacks of all threads are written.
_DUMP_SECONDS = 1.0


class Watchdog:
  """Ends the process with `Exit.STALLED` if `beat` is not called in time.

  The stacks of all threads are written to standard error first. While native
  code holds the interpreter, the process cannot exit with a status, and ends by
  SIGALRM after twice the time. Time for which the process was stopped (Ctrl-Z)
  or the machine slept does not count towards the first limit.

  Args:
    limit: seconds between two calls of `beat`, at most; 0 disables it.

  Raises:
    ValueError: the limit is negative.
  """

  def __init__(self, limit: float) -> None:
    if limit < 0:
      raise ValueError(f'--stall_after must be at least 0, got {limit:g}')
    self._limit = limit
    self._output = sys.__stderr__ or sys.stderr
    self._last_beat = time.monotonic()
    self._closed = threading.Event()
    self._thread = threading.Thread(
      target=self._watch, name='watchdog', daemon=True
    )

  def __enter__(self) -> Self:
    if self._limit:
      self.beat()
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._closed.set()
    if self._limit:
      faulthandler.cancel_dump_traceback_later()
      if self._ends_by_alarm():
        signal.setitimer(signal.ITIMER_REAL, 0)
      self._thread.join()

  def beat(self) -> None:
    """Records progress."""
    self._last_beat = time.monotonic()
    if self._limit and not self._closed.is_set():
      # The watchdog's thread cannot run while native code holds the GIL; these
      # timers can.
      faulthandler.dump_traceback_later(2 * self._limit, file=self._output)
      if self._ends_by_alarm():
        signal.setitimer(signal.ITIMER_REAL, 2 * self._limit + _DUMP_SECONDS)

  def _ends_by_alarm(self) -> bool:
    """Returns whether SIGALRM has its default action, which ends the process."""
    return signal.getsignal(signal.SIGALRM) is signal.SIG_DFL

  def _watch(self) -> None:
    interval = min(self._limit / 4, 10.0)
    beat = self._last_beat
    idle_time = RunningTime(interval, beat)
    while not self._closed.wait(interval):
      if beat != self._last_beat:
        beat = self._last_beat
        idle_time = RunningTime(interval, beat)
      idle = idle_time.read()
      if idle > self._limit:
        self._end(idle)

  def _end(self, idle: float) -> NoReturn:
    """Ends the process, even if nothing can be written."""
    try:
      print(
        f'covrl: no progress for {idle:.0f} s (--stall_after='
        f'{self._limit:g}); the stacks of all threads:',
        file=self._output,
        flush=True,
      )
      faulthandler.dump_traceback(file=self._output, all_threads=True)
    finally:
      os._exit(Exit.STALLED)
