# SPDX-License-Identifier: Apache-2.0
"""Seconds of the phases of a rollout."""

from __future__ import annotations

import time


class PhaseTimer:
  """Accumulates the seconds of each phase.

  Attributes:
    seconds: seconds by metric name, `time/PHASE`.
  """

  def __init__(self) -> None:
    self.seconds: dict[str, float] = {}
    self._last = time.monotonic()

  def lap(self, name: str) -> None:
    """Ends the current phase, whose name is `name`, and starts the next."""
    now, name = time.monotonic(), f'time/{name}'
    self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
    self._last = now
