# SPDX-License-Identifier: Apache-2.0
"""Tests of the reward of Countdown with written steps."""

import operator
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.config import CountdownConfig
from covrl.data import SolvedCountdownStepsSource
from covrl.rewards import (
  COUNTDOWN_STEPS_EXAMPLE,
  RewardPool,
  Status,
  score_countdown_steps,
)

REFERENCE = {'numbers': [3, 7, 4, 2], 'target': 42}
FUNCTIONS = {
  '+': operator.add,
  '-': operator.sub,
  '*': operator.mul,
  '/': operator.floordiv,
}


@pytest.mark.parametrize(
  'response',
  [
    '3 + 7 = 10 , 10 * 4 = 40 , 40 + 2 = 42',
    '7 + 3 = 10 , 4 * 10 = 40 , 2 + 40 = 42',
    '3+7=10,10*4=40,40+2=42',
    ' 3 + 7 = 10 , 10 * 4 = 40 , 40 + 2 = 42 ',
    # Two results that are joined at the end.
    '7 * 4 = 28 , 28 / 2 = 14 , 14 * 3 = 42',
  ],
)
def test_right_steps_score_one(response):
  assert score_countdown_steps(response, REFERENCE) == 1.0


def test_steps_may_form_a_tree():
  reference = {'numbers': [1, 2, 3, 4], 'target': 21}
  tree = '1 + 2 = 3 , 3 + 4 = 7 , 3 * 7 = 21'
  assert score_countdown_steps(tree, reference) == 1.0


def test_a_result_of_zero_can_be_used_in_later_steps():
  reference = {'numbers': [5, 5, 9], 'target': 9}
  assert score_countdown_steps('5 - 5 = 0 , 9 + 0 = 9', reference) == 1.0
  assert score_countdown_steps('5 - 5 = 0 , 9 / 0 = 9', reference) == 0.0


@pytest.mark.parametrize(
  'response',
  [
    '',
    '42',
    ',',
    # A wrong result on the way, with the right last one.
    '3 + 7 = 11 , 10 * 4 = 40 , 40 + 2 = 42',
    '3 + 7 = 11 , 11 * 4 = 40 , 40 + 2 = 42',
    # A number that is not available, or no longer available.
    '3 + 7 = 10 , 10 * 5 = 50 , 50 - 2 = 48',
    '3 + 7 = 10 , 3 * 4 = 12 , 12 + 2 = 14',
    '3 + 7 = 10 , 10 + 10 = 20 , 20 * 2 = 40',
    '3 * 3 = 9 , 9 + 7 = 16 , 16 + 4 = 20',
    # A number is left, or the last result is not the target.
    '3 + 7 = 10 , 10 * 4 = 40',
    '7 * 3 = 21 , 21 * 2 = 42',
    '3 + 7 = 10 , 10 * 4 = 40 , 40 - 2 = 38',
    # Text before, between and after the steps.
    '3 + 7 = 10 , 10 * 4 = 40 , 40 + 2 = 42 ,',
    ', 3 + 7 = 10 , 10 * 4 = 40 , 40 + 2 = 42',
    '3 + 7 = 10 , , 10 * 4 = 40 , 40 + 2 = 42',
    '3 + 7 = 10 = 10 , 10 * 4 = 40 , 40 + 2 = 42',
    '3 + 7 = 10 , 10 * 4 = 40 , 40 + 2 = 42 : 42',
    '3 + 7 = 10 10 * 4 = 40 40 + 2 = 42',
    '3 + 7 = 10\n10 * 4 = 40\n40 + 2 = 42',
    # Division with a remainder, negative numbers, other digits.
    '3 / 2 = 1 , 1 * 7 = 7 , 7 * 4 = 28',
    '3 - 7 = -4 , -4 * -2 = 8 , 8 + 4 = 12',
    '٣ + 7 = 10 , 10 * 4 = 40 , 40 + 2 = 42',
    '3.0 + 7 = 10 , 10 * 4 = 40 , 40 + 2 = 42',
    '9' * 500,
    '3 + 7 = 10 , ' * 1000,
    '__import__("os")',
    '⁇',
  ],
)
def test_other_responses_score_zero(response):
  assert score_countdown_steps(response, REFERENCE) == 0.0


@st.composite
def _solved_problems(draw):
  """Strategy for numbers and right steps that join any two of them."""
  numbers = draw(st.lists(st.integers(1, 15), min_size=2, max_size=5))
  available, steps = list(numbers), []
  while len(available) > 1:
    left_operand = available.pop(draw(st.integers(0, len(available) - 1)))
    right_operand = available.pop(draw(st.integers(0, len(available) - 1)))
    symbols = [
      symbol
      for symbol in FUNCTIONS
      if (symbol != '-' or left_operand >= right_operand)
      and (
        symbol != '/' or (right_operand and left_operand % right_operand == 0)
      )
    ]
    symbol = draw(st.sampled_from(symbols))
    result = FUNCTIONS[symbol](left_operand, right_operand)
    available.append(result)
    steps.append(
      [str(left_operand), symbol, str(right_operand), '=', str(result)]
    )
  return numbers, available[0], steps


@given(_solved_problems())
@settings(max_examples=100, deadline=None)
def test_right_steps_score_one_for_their_own_numbers_and_target_only(case):
  numbers, target, steps = case
  response = ' , '.join(map(' '.join, steps))
  reference = {'numbers': numbers, 'target': target}
  assert score_countdown_steps(response, reference) == 1.0
  shuffled = {'numbers': numbers[::-1], 'target': target}
  assert score_countdown_steps(response, shuffled) == 1.0
  for other_reference in (
    {'numbers': numbers, 'target': target + 1},
    {'numbers': [*numbers, 1], 'target': target},
    {'numbers': numbers[1:], 'target': target},
  ):
    assert score_countdown_steps(response, other_reference) == 0.0


@given(_solved_problems(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_changed_result_scores_zero(case, data):
  numbers, target, steps = case
  step = data.draw(st.sampled_from(steps))
  step[4] = str(int(step[4]) + data.draw(st.integers(1, 9)))
  response = ' , '.join(map(' '.join, steps))
  reference = {'numbers': numbers, 'target': target}
  assert score_countdown_steps(response, reference) == 0.0


@given(st.text('0123456789+-*/=, ', max_size=60) | st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_never_raises(text):
  assert score_countdown_steps(text, REFERENCE) in (0.0, 1.0)


def test_every_solution_scores_one():
  config = CountdownConfig(held_out=0, max_numbers=6, max_value=15)
  source = SolvedCountdownStepsSource(config)
  for index in random.Random(0).sample(range(len(source)), 300):
    problem = source[index]
    response = problem.solution or ''
    assert score_countdown_steps(response, problem.reference) == 1.0


def test_workers_score_steps_without_jax():
  right_response, reference = COUNTDOWN_STEPS_EXAMPLE
  with RewardPool(
    score_countdown_steps, example=COUNTDOWN_STEPS_EXAMPLE
  ) as pool:
    responses = [right_response, '2 + 1 = 3', right_response]
    outcomes = pool.submit(responses, [reference] * 3).result()
  assert [outcome.score for outcome in outcomes] == [1.0, 0.0, 1.0]
  assert {outcome.status for outcome in outcomes} == {Status.SCORED}
