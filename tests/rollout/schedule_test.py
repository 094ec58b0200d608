# SPDX-License-Identifier: Apache-2.0
"""Schedule of segments: all responses are decoded, with few surplus segments."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout.engines import make_engine, sample, to_numpy

from covrl.rollout import engine as engine_module
from covrl.rollout.layout import divide_requests
from covrl.rollout.schedule import SegmentSchedule

SEGMENT = 4


def decode(lengths, *, slots, max_tokens, ahead):
  """Slots of the segments that are started for responses of some lengths.

  Args:
    lengths: tokens of each response.
    slots: slots at first.
    max_tokens: tokens of a response, at most.
    ahead: segments to start ahead.
  """
  layout = divide_requests(None, len(lengths), 1, slots=slots, shrinks=True)
  schedule = SegmentSchedule(
    layout, segments=-(-(max_tokens - 1) // SEGMENT), ahead=ahead
  )
  # The first token is drawn with the prompts.
  queued_tokens = deque(length - 1 for length in lengths if length > 1)
  remaining_tokens = [
    queued_tokens.popleft()
    for _ in range(min(layout.slots[0], len(queued_tokens)))
  ]
  reports, sizes = deque([(len(remaining_tokens), len(queued_tokens))]), []

  def run(size):
    sizes.append(size)
    nonlocal remaining_tokens
    for _ in range(SEGMENT):
      remaining_tokens = [left - 1 for left in remaining_tokens if left > 1]
      while queued_tokens and len(remaining_tokens) < layout.slots[0]:
        remaining_tokens.append(queued_tokens.popleft())
    assert size >= len(remaining_tokens)
    reports.append((len(remaining_tokens), len(queued_tokens)))

  for size in schedule.next_slots(layout.slots[0], 0, len(reports)):
    run(size)
  is_finished = False
  while not is_finished:
    num_live, num_queued = reports.popleft()
    for size in schedule.next_slots(num_live, num_queued, len(reports)):
      run(size)
    is_finished = num_live + num_queued == 0
  assert not remaining_tokens
  assert not queued_tokens
  return sizes


@settings(max_examples=200, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 33), min_size=1, max_size=64),
  slots=st.integers(1, 64),
)
def test_every_response_is_decoded(lengths, slots):
  """Slots suffice, and at most one segment is started that decodes nothing."""
  expected = decode(lengths, slots=slots, max_tokens=33, ahead=0)
  sizes = decode(lengths, slots=slots, max_tokens=33, ahead=1)
  assert len(expected) <= len(sizes) <= len(expected) + 1
  assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize('length', [2, 5, 16, 33])
def test_no_segment_follows_responses_of_full_length(length):
  sizes = decode([length] * 64, slots=0, max_tokens=length, ahead=1)
  assert sizes == [64] * -(-(length - 1) // SEGMENT)


def test_starting_ahead_does_not_delay_the_reduction_of_slots():
  """The same number of responses ends in each segment."""
  lengths = [1 + SEGMENT * (1 + row // 12) for row in range(64)]
  sizes = decode(lengths, slots=0, max_tokens=33, ahead=1)
  assert sizes == decode(lengths, slots=0, max_tokens=33, ahead=0)
  assert sizes[0] == 64
  assert sizes[-1] == 8


def test_segments_are_started_before_results_are_read(monkeypatch):
  """The responses are the same to the bit as without starting ahead."""
  engine, events = make_engine(end_ids=(), segment=3), []
  original_run, original_read = engine._run, engine_module._wait_for_status

  def record_run(*arguments):
    events.append('run')
    return original_run(*arguments)

  monkeypatch.setattr(engine, '_run', record_run)

  def record_read(status, **options):
    events.append('read')
    return original_read(status, **options)

  monkeypatch.setattr(engine_module, '_wait_for_status', record_read)
  ahead = to_numpy(sample(engine))
  assert events == ['run', 'read', 'run', 'read', 'run', 'read', 'read']
  events.clear()
  one_by_one = to_numpy(sample(engine, options={'is_enough': lambda: False}))
  assert events == ['read', 'run', 'read', 'run', 'read', 'run', 'read']
  for ours, expected in zip(ahead, one_by_one, strict=True):
    assert ours is None or (ours == expected).all()
