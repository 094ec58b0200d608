# SPDX-License-Identifier: Apache-2.0
"""Tests of Countdown problems with written steps."""

import collections
import random

import pytest

from covrl.data import (
  CountdownConfig,
  SolvedCountdownStepsSource,
  held_out_steps,
)
from covrl.data.generated.countdown_steps import random_steps

CONFIG = CountdownConfig(
  min_numbers=4, max_numbers=5, max_value=15, max_target=60, held_out=50
)


def test_solutions_use_all_operators_and_shuffle_the_numbers():
  source = SolvedCountdownStepsSource(CONFIG)
  problems = [source[n] for n in range(400)]
  solutions = [problem.solution or '' for problem in problems]
  counts = collections.Counter(''.join(solutions))
  assert all(counts[symbol] > 100 for symbol in '+-*/')
  first = [solution.split()[:3:2] for solution in solutions]
  begin_with_first_two = sum(
    set(map(int, pair)) == set(problem.reference['numbers'][:2])
    for pair, problem in zip(first, problems, strict=True)
  )
  assert begin_with_first_two < 120


def test_steps_end_where_no_operator_applies():
  # Neither 9 + 8 nor 9 * 8 is at most 9, and 9 - 8 = 1.
  assert random_steps(random.Random(0), [9, 8], 9) == (1, '9 - 8 = 1')
  assert random_steps(random.Random(0), [9, 8, 9, 9, 9, 9], 0) is None


def test_refuses_a_target_that_no_steps_reach():
  unreachable = CountdownConfig(
    max_value=2, min_target=99, max_target=99, held_out=1
  )
  with pytest.raises(ValueError, match='must allow more distinct problems'):
    held_out_steps(unreachable)
