# SPDX-License-Identifier: Apache-2.0
"""Watchdog: dumps all stacks and exits when nothing progresses for too long."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import Self

from covrl.exit_codes import Exit


class Watchdog:
  """Ends the process with `Exit.STALLED` if `beat` is not called in time.

  The stacks of all threads are written to standard error first.

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
      self._thread.join()

  def beat(self) -> None:
    """Records progress."""
    self._last_beat = time.monotonic()
    if self._limit and not self._closed.is_set():
      # The watchdog's thread cannot run while native code holds the GIL; this
      # timer can.
      faulthandler.dump_traceback_later(
        2 * self._limit, exit=True, file=self._output
      )

  def _watch(self) -> None:
    while not self._closed.wait(min(self._limit / 4, 10.0)):
      idle = time.monotonic() - self._last_beat
      if idle > self._limit:
        print(
          f'covrl: no progress for {idle:.0f} s (--stall_after='
          f'{self._limit:g}); the stacks of all threads:',
          file=self._output,
          flush=True,
        )
        faulthandler.dump_traceback(file=self._output, all_threads=True)
        os._exit(Exit.STALLED)
