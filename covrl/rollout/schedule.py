# SPDX-License-Identifier: Apache-2.0
"""Schedule of the segments of decoding, as the host starts them."""

from __future__ import annotations

from covrl.rollout.layout import Layout


class SegmentSchedule:
  """Number of segments to start at a time, and their slots.

  Args:
    layout: gives the numbers of slots.
    segments: segments in which every response ends, at most.
    ahead: segments to start before the result of the one before is known, at
      most; 0 or 1.
  """

  def __init__(self, layout: Layout, *, segments: int, ahead: int) -> None:
    self._sizes = layout.slots
    self._segments = segments
    self._ahead = ahead
    self._live = 0
    # Calls until every response has ended, at most: the first one, which
    # processes the prompts, and segments.
    self._calls_left = segments + 2

  def next_slots(self, live: int, waiting: int, started: int) -> list[int]:
    """Slots of each segment to start now.

    A segment is not started ahead if fewer slots are likely to suffice for it:
    if as many responses end in the one before as in the last that was read.

    Args:
      live: live slots of a shard after the last segment that was read.
      waiting: requests that have no slot yet.
      started: calls that were started since.
    """
    ended, self._live = max(self._live - live, 0), live
    # Without a queue, all responses have begun.
    self._calls_left = self._segments + 1 if waiting else self._calls_left - 1
    if live + waiting == 0:
      return []
    slots = self._sizes[0] if waiting else self._smallest_size(live)
    expected_live = live if waiting else live - ended
    num_segments = 1
    if expected_live > 0 and (
      waiting or self._smallest_size(expected_live) == slots
    ):
      num_segments += self._ahead
    return [slots] * (min(num_segments, self._calls_left) - started)

  def _smallest_size(self, live: int) -> int:
    """The smallest number of slots that holds `live` responses."""
    return min(size for size in self._sizes if size >= live)
