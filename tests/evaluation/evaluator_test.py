# SPDX-License-Identifier: Apache-2.0
"""Evaluation results depend on the policy and the problem only."""

import dataclasses
import inspect
import itertools
import math
import zlib

import jax
import numpy as np
import pytest
from train import scoring as scorers
from train import toy

from covrl.data import SUITES as KNOWN_SUITES
from covrl.data import Suite
from covrl.evaluation import evaluator as evaluator_module
from covrl.evaluation.evaluator import EvaluationError, Evaluator
from covrl.evaluation.metrics import majority_vote
from covrl.evaluation.voting import checked_extractor
from covrl.models import Policy
from covrl.rewards import Reward, Scores, Scoring, math_reward
from covrl.rewards.math import extract
from covrl.rollout import SamplingEngine

CONFIG = toy.get_config()
PROBLEMS = toy.problems(toy.DIGIT_SETS[: toy.HELD_OUT])[::6]
SUITES = (
  Suite(name='one', problems=PROBLEMS[:5], samples=6, temperature=0.7),
  Suite(name='two', problems=PROBLEMS[5:16]),
  Suite(name='three', problems=PROBLEMS[16:19], samples=4, temperature=0.7),
  Suite(name='four', problems=PROBLEMS[19:21], samples=1),
)


@pytest.fixture(scope='module')
def evaluator_parts():
  """Task, sampling engine, scoring workers and parameters of a random policy."""
  task = toy.make_task(CONFIG)
  policy = Policy(toy.make_model(CONFIG, task.tokenizer.vocab_size))
  engine = SamplingEngine(
    policy,
    None,
    end_ids=task.tokenizer.end_ids,
    pad_id=task.tokenizer.pad_id,
    max_response_length=4,
  )
  with Scoring(task.rewards, sources=task.sources, workers=1) as scoring:
    yield task, engine, scoring, policy.init(jax.random.key(1))


def evaluate(
  evaluator_parts,
  suites,
  *,
  prompts_per_batch=8,
  group_size=4,
  answer_extractor=lambda problem: None,
  on_progress=None,
  **settings,
):
  """Evaluates the random policy on suites."""
  task, engine, scoring, params = evaluator_parts
  evaluator = Evaluator(
    engine,
    scoring,
    task.tokenizer,
    suites,
    max_prompt_length=6,
    prompts_per_batch=prompts_per_batch,
    group_size=group_size,
    key=jax.random.key(3),
    answer_extractor=answer_extractor,
    **settings,
  )
  evaluator.compile(params)
  return evaluator.evaluate(params, on_progress)


def test_each_suite_has_its_number_of_samples(evaluator_parts):
  results = evaluate(evaluator_parts, SUITES).results
  assert [r.greedy.shape for r in results] == [(5,), (11,), (3,), (2,)]
  assert [r.correct.shape for r in results] == [(5, 6), (11, 0), (3, 4), (2, 1)]
  for result in results:
    for problem, texts in zip(
      result.suite.problems, result.responses, strict=True
    ):
      assert len(texts) == 1 + result.suite.samples
      correct = [
        scorers.begins_with_largest(t, problem.reference) for t in texts
      ]
      index = result.suite.problems.index(problem)
      assert correct[0] == result.greedy[index]
      assert correct[1:] == result.correct[index].tolist()
  assert evaluate(evaluator_parts, SUITES).unscored == 0


def test_responses_that_the_length_limit_ends_are_counted(evaluator_parts):
  task, _, scoring, params = evaluator_parts
  policy = Policy(toy.make_model(CONFIG, task.tokenizer.vocab_size))
  vocab_size = task.tokenizer.vocab_size
  # Any token ends a response, or one that this policy does not sample.
  for end_ids, share in (
    (tuple(range(vocab_size)), 0),
    (task.tokenizer.end_ids, 1),
  ):
    engine = SamplingEngine(
      policy,
      None,
      end_ids=end_ids,
      pad_id=task.tokenizer.pad_id,
      max_response_length=4,
    )
    evaluation = evaluate((task, engine, scoring, params), SUITES[:2])
    assert evaluation.num_responses == 5 * 7 + 11
    assert evaluation.truncated == share * evaluation.num_responses
    assert evaluation.summary()['truncated_fraction'] == share
    counts = [result.truncated for result in evaluation.results]
    assert counts == [share * 5 * 7, share * 11]


@pytest.mark.parametrize('points', [1, 10, math.nan])
def test_scores_above_that_of_a_correct_response_are_reported(
  evaluator_parts, monkeypatch, points
):
  def grades(scores):
    (outcomes,) = scores.outcomes.values()
    return [points * (1.0 - index % 2) for index in range(len(outcomes))]

  monkeypatch.setattr(Scores, 'grades', grades)
  evaluation = evaluate(evaluator_parts, SUITES[:1], max_failures=1.0)
  assert evaluation.highest_grade == (0 if math.isnan(points) else points)
  warning = evaluation.grade_warning()
  if points != 10:
    assert warning is None
  else:
    assert warning is not None
    assert warning.startswith(
      'scores of rewards must be at most 1, that of a correct response, got 10:'
    )


def test_responses_do_not_depend_on_other_suites_or_batch_sizes(
  evaluator_parts,
):
  results = evaluate(evaluator_parts, SUITES).results
  alone = evaluate(evaluator_parts, SUITES[2:3], prompts_per_batch=8).results[0]
  assert alone.responses == results[2].responses
  other_batch_sizes = evaluate(
    evaluator_parts, SUITES, prompts_per_batch=3, group_size=2
  ).results
  for ours, theirs in zip(results, other_batch_sizes, strict=True):
    assert ours.responses == theirs.responses


def test_samples_differ_within_and_between_suites(evaluator_parts):
  suites = [
    dataclasses.replace(SUITES[0], name=name, samples=16)
    for name in ('one', 'other')
  ]
  one, other = evaluate(evaluator_parts, suites).results
  assert all(len(set(texts[1:])) > 3 for texts in one.responses)
  assert one.responses != other.responses
  assert np.array_equal(one.greedy, other.greedy)


def test_majority_votes_on_extracted_answers(evaluator_parts):
  def extractor(problem):
    # The problems of the second suite have no short answers.
    if problem in SUITES[2].problems:
      return None
    return lambda response: response.split()[0] if response else None

  result, other_result = evaluate(
    evaluator_parts, [SUITES[0], SUITES[2]], answer_extractor=extractor
  ).results
  assert other_result.answers is None
  assert 'maj@4' not in other_result.metrics()
  assert 'maj@6' in result.metrics()
  assert result.answers is not None
  for texts, answers in zip(result.responses, result.answers, strict=True):
    assert [t.split()[0] if t else None for t in texts[1:]] == list(answers)


def test_entropy_is_over_samples_at_temperature_1_only(evaluator_parts):
  """Greedy tokens and those at other temperatures are not drawn from the policy."""
  assert math.isnan(evaluate(evaluator_parts, SUITES[:3]).entropy)
  at_1 = dataclasses.replace(SUITES[2], name='at 1', temperature=1.0)
  entropy = evaluate(evaluator_parts, [at_1]).entropy
  assert entropy > 0
  both = evaluate(evaluator_parts, [at_1, *SUITES[:3]])
  assert both.entropy == pytest.approx(entropy, rel=1e-6)


def test_known_suites_have_distinct_blocks_of_sequence_ids():
  blocks = {zlib.crc32(name.encode()) % 2047 for name in KNOWN_SUITES}
  assert len(blocks) == len(KNOWN_SUITES)


def test_refuses_an_empty_suite(evaluator_parts):
  with pytest.raises(
    ValueError, match="'nothing' must have problems, got none"
  ):
    evaluate(evaluator_parts, [Suite(name='nothing', problems=())])


def test_unscored_responses_are_counted_up_to_the_limit(evaluator_parts):
  task, engine, _, params = evaluator_parts
  failing_reward = [
    Reward(name='partly', score='train.scoring:fails_on_odd_numbers')
  ]
  with Scoring(failing_reward, sources=task.sources, workers=1) as scoring:
    parts = task, engine, scoring, params
    with pytest.raises(
      EvaluationError,
      match=r'at most 5% .* \(rewards.max_failures\), .* frequent reason: partly ended',
    ):
      evaluate(parts, SUITES[:1])
    evaluation = evaluate(parts, SUITES[:1], max_failures=1.0)
  (expected,) = evaluate(evaluator_parts, SUITES[:1]).results
  (result,) = evaluation.results
  is_unscored = np.array(
    [[begins_with_odd(text) for text in row] for row in result.responses]
  )
  assert is_unscored.any()
  assert not is_unscored.all()
  assert evaluation.unscored == is_unscored.sum()
  for scores, expected_scores, is_missing in (
    (result.greedy, expected.greedy, is_unscored[:, 0]),
    (result.correct, expected.correct, is_unscored[:, 1:]),
  ):
    assert np.array_equal(np.isnan(scores), is_missing)
    assert np.array_equal(scores[~is_missing], expected_scores[~is_missing])


def begins_with_odd(text):
  return text[:1].isdigit() and int(text[0]) % 2 == 1


def test_progress_is_reported_while_a_batch_is_decoded(evaluator_parts):
  calls = []
  evaluate(
    evaluator_parts,
    SUITES[:1],
    on_progress=lambda *counts, **metrics: calls.append((counts, metrics)),
  )
  counts_done = [counts[0] for counts, _ in calls]
  assert {total for (_, total), _ in calls} == {5 + 30}
  assert (counts_done[0], counts_done[-1]) == (0, 35)
  assert counts_done == sorted(counts_done)
  # Before and after each of three batches, and after its segments.
  assert len(calls) > 1 + 2 * 3
  assert all(0 <= v <= 1 for _, metrics in calls for v in metrics.values())


def test_equal_answers_are_counted_together_however_they_are_written(
  evaluator_parts, monkeypatch
):
  task, engine, _, params = evaluator_parts
  spellings = ['3', '1/2', '.5', r'\frac12', '0.50', '3']
  # The greedy response, then the samples; responses to padding follow both.
  texts = iter(['x', *[''] * 7, *spellings, *[''] * 42])
  reward = math_reward(name='math', sources=())
  problem = dataclasses.replace(PROBLEMS[0], reference='7')
  suite = Suite(name='votes', problems=[problem], samples=6)

  def decoded(tokenizer, samples):
    count = len(samples.response_mask)
    return tuple(
      rf'\boxed{{{each}}}' for each in itertools.islice(texts, count)
    )

  monkeypatch.setattr(evaluator_module, 'decode_responses', decoded)
  with Scoring([reward], sources=['toy'], workers=1) as scoring:
    (result,) = evaluate(
      (task, engine, scoring, params),
      [suite],
      prompts_per_batch=8,
      group_size=6,
      answer_extractor=lambda problem: extract,
    ).results
  assert result.answers is not None
  assert result.answers == [['3', '1/2', '1/2', '1/2', '1/2', '3']]
  assert majority_vote(result.answers, np.array([[0, 1, 1, 1, 1, 0.0]])) == [1]


def test_answers_that_could_not_be_compared_leave_the_vote_unknown(
  evaluator_parts, monkeypatch
):
  task, engine, _, params = evaluator_parts
  texts = iter(['x', *[''] * 7, '1', '2', *[''] * 14])
  suite = Suite(name='votes', problems=[PROBLEMS[0]], samples=2)

  def decoded(tokenizer, samples):
    return tuple(itertools.islice(texts, len(samples.response_mask)))

  monkeypatch.setattr(evaluator_module, 'decode_responses', decoded)
  reward = Reward(name='fragile', score=_fails_for_other_references)
  with Scoring([reward], sources=['toy'], workers=1) as scoring:
    evaluation = evaluate(
      (task, engine, scoring, params),
      [suite],
      prompts_per_batch=8,
      group_size=2,
      answer_extractor=lambda problem: str,
    )
  (result,) = evaluation.results
  assert result.undecided == {0}
  assert np.isnan(result.metrics()['maj@2']).all()
  estimate = evaluation.estimates()['votes/maj@2']
  assert np.isnan(estimate.value)
  assert (estimate.low, estimate.high) == (None, None)  # One problem.


def _fails_for_other_references(response, reference):
  if reference != PROBLEMS[0].reference:
    raise RuntimeError('no comparison')
  return 0.0


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    ({'prompts_per_batch': 0}, 'prompts_per_batch must be at least 1, got 0'),
    ({'group_size': 1.5}, 'group_size must be an integer, got 1.5'),
    ({'max_failures': float('nan')}, r'max_failures must lie in \[0, 1\]'),
    ({'suites': []}, 'suites must not be empty, got none'),
    (
      {'suites': [Suite(name='a', problems=PROBLEMS[:1])] * 2},
      "suites must have different names, got 2 'a'",
    ),
  ],
)
def test_refuses_invalid_settings(evaluator_parts, change, sentence):
  task, engine, scoring, _ = evaluator_parts
  settings = {
    'suites': [Suite(name='', problems=PROBLEMS[:1])],
    'max_prompt_length': 8,
    'prompts_per_batch': 8,
    'group_size': 2,
    'key': jax.random.key(0),
  } | change
  with pytest.raises((TypeError, ValueError), match=sentence):
    inspect.unwrap(Evaluator.__init__)(
      object.__new__(Evaluator), engine, scoring, task.tokenizer, **settings
    )


def test_refuses_a_prompt_that_is_too_long(evaluator_parts):
  task, engine, scoring, _ = evaluator_parts
  long_problem = dataclasses.replace(PROBLEMS[0], prompt='1 2 3 4 5 6 7 :')
  with pytest.raises(ValueError, match='must have at most 6 tokens, got 9'):
    Evaluator(
      engine,
      scoring,
      task.tokenizer,
      [Suite(name='long', problems=[long_problem])],
      max_prompt_length=6,
      prompts_per_batch=2,
      group_size=1,
      key=jax.random.key(0),
    )


def test_extracted_answers_are_texts():
  assert checked_extractor(None) is None
  extract = checked_extractor(lambda text: None if text == '' else text)
  assert extract is not None
  assert (extract(''), extract('1')) == (None, '1')
  with pytest.raises(TypeError, match='must return a function or None for a'):
    checked_extractor(5)
  lengths = checked_extractor(len)
  assert lengths is not None
  with pytest.raises(TypeError, match='must return a text or None, got 2'):
    lengths('ab')
