# SPDX-License-Identifier: Apache-2.0
"""The Countdown reward is 1 exactly where the scorer of reasoning-gym gives its full score."""

import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.rewards import RewardPool, Status, score_countdown
from covrl.rewards.countdown import COUNTDOWN_EXAMPLE, may_be_correct

REFERENCE = {'numbers': [3, 7, 12, 5], 'target': 115}


@pytest.fixture(scope='module')
def reasoning_gym_dataset():
  """reasoning-gym's Countdown, for its scorer."""
  return reasoning_gym.create_dataset('countdown', seed=0, size=1)


@pytest.mark.parametrize(
  'response',
  [
    '( 3 + 7 ) * 12 - 5',
    '(3+7)*12-5',
    ' -5 + ((12)) * (7 + 3) ',
  ],
)
def test_correct_answers_score_one(response):
  assert score_countdown(response, REFERENCE) == 1.0


@pytest.mark.parametrize(
  'response',
  [
    '',
    '115',
    '( 3 + 7 ) * 12 - 6',
    '( 3 + 7 ) * 12',
    '( 3 + 7 ) * 12 - 5 + 3 - 3',
    '( 3 + 7 ) * 12 - 5 = 115',
    '( 3 + 7 * 12 - 5',
    '3 7 12 5',
    '3 + 7 ) * 12 - 5',
    '(3)(7)(12)(5)',
    '3.0 + 7 + 12 + 5',
    '3 , 7 , 12 , 5',
    '3 // 7 + 12 + 5',
    '3 ** 7 + 12 + 5',
    '3 * * 7 + 12 + 5',
    '3 7 + 12 + 5',
    '~3 + 7 + 12 + 5',
    '3 if 7 else 12 + 5',
    '3 + 7 + 12 + 5 # x',
    '٣ + 7 + 12 + 5',
    '12 / ( 7 - 7 ) + 3 + 5',
    '__import__("os")',
    '(' * 4000,
    '-' * 4000 + '3',
    '(' * 120 + '3' + ')' * 120,
    '-' * 250 + '3',
    '9' * 5000,
    ' ',
    '⁇',
  ],
)
def test_wrong_answers_score_zero(response):
  assert score_countdown(response, REFERENCE) == 0.0


@pytest.mark.parametrize(
  'expression', ['9**9**9', '9 ** 9 ** 9', '9*9**9', '9//9//9']
)
def test_powers_never_reach_the_scorer(expression):
  # Evaluated, the powers would never end.
  assert not may_be_correct(expression, {'numbers': [9, 9, 9], 'target': 9})


def test_partial_scores_become_zero(reasoning_gym_dataset):
  for response in ('3 + 7', '3 + 7 + 12 + 5', 'x'):
    assert (
      0
      < reasoning_gym_dataset.score_answer(response, {'metadata': REFERENCE})
      < 1
    )
    assert score_countdown(response, REFERENCE) == 0.0


@st.composite
def _expressions(draw):
  """Strategy for arithmetic with a few numbers, spaces, signs and parentheses."""
  text = draw(st.sampled_from(['', '-', '+', '- ']))
  numbers = draw(st.lists(st.integers(1, 12), min_size=2, max_size=4))
  text += str(numbers[0])
  for number in numbers[1:]:
    operator = draw(st.sampled_from(['+', '-', '*', '/', ' - ', '--', '/-']))
    text = f'{text}{operator}{number}'
    if draw(st.booleans()):
      text = f'({text})'
  return text, numbers


@given(_expressions(), st.integers(-3, 200))
@settings(max_examples=60, deadline=None)
def test_agrees_with_the_scorer_on_every_expression(
  reasoning_gym_dataset, case, target
):
  text, numbers = case
  for goal in {target, _value(text)}:
    reference = {'numbers': numbers, 'target': goal}
    score = reasoning_gym_dataset.score_answer(text, {'metadata': reference})
    assert score_countdown(text, reference) == (1.0 if score >= 1 else 0.0)


def _value(text: str) -> int:
  """Rounded value of an expression; 1 where it divides by 0."""
  try:
    return round(eval(text))
  except ZeroDivisionError:
    return 1


@given(st.text('0123456789+-*/() ', max_size=40), st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_never_raises(text, any_text):
  reference = {'numbers': [1, 2, 3], 'target': 6}
  assert not may_be_correct(any_text, reference) or '1' in any_text
  may_be_correct(text, reference)


def test_workers_score_countdown_without_jax():
  right_response, reference = COUNTDOWN_EXAMPLE
  with RewardPool(score_countdown, example=COUNTDOWN_EXAMPLE) as pool:
    responses = [right_response, '1 + 2 + 3', '9**9**9', right_response]
    outcomes = pool.submit(responses, [reference] * 4).result()
  assert [outcome.score for outcome in outcomes] == [1.0, 0.0, 0.0, 1.0]
  assert {outcome.status for outcome in outcomes} == {Status.SCORED}
