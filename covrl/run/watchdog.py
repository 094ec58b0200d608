# SPDX-License-Identifier: Apache-2.0
"""A run in which nothing moves says where it stands, and ends."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import Self

from covrl.exit_codes import Exit


class Watchdog:
  """Ends the process with `Exit.STALLED` when `beat` is not called for long.

  The stacks of all threads go to standard error before.

  Args:
    limit: seconds; 0 watches nothing.

  Raises:
    ValueError: the limit is negative.
  """

  def __init__(self, limit: float) -> None:
    if limit < 0:
      raise ValueError(f'--stall_after must be at least 0, got {limit:g}')
    self._limit = limit
    self._output = sys.__stderr__ or sys.stderr
    self._last = time.monotonic()
    self._over = threading.Event()
    self._thread = threading.Thread(
      target=self._watch, name='watchdog', daemon=True
    )

  def __enter__(self) -> Self:
    if self._limit:
      self.beat()
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._over.set()
    if self._limit:
      faulthandler.cancel_dump_traceback_later()
      self._thread.join()

  def beat(self) -> None:
    """Something moved."""
    self._last = time.monotonic()
    if self._limit and not self._over.is_set():
      # Where a thread in native code keeps all others from running, this does.
      faulthandler.dump_traceback_later(
        2 * self._limit, exit=True, file=self._output
      )

  def _watch(self) -> None:
    while not self._over.wait(min(self._limit / 4, 10.0)):
      silent = time.monotonic() - self._last
      if silent > self._limit:
        print(
          f'covrl: nothing moved for {silent:.0f} s (--stall_after='
          f'{self._limit:g}); the stacks of all threads:',
          file=self._output,
          flush=True,
        )
        faulthandler.dump_traceback(file=self._output, all_threads=True)
        os._exit(Exit.STALLED)
