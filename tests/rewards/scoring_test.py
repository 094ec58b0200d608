# SPDX-License-Identifier: Apache-2.0
"""Rewards of several parts: weights, sources, shaping, and failures."""

import functools
import math
import operator
from typing import Any

import pytest
from rewards import scorers

from covrl.rewards import (
  Outcome,
  Overlong,
  Reward,
  Scores,
  Scoring,
  Status,
  format_reward,
  math_reward,
  overlong_penalty,
)

LENGTH = Reward(name='length', score=scorers.length)


def score_rows(rewards, rows, **settings):
  """Scores of rows of response, reference, source and length."""
  responses, references, sources, lengths = zip(*rows, strict=True)
  with Scoring(
    rewards, sources=sorted(set(sources)), workers=1, timeout=60.0
  ) as scoring:
    return scoring.submit(
      responses, references, sources=sources, lengths=lengths, **settings
    ).result()


@pytest.mark.parametrize(
  ('length', 'penalty'),
  # With L_max = 100 and L_cache = 20: 0 up to 80, (80 − n)/20 up to 100, −1.
  [
    (0, 0),
    (80, 0),
    (81, -0.05),
    (85, -0.25),
    (99, -0.95),
    (100, -1),
    (900, -1),
  ],
)
def test_overlong_penalty_matches_the_published_formula(length, penalty):
  actual = overlong_penalty(length, max_length=100, buffer=20)
  assert actual == pytest.approx(penalty, abs=1e-12)


def test_refuses_invalid_overlong_buffers():
  with pytest.raises(ValueError, match=r'in \[1, max_length\], got 0 of 10'):
    Overlong(max_length=10, buffer=0)
  with pytest.raises(ValueError, match='got 11 of 10'):
    overlong_penalty(3, max_length=10, buffer=11)


def test_total_is_the_weighted_sum_of_applicable_parts():
  scores = score_rows(
    [
      Reward(name='length', score=scorers.length, sources=('a',)),
      Reward(name='echo', score='rewards.scorers:echo', sources=('b',)),
      format_reward('[0-9]+', weight=0.5),
      Overlong(max_length=10, buffer=10, weight=2.0),
    ],
    [('123', '1', 'a', 0), ('4', '', 'b', 5), ('abc', 'ab', 'a', 10)],
  )
  assert scores.totals() == [2.0 + 0.5, 4.0 + 0.5 - 1.0, 1.0 - 2.0]
  # Format and length count in the total that is trained on, not in the grades.
  assert scores.grades() == [2.0, 4.0, 1.0]
  scores_by_name = {
    name: [outcome and outcome.score for outcome in outcomes]
    for name, outcomes in scores.outcomes.items()
  }
  assert scores_by_name == {
    'length': [2.0, None, 1.0],
    'echo': [None, 4.0, None],
    'format': [1.0, 1.0, 0.0],
    'overlong': [0.0, -0.5, -1.0],
  }


def test_evaluation_leaves_out_shaping():
  scores = score_rows(
    [LENGTH, format_reward('.*'), Overlong(max_length=2, buffer=1)],
    [('aa', 'a', 's', 2)],
    shaping=False,
  )
  assert scores.outcomes.keys() == {'length'}
  assert scores.totals() == scores.grades() == [1.0]


def test_part_of_weight_0_is_only_logged():
  rewards = [
    LENGTH,
    Reward(name='logged', score=scorers.outcome, weight=0.0),
  ]
  scores = score_rows(rewards, [('wrong', '12345', 's', 0)])
  assert scores.totals() == scores.grades() == [0.0]
  assert scores.counts()['logged/wrong'] == 1


def test_unscored_responses_have_no_total_and_are_counted():
  reward = Reward(name='judged', score=scorers.outcome)
  scores = score_rows(
    [reward],
    [
      ('scored', '1', 's', 0),
      ('wrong', '0', 's', 0),
      ('timeout', '0', 's', 0),
      ('infrastructure', 'nan', 's', 0),
      ('timeout', 'nan', 's', 0),
      ('no such status', '1', 's', 0),
    ],
  )
  assert scores.totals()[:3] == [1.0, 0.0, 0.0]
  assert all(map(math.isnan, scores.totals()[3:]))
  assert all(map(math.isnan, scores.grades()[3:]))
  assert {name: n for name, n in scores.counts().items() if n} == {
    'judged/scored': 1,
    'judged/wrong': 1,
    'judged/timeout': 2,
    'judged/infrastructure': 1,
    'judged/crash': 1,
  }
  assert len(scores.counts()) == len(Status)
  assert scores.failures() == [
    'judged ended with infrastructure: requested',
    'judged ended with timeout: requested',
    "judged ended with crash: ValueError: 'no such status' is not a valid"
    ' Status',
  ]


@pytest.mark.parametrize('status', [Status.INVALID, Status.INFRASTRUCTURE])
def test_a_status_without_a_score_has_none_whatever_the_number(status):
  outcome = Outcome(0.0, status, 'no judge').checked()
  assert math.isnan(outcome.score)
  assert (outcome.status, outcome.detail) == (status, 'no judge')
  timeout = Outcome(0.5, Status.TIMEOUT)
  assert timeout.checked() == timeout


def test_hang_in_one_part_does_not_affect_others():
  rewards = [
    Reward(name='echo', score=scorers.echo, timeout=0.5, weight=3.0),
    LENGTH,
  ]
  rows = [('hang', 'h', 's', 0), ('1', '', 's', 0)]
  scores = score_rows(rewards, rows)
  assert math.isnan(scores.totals()[0])
  assert scores.totals()[1] == 4.0
  (first, _) = scores.outcomes['echo']
  assert first is not None
  assert (first.status, first.detail) == (
    Status.TIMEOUT,
    'no score after 0.5 s',
  )


def test_grades_are_relative_to_the_highest_score():
  rewards = (
    Reward(name='one', score=scorers.echo, weight=2.0),
    Reward(name='other', score=scorers.echo, weight=1.0),
  )
  full, none = Outcome(1.0, Status.SCORED), Outcome(0.0, Status.WRONG)
  scores = Scores(
    rewards, {'one': [full, full, none], 'other': [full, none, None]}
  )
  assert scores.totals() == [3.0, 2.0, 0.0]
  assert scores.grades() == [1.0, 2 / 3, 0.0]


def test_a_correct_response_may_have_a_rounded_grade():
  tenths = functools.reduce(operator.add, [0.1] * 10)
  assert tenths < 1
  points = [tenths, 1.0, 0.999, 0.0, 7.0, math.nan]
  outcomes = [Outcome(x, Status.SCORED) for x in points[:-1]]
  outcomes.append(Outcome(math.nan, Status.TIMEOUT))
  scores = Scores((Reward(name='one', score=scorers.echo),), {'one': outcomes})
  assert scores.correctness()[:-1] == [1.0, 1.0, 0.0, 0.0, 1.0]
  assert math.isnan(scores.correctness()[-1])


def test_parts_of_negative_weight_do_not_lower_the_highest_score():
  rewards = (
    Reward(name='right', score=scorers.echo),
    Reward(name='cheats', score=scorers.echo, weight=-0.5),
  )
  full, half, none = (Outcome(x, Status.SCORED) for x in (1.0, 0.5, 0.0))
  scores = Scores(
    rewards, {'right': [full, full, half], 'cheats': [none, full, none]}
  )
  assert scores.grades() == [1.0, 0.5, 0.5]
  assert math.isnan(Scores(rewards[1:], {'cheats': [full]}).grades()[0])


@pytest.mark.parametrize('rule', ['boxed', 'gsm8k', 'dapo'])
def test_math_reward_extracts_answers_by_each_rule(rule):
  responses = {
    'boxed': r'\boxed{1/2}',
    'gsm8k': '#### .5',
    'dapo': 'Answer: .5',
  }
  scores = score_rows(
    [math_reward(rule=rule)],
    [(responses[rule], r'\frac12', 's', 0), ('0.5', r'\frac12', 's', 0)],
  )
  assert scores.totals() == [1.0, 0.0]
  assert scores.counts()['maths/unparsable'] == 1


@pytest.mark.parametrize(
  ('rewards', 'message'),
  [
    ([LENGTH, LENGTH], "names of rewards must differ, got 'length' 2 times"),
    (
      [Reward(name='x', score=scorers.echo, sources=('maths',))],
      "must be one of 'math', 'code', got 'maths'; did you mean 'math'",
    ),
    (
      [Reward(name='x', score=scorers.echo, sources=('math',))],
      "got none for 'code'",
    ),
    ([format_reward('.*')], "grades its answers.*got none for 'math'"),
    (
      [Reward(name='x', score=scorers.echo, weight=-1.0)],
      "a weight above 0.*got none for 'math'",
    ),
  ],
)
def test_refuses_rewards_that_do_not_match_the_sources(rewards, message):
  with pytest.raises(ValueError, match=message):
    Scoring(rewards, sources=('math', 'code'))


@pytest.mark.parametrize('name', ['score', 'Maths', 'a b', ''])
def test_refuses_invalid_names(name):
  with pytest.raises(ValueError, match='lower-case word other than'):
    Reward(name=name, score=scorers.echo)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'weight': '1'}, "must be a number of magnitude 1e\\+06 or less, got '1'"),
    ({'sources': 'math'}, "must be a tuple of texts, got 'math'"),
    ({'timeout': 0}, 'timeout of the reward .* must be finite and positive'),
    ({'timeout': math.inf}, 'timeout of the reward .* must be finite and'),
  ],
)
def test_refuses_values_of_another_type(changes, message):
  with pytest.raises(ValueError, match=message):
    Reward(**{'name': 'mine', 'score': scorers.echo, **changes})


def test_refuses_invalid_patterns_and_functions():
  with pytest.raises(ValueError, match=r"regular expression, got '\('"):
    format_reward('(')
  missing = Reward(name='mine', score='no.such.module:function')
  with (
    Scoring([missing], sources=['s'], workers=1) as scoring,
    pytest.raises(
      RuntimeError, match=r"the reward 'mine': .* No module named 'no'"
    ),
  ):
    scoring.warm_up()
  for name in ('module', 'module.function', ':function', 'a b:c'):
    with pytest.raises(ValueError, match='the form module:function, got'):
      Scoring([Reward(name='mine', score=name)], sources=['s'])


def test_refuses_arguments_of_different_lengths():
  rows: list[Any] = ['1', '2']
  with (
    Scoring([LENGTH], sources=['s'], workers=1) as scoring,
    pytest.raises(ValueError, match='got 1, 2 and 2 for 2'),
  ):
    scoring.submit(rows, ['1'], sources=['s', 's'], lengths=[1, 1])


@pytest.mark.usefixtures('no_annotation_checks')
def test_responses_that_no_part_would_score_are_refused():
  with Scoring([LENGTH], sources=['s'], workers=1) as scoring:
    for references, sources, message in (
      (['1'], ['other'], r"must be one of \['s'\], got 'other'"),
      (['1', '2'], ['s'], 'sources must be as many as references, got 1 for 2'),
    ):
      with pytest.raises(ValueError, match=message):
        scoring.open(references, sources=sources)
    call = scoring.open(['1'], sources=['s'])
    with pytest.raises(IndexError, match=r'index must lie in \[0, 1\), got 1'):
      call.add(1, 'x', 1)
    no_text: Any = None
    with pytest.raises(TypeError, match='a response must be a text, got None'):
      call.add(0, no_text, 1)
  with pytest.raises(TypeError, match="must be a list of names, got 'ab'"):
    Scoring([LENGTH], sources='ab')


def test_refuses_lengths_below_0():
  lengths: list[Any] = [-1, math.nan]
  for length in lengths:
    with pytest.raises(ValueError, match='length must be at least 0, got'):
      overlong_penalty(length, max_length=10, buffer=5)


def test_responses_are_scored_as_they_are_added():
  """The order is arbitrary, equal ones are scored once, results come at the end."""
  rewards = [
    Reward(name='length', score=scorers.length, sources=('a',)),
    Overlong(max_length=10, buffer=5),
    Reward(name='other', score=scorers.length, sources=('b',)),
  ]
  rows = [
    ('xy', 'ab', 'a', 2),
    ('', 'ab', 'b', 9),
    ('xy', 'ab', 'a', 2),
    ('z', 'ab', 'a', 10),
  ]
  responses, references, sources, lengths = zip(*rows, strict=True)
  with Scoring(rewards, sources=('a', 'b'), workers=1, timeout=60.0) as scoring:
    call = scoring.open(references, sources=sources)
    for index in (3, 0, 1):
      call.add(index, responses[index], lengths[index])
      assert not call.scores.is_done
    length_future = call.scores.futures['length'][1]
    call.add(2, responses[2], lengths[2])
    added_singly = call.scores.result()
    assert length_future.done()
    at_once = scoring.submit(
      responses, references, sources=sources, lengths=lengths
    ).result()
  assert added_singly == at_once
  assert added_singly.totals()[0] == added_singly.totals()[2]
