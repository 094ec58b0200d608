# SPDX-License-Identifier: Apache-2.0
"""Accuracy metrics against their definitions, by enumeration."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.data import Problem, Suite
from covrl.evaluation.metrics import (
  majority_vote,
  mean_correct,
  pass_at_k,
)
from covrl.evaluation.result_files import write_results
from covrl.evaluation.results import Evaluation, SuiteResult
from covrl.evaluation.voting import merge_equal_answers

ROWS = st.lists(st.booleans(), min_size=1, max_size=8)


@given(ROWS, st.integers(1, 8))
@settings(deadline=None)
def test_pass_at_k_is_the_mean_over_all_subsets(row, k):
  k = min(k, len(row))
  choices = [any(choice) for choice in itertools.combinations(row, k)]
  (chance,) = pass_at_k(np.array([row]), k)
  assert chance == pytest.approx(np.mean(choices), abs=1e-12)


def test_pass_at_k_of_many_responses_does_not_underflow():
  correct = np.zeros((2, 1024), bool)
  correct[1, :3] = True
  # 1 - (1 - 3 / 1024) … : the product over 512 factors does not underflow.
  assert pass_at_k(correct, 512).tolist() == pytest.approx(
    [0.0, 0.8753], abs=1e-3
  )
  assert pass_at_k(correct, 1).tolist() == pytest.approx([0.0, 3 / 1024])


@pytest.mark.parametrize('k', [0, 5, 1.5, np.float32(1.5), True])
def test_pass_at_k_refuses_k_out_of_range(k: Any):
  with pytest.raises(ValueError, match=r'in \[1, 4\], the responses, got'):
    pass_at_k(np.ones((1, 4), bool), k)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'correctness', [np.array([[0.5, 1]]), np.array([1.0, 0.0])]
)
def test_refuses_correctness_other_than_rows_of_0_1_and_nan(correctness):
  for metric in (
    mean_correct,
    lambda correctness: pass_at_k(correctness, 1),
    lambda correctness: majority_vote([['a', 'b']], correctness),
  ):
    with pytest.raises(ValueError, match='correct must be'):
      metric(correctness)


@pytest.mark.parametrize(
  ('answers', 'correct', 'expected'),
  [
    (['1', '2', '2'], [1, 0, 0], 0),
    (['1', '1', '2'], [1, 1, 0], 1),
    (['1', '2'], [1, 0], 1 / 2),
    (['1', '2', '3'], [1, 0, 0], 1 / 3),
    ([None, None, '2'], [0, 0, 1], 1),
    ([None, None], [0, 0], 0),
    # Two ways to write the right answer are one candidate.
    (['0.5', '1/2', '2', '2'], [1, 1, 0, 0], 1 / 2),
    (['0.5', '1/2', '.50', r'\frac12', '3', '3'], [1, 1, 1, 1, 0, 0], 1),
  ],
)
def test_majority_vote_equals_values_computed_by_hand(
  answers, correct, expected
):
  (share,) = majority_vote([answers], np.array([correct], bool))
  assert share == pytest.approx(expected)


def result(name, greedy, correct, answers=None):
  """A suite result in which the given responses are correct."""
  correct = np.array(correct, bool).reshape(len(greedy), -1)
  samples = correct.shape[1]
  return SuiteResult(
    suite=Suite(
      name=name,
      problems=[
        Problem(prompt=f'{name} {n}', reference='1', source='s', key=f'k{n}')
        for n in range(len(greedy))
      ],
      samples=samples,
    ),
    greedy=np.array(greedy, bool),
    correct=correct,
    responses=[['r'] * (samples + 1)] * len(greedy),
    answers=answers,
  )


SAMPLED = result('aime24', [1, 0], [[1, 1, 0, 1], [0, 0, 0, 1]])
GREEDY = result('math500', [1, 1, 0, 1], [[]] * 4)


# Correctness of a response without a score.
UNSCORED = float('nan')


@given(st.lists(st.sampled_from([0.0, 1.0, UNSCORED]), min_size=1, max_size=8))
@settings(deadline=None)
def test_unscored_responses_are_left_out(row):
  correctness = np.array([row])
  scored = [each for each in row if each == each]
  (mean,) = mean_correct(correctness)
  assert mean == pytest.approx(
    np.mean(scored) if scored else UNSCORED, nan_ok=True
  )
  for k in range(1, len(row) + 1):
    (probability,) = pass_at_k(correctness, k)
    assert (probability == probability) == (k <= len(scored))
    if k <= len(scored):
      assert probability == pass_at_k(np.array([scored]), k)[0]
  (share,) = majority_vote([['1'] * len(row)], correctness)
  assert (share == share) == (len(scored) == len(row))


def unscored_result():
  """400 problems, half correct, of which each twentieth has no score."""
  greedy = np.tile([1.0, 0.0], 200)
  greedy[::20] = UNSCORED
  correct = np.stack([greedy, greedy[::-1]], axis=1)
  correct[7] = UNSCORED
  answers = [['1', '2']] * 400
  return dataclasses.replace(
    result('a', [1] * 400, [[1, 1]] * 400, answers),
    greedy=greedy,
    correct=correct,
  )


def test_intervals_include_all_scores_that_unscored_responses_allow():
  result = unscored_result()
  evaluation = Evaluation(results=(result,), entropy=0.0)
  summary = evaluation.summary()
  assert summary['unscored'] == evaluation.unscored == 20 + 40 + 2
  # 180 of the 380 that have a score; 180 to 200 of all 400.
  assert summary['greedy'] == 180 / 380
  error = 1.96 * 0.5 / 20
  assert summary['greedy_low'] == pytest.approx(180 / 400 - error, abs=0.006)
  assert summary['greedy_high'] == pytest.approx(200 / 400 + error, abs=0.006)
  lowest, highest = result.metric_bounds()
  for name, values in result.metrics().items():
    assert np.nanmean(values) == pytest.approx(summary[name])
    assert np.isnan(values).any()
    assert not np.isnan(lowest[name]).any()
    known = ~np.isnan(values)
    assert (lowest[name] <= highest[name]).all()
    assert (lowest[name][known] <= values[known]).all()
    assert (values[known] <= highest[name][known]).all()
    assert summary[f'{name}_low'] <= summary[name] <= summary[f'{name}_high']
  line = next(iter(result.lines(responses=False)))
  assert line['greedy'] is None
  assert line['correct'] == [None, 0]


def test_a_metric_without_any_scored_problem_is_missing(tmp_path):
  without_scores = dataclasses.replace(
    result('a', [0], [[0, 0]]),
    greedy=np.array([UNSCORED]),
    correct=np.array([[UNSCORED, 1.0]]),
  )
  evaluation = Evaluation(results=(without_scores, SAMPLED), entropy=0.0)
  summary = evaluation.summary()
  assert np.isnan(summary['greedy'])
  assert np.isnan(summary['a/greedy'])
  assert summary['a/mean@2'] == 1.0
  assert summary['aime24/greedy'] == 0.5
  file = write_results(evaluation, tmp_path, {})
  written = json.loads(file.read_text(), parse_constant=pytest.fail)
  assert written['a']['metrics']['greedy'] == [None, None, None]
  assert written['a']['unscored'] == 2


@pytest.mark.parametrize('greedy', [[1], [1, UNSCORED]])
def test_a_single_problem_has_neither_interval_nor_standard_error(
  tmp_path, greedy
):
  only = dataclasses.replace(
    result('a', [1] * len(greedy), [[]] * len(greedy)), greedy=np.array(greedy)
  )
  evaluation = Evaluation(results=(only,), entropy=0.0)
  summary = evaluation.summary()
  assert summary['a/greedy'] == 1.0
  assert np.isnan(summary['a/greedy_stderr'])
  file = write_results(evaluation, tmp_path, {})
  written = json.loads(file.read_text(), parse_constant=pytest.fail)
  if len(greedy) == 1:
    assert 'a/greedy_low' not in summary
    assert written['a']['metrics']['greedy'] == [1.0, None, None]
  else:
    # Both problems bound what the one without a score allows.
    assert written['a']['metrics']['greedy'] == [1.0, 0.0, 1.0]


def test_a_suite_has_the_metrics_of_its_samples_and_answers():
  assert set(SAMPLED.metrics()) == {'greedy', 'mean@4', 'pass@2', 'pass@4'}
  assert set(GREEDY.metrics()) == {'greedy'}
  metrics = SAMPLED.metrics()
  assert metrics['mean@4'].tolist() == [0.75, 0.25]
  assert metrics['pass@2'].tolist() == [1.0, 0.5]
  voted = result('a', [1], [[1, 0, 0]], [['1', '2', '2']])
  assert set(voted.metrics()) == {
    'greedy',
    'mean@3',
    'pass@2',
    'pass@3',
    'maj@3',
  }


def test_suites_have_equal_weights_whatever_their_size():
  summary = Evaluation(results=(SAMPLED, GREEDY), entropy=0.5).summary()
  assert summary['aime24/mean@4'] == summary['aime24/accuracy'] == 0.5
  assert summary['math500/greedy'] == summary['math500/accuracy'] == 0.75
  # Means over suites: of greedy responses, and of the main metric of each suite.
  assert summary['greedy'] == (0.5 + 0.75) / 2
  assert summary['accuracy'] == (0.5 + 0.75) / 2
  assert summary['mean@4'] == 0.5
  assert summary['problems'] == 6
  for name in ('greedy', 'accuracy', 'aime24/mean@4'):
    assert summary[f'{name}_low'] <= summary[name] <= summary[f'{name}_high']


def test_the_standard_error_over_suites_combines_those_of_the_suites():
  summary = Evaluation(results=(SAMPLED, GREEDY), entropy=0.5).summary()
  combined = np.hypot(
    summary['aime24/greedy_stderr'], summary['math500/greedy_stderr']
  )
  assert summary['greedy_stderr'] == pytest.approx(combined / 2)


def test_held_out_problems_have_no_suite_name():
  summary = Evaluation(
    results=(result('', [1, 0], [[1], [0]]),), entropy=0.5
  ).summary()
  assert not any('/' in name or 'accuracy' in name for name in summary)


def test_intervals_are_over_problems():
  """Half a suite correct: the interval of a mean of 400 coin tosses."""
  many = result('a', [1, 0] * 200, [[]] * 400)
  estimate = Evaluation(results=(many,), entropy=0.0).estimates()['a/greedy']
  assert estimate.low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.006)
  assert estimate.high == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.006)


def test_a_line_has_all_results_of_a_problem():
  voted = result('a', [1], [[1, 0]], [['1', None]])
  (line,) = voted.lines(responses=True)
  assert line == {
    'suite': 'a',
    'key': 'k0',
    'prompt': 'a 0',
    'reference': '1',
    'greedy': 1,
    'correct': [1, 0],
    'temperature': 1.0,
    'answers': ['1', None],
    'responses': ['r', 'r', 'r'],
  }
  (short,) = voted.lines(responses=False)
  assert set(line) - set(short) == {'reference', 'responses'}


def test_the_lines_of_a_run_keep_a_few_greedy_responses():
  many = result('', [1, 0] * 10, [[]] * 20)
  lines = list(Evaluation(results=(many,), entropy=0.0).lines())
  assert [line.get('response') for line in lines] == ['r'] * 8 + [None] * 12
  assert not any('responses' in line for line in lines)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'correctness',
  [
    np.ma.array([[1.0, 0.0]], mask=[[False, True]]),
    np.array([['1', '0']]),
    np.array([[1, 0]], object),
    np.array([[1j, 0]]),
  ],
)
def test_refuses_correctness_that_is_not_plain_numbers(correctness):
  for metric in (
    mean_correct,
    lambda m: pass_at_k(m, 1),
    lambda m: majority_vote([['a', 'b']], m),
  ):
    with pytest.raises(ValueError, match='correct must be an array'):
      metric(correctness)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'answers', [['ab'], [['a']], [['a', 'b', 'c']], [['a', float('nan')]], []]
)
def test_refuses_answers_that_are_not_one_per_response(answers):
  with pytest.raises((TypeError, ValueError), match='answers must'):
    majority_vote(answers, np.array([[1.0, 0.0]]))


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'equals', [[float('nan')], ['False'], [None], [1.0], [], [True, True]]
)
def test_refuses_comparisons_that_are_not_one_bool_per_pair(equals):
  with pytest.raises((TypeError, ValueError), match='are_equal must return'):
    merge_equal_answers([['a', 'b']], np.zeros((1, 2)), lambda pairs: equals)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'change',
  [
    {'greedy': np.ones(3)},
    {'greedy': np.full(2, 0.5)},
    {'correct': np.ones((2, 3))},
    {'correct': np.ones((3, 4))},
    {'responses': [['r'] * 5]},
    {'responses': [['r'] * 5, ['r'] * 4]},
    {'answers': [['1'] * 4]},
    {'answers': [['1'] * 3] * 2},
  ],
)
def test_refuses_results_that_are_not_one_per_problem_and_sample(change):
  with pytest.raises(ValueError, match='must be'):
    dataclasses.replace(SAMPLED, **change)
