# SPDX-License-Identifier: Apache-2.0
"""Estimates of decoding time, against counts by hand."""

import numpy as np
import pytest

from covrl.compile.sampling_time import (
  Occupancy,
  StepCost,
  decoding_times,
  occupancy,
  step_seconds,
)
from covrl.rollout.layout import Layout

# Two shards of four slots, reduced to two; 100 bytes of a step's 500 are read
# independent of the tokens in the cache.
LAYOUT = Layout(shards_per_prompt=1, shards=2, slots=(4, 2))
STEP = StepCost(
  bytes=500,
  response_bytes=400,
  bandwidth=100,
  seconds=0,
  max_response_tokens=10,
  reads_by_row=True,
)


def test_slots_of_a_queue_are_filled_in_the_step_in_which_they_end():
  lengths = np.array([4, 2, 3, 1, 2, 2, 5, 3])
  load = occupancy(lengths, LAYOUT._replace(shards=1, slots=(2,)))
  # Steps are one less than tokens; requests start at 0, 0, 1, –, 3, 3, 4, 4.
  assert load.live.tolist() == [2, 2, 2, 2, 2, 2, 1, 1]
  assert load.tokens.tolist() == [2, 3, 5, 2, 2, 4, 3, 4]
  assert load.longest.tolist() == [1, 2, 3, 1, 1, 2, 3, 4]


def test_occupancy_is_that_of_the_fullest_shard():
  load = occupancy(np.array([2, 2, 2, 2, 3, 1, 1, 1]), LAYOUT)
  assert load.live.tolist() == [4, 1]
  assert load.tokens.tolist() == [4, 2]


def test_a_full_cache_takes_the_whole_traffic():
  full = Occupancy(*(np.array([n]) for n in (4, 40, 10)))
  for reads_by_row in (True, False):
    step = STEP._replace(reads_by_row=reads_by_row)
    assert step_seconds(step, LAYOUT, full) == pytest.approx([5.0])


@pytest.mark.parametrize(
  ('reads_by_row', 'seconds'),
  [(True, 1 + 4 * 12 / 40), (False, 1 + 4 * 4 * 9 / 40)],
)
def test_rows_are_read_as_far_as_they_reach_or_as_the_longest(
  reads_by_row, seconds
):
  load = Occupancy(*(np.array([n]) for n in (3, 12, 9)))
  step = STEP._replace(reads_by_row=reads_by_row)
  assert step_seconds(step, LAYOUT, load) == pytest.approx([seconds])


def test_fewer_slots_read_less_at_the_end():
  load = Occupancy(*(np.array([n]) for n in (2, 12, 9)))
  step = STEP._replace(reads_by_row=False)
  assert step_seconds(step, LAYOUT, load) == pytest.approx([1 + 4 * 2 * 9 / 40])


def test_no_step_is_faster_than_the_busiest_unit_besides_memory():
  load = Occupancy(*(np.array([n, n]) for n in (1, 1, 1)))
  step = STEP._replace(seconds=3.5)
  assert step_seconds(step, LAYOUT, load).tolist() == [3.5, 3.5]


def test_full_lengths_take_one_round_per_slot():
  full, uniform, geometric = decoding_times(STEP, LAYOUT, 16)
  assert full.lengths == 'full'
  # Two rounds of ten steps; the cache holds half on average.
  assert (full.steps, full.tokens) == (20, 16 * 11)
  assert full.seconds == pytest.approx(20 * (1 + 4 * 5.5 / 10))
  assert geometric.mean < uniform.mean < full.mean
  assert geometric.seconds < uniform.seconds < full.seconds
