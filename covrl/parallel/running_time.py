# SPDX-License-Identifier: Apache-2.0
"""Time for which this process was running, as a clock that is read at intervals."""

from __future__ import annotations

import time


class RunningTime:
  """Seconds since a start for which this process was not stopped.

  Ctrl-Z, SIGSTOP, the freezer of a container and a scheduler's suspension stop
  processes. Between two reads more than twice the interval counts as a stop, and
  the rest of that time is left out; so is that of a process that gets no processor.

  Args:
    interval: seconds between two calls of `read`, at most.
    start: start in seconds of `time.monotonic`; now by default.

  Attributes:
    was_stopped: whether a read has found a stop.
  """

  def __init__(self, interval: float, start: float | None = None) -> None:
    self.was_stopped = False
    self._longest = 2 * interval
    self._last_read = time.monotonic() if start is None else start
    self._seconds = 0.0

  def read(self) -> float:
    """Returns the seconds so far."""
    now = time.monotonic()
    elapsed, self._last_read = now - self._last_read, now
    self.was_stopped |= elapsed > self._longest
    self._seconds += min(elapsed, self._longest)
    return self._seconds
