# SPDX-License-Identifier: Apache-2.0
"""Schedule of segments: all responses are decoded, with few surplus segments."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout.engines import make_engine, sample, to_numpy

from covrl.rollout import engine as engine_module
from covrl.rollout.layout import divide
from covrl.rollout.schedule import SegmentSchedule

SEGMENT = 4


def decode(lengths, *, slots, most, ahead):
  """Slots of the segments that are started for responses of some lengths.

  Args:
    lengths: tokens of each response.
    slots: slots at first.
    most: tokens of a response, at most.
    ahead: segments to start ahead.
  """
  layout = divide(None, len(lengths), 1, slots=slots, shrinks=True)
  schedule = SegmentSchedule(
    layout, segments=-(-(most - 1) // SEGMENT), ahead=ahead
  )
  # The first token is drawn with the prompts.
  waiting = deque(length - 1 for length in lengths if length > 1)
  live = [waiting.popleft() for _ in range(min(layout.slots[0], len(waiting)))]
  reports, sizes = deque([(len(live), len(waiting))]), []

  def run(size):
    sizes.append(size)
    nonlocal live
    for _ in range(SEGMENT):
      live = [left - 1 for left in live if left > 1]
      while waiting and len(live) < layout.slots[0]:
        live.append(waiting.popleft())
    assert size >= len(live)
    reports.append((len(live), len(waiting)))

  for size in schedule.next_slots(layout.slots[0], 0, len(reports)):
    run(size)
  is_finished = False
  while not is_finished:
    known, queued = reports.popleft()
    for size in schedule.next_slots(known, queued, len(reports)):
      run(size)
    is_finished = known + queued == 0
  assert not live
  assert not waiting
  return sizes


@settings(max_examples=200, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 33), min_size=1, max_size=64),
  slots=st.integers(1, 64),
)
def test_every_response_is_decoded(lengths, slots):
  """Slots suffice, and at most one segment is started that decodes nothing."""
  expected = decode(lengths, slots=slots, most=33, ahead=0)
  sizes = decode(lengths, slots=slots, most=33, ahead=1)
  assert len(expected) <= len(sizes) <= len(expected) + 1
  assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize('length', [2, 5, 16, 33])
def test_no_segment_follows_responses_of_full_length(length):
  sizes = decode([length] * 64, slots=0, most=length, ahead=1)
  assert sizes == [64] * -(-(length - 1) // SEGMENT)


def test_starting_ahead_does_not_delay_the_reduction_of_slots():
  """The same number of responses ends in each segment."""
  lengths = [1 + SEGMENT * (1 + row // 12) for row in range(64)]
  sizes = decode(lengths, slots=0, most=33, ahead=1)
  assert sizes == decode(lengths, slots=0, most=33, ahead=0)
  assert sizes[0] == 64
  assert sizes[-1] == 8


def test_segments_are_started_before_results_are_read(monkeypatch):
  """The responses are the same to the bit as without starting ahead."""
  engine, events = make_engine(end_ids=(), segment=3), []
  run, wait = engine._run, engine_module._wait_for_status

  def run_and_note(*arguments):
    events.append('run')
    return run(*arguments)

  monkeypatch.setattr(engine, '_run', run_and_note)

  def note_and_read(status, **options):
    events.append('read')
    return wait(status, **options)

  monkeypatch.setattr(engine_module, '_wait_for_status', note_and_read)
  ahead = to_numpy(sample(engine))
  assert events == ['run', 'read', 'run', 'read', 'run', 'read', 'read']
  events.clear()
  one_by_one = to_numpy(sample(engine, options={'is_enough': lambda: False}))
  assert events == ['read', 'run', 'read', 'run', 'read', 'run', 'read']
  for ours, expected in zip(ahead, one_by_one, strict=True):
    assert ours is None or (ours == expected).all()
