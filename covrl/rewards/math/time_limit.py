# SPDX-License-Identifier: Apache-2.0
"""CPU time limit of a block of code."""

from __future__ import annotations

import gc
import signal
from types import FrameType
from typing import Any

_REPEAT_INTERVAL = 0.1  # seconds between repeated timer signals


class TimeLimitExceeded(Exception):
  """A comparison exceeded its time limit."""


class TimeLimit:
  """Context that limits the CPU time of its body.

  Uses a process timer, whose signal also interrupts regular expressions. It counts
  CPU time of this process only, and works only in a main thread (a worker's). The
  signal is repeated until it is handled. (SIGPROF is not used since libtpu sends
  it, too.)

  Raises:
    TimeLimitExceeded: if the time limit is exceeded.
  """

  def __init__(self, seconds: float) -> None:
    self._seconds = seconds
    self._previous_handler: Any = None

  def __enter__(self) -> None:
    self._previous_handler = signal.signal(signal.SIGVTALRM, _on_timer)
    signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds, _REPEAT_INTERVAL)

  def __exit__(self, *_: object) -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    # A pending signal would end a process without a handler.
    if self._previous_handler is not signal.SIG_DFL:
      signal.signal(signal.SIGVTALRM, self._previous_handler)


def _on_timer(_: int, frame: FrameType | None) -> None:
  """Raises, except where the exception would be lost or leave the timer on.

  Exceptions in callbacks of the garbage collector are lost; JAX installs one.
  """
  if not any(signal.getitimer(signal.ITIMER_VIRTUAL)):
    return
  callbacks = (TimeLimit.__enter__, TimeLimit.__exit__, *gc.callbacks)
  unsafe = {getattr(callback, '__code__', None) for callback in callbacks}
  while frame is not None:
    if frame.f_code in unsafe:
      return
    frame = frame.f_back
  raise TimeLimitExceeded
