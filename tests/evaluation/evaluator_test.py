# SPDX-License-Identifier: Apache-2.0
"""Evaluation results depend on the policy and the problem only."""

import dataclasses
import zlib

import jax
import numpy as np
import pytest
from train import scoring as scorers
from train import toy

from covrl.data import SUITES as SETS
from covrl.data import Suite
from covrl.evaluation.evaluator import Evaluator
from covrl.models import Policy
from covrl.rewards import Reward, Scoring
from covrl.rollout import SamplingEngine

CONFIG = toy.get_config()
PROBLEMS = toy.problems(toy.SETS[: toy.HELD_OUT])[::6]
SUITES = (
  Suite(name='one', problems=PROBLEMS[:5], samples=6, temperature=0.7),
  Suite(name='two', problems=PROBLEMS[5:16]),
  Suite(name='three', problems=PROBLEMS[16:19], samples=4, temperature=0.7),
  Suite(name='four', problems=PROBLEMS[19:21], samples=1),
)


@pytest.fixture(scope='module')
def world():
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
  world,
  suites,
  *,
  prompts_per_batch=8,
  group_size=4,
  answer_extractor=lambda problem: None,
):
  task, engine, scoring, params = world
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
  )
  evaluator.compile(params)
  return evaluator.evaluate(params)


def test_each_suite_has_its_number_of_samples(world):
  results = evaluate(world, SUITES).results
  assert [r.greedy.shape for r in results] == [(5,), (11,), (3,), (2,)]
  assert [r.correct.shape for r in results] == [(5, 6), (11, 0), (3, 4), (2, 1)]
  for result in results:
    for problem, texts in zip(
      result.suite.problems, result.responses, strict=True
    ):
      assert len(texts) == 1 + result.suite.samples
      marks = [scorers.begins_with_largest(t, problem.reference) for t in texts]
      index = result.suite.problems.index(problem)
      assert marks[0] == result.greedy[index]
      assert marks[1:] == result.correct[index].tolist()


def test_responses_do_not_depend_on_other_suites_or_batch_sizes(world):
  whole = evaluate(world, SUITES).results
  alone = evaluate(world, SUITES[2:3], prompts_per_batch=8).results[0]
  assert alone.responses == whole[2].responses
  for at_once, group in ((3, 4), (16, 2), (8, 1)):
    others = evaluate(
      world, SUITES, prompts_per_batch=at_once, group_size=group
    ).results
    for ours, theirs in zip(whole, others, strict=True):
      assert ours.responses == theirs.responses


def test_samples_differ_within_and_between_suites(world):
  twice = [
    dataclasses.replace(SUITES[0], name=name, samples=16)
    for name in ('one', 'other')
  ]
  one, other = evaluate(world, twice).results
  assert all(len(set(texts[1:])) > 3 for texts in one.responses)
  assert one.responses != other.responses
  assert np.array_equal(one.greedy, other.greedy)


def test_majority_votes_on_extracted_answers(world):
  def extractor(problem):
    # The problems of the second suite have no short answers.
    if problem in SUITES[2].problems:
      return None
    return lambda response: response.split()[0] if response else None

  result, other = evaluate(
    world, [SUITES[0], SUITES[2]], answer_extractor=extractor
  ).results
  assert other.answers is None
  assert 'maj@4' not in other.metrics()
  assert 'maj@6' in result.metrics()
  assert result.answers is not None
  for texts, answers in zip(result.responses, result.answers, strict=True):
    assert [t.split()[0] if t else None for t in texts[1:]] == list(answers)


def test_entropy_is_over_samples_if_there_are_any(world):
  both = evaluate(world, SUITES)
  sampled = evaluate(world, [s for s in SUITES if s.samples])
  assert both.entropy == pytest.approx(sampled.entropy, rel=1e-6)
  assert evaluate(world, SUITES[1:2]).entropy > 0


def test_known_suites_have_distinct_blocks_of_noise():
  blocks = {zlib.crc32(name.encode()) % 2047 for name in SETS}
  assert len(blocks) == len(SETS)


def test_refuses_an_empty_suite(world):
  with pytest.raises(ValueError, match='needs problems, none has none'):
    evaluate(world, [Suite(name='none', problems=())])


def test_responses_that_cannot_be_scored_are_an_error(world):
  task, engine, _, params = world
  broken = [Reward(name='broken', score='train.scoring:never_ends')]
  with (
    Scoring(broken, sources=task.sources, workers=1, timeout=0.2) as scoring,
    pytest.raises(RuntimeError, match=r'every response scored, .* timeout'),
  ):
    evaluate((task, engine, scoring, params), SUITES[3:])


def test_refuses_a_prompt_that_is_too_long(world):
  task, engine, scoring, _ = world
  long = dataclasses.replace(PROBLEMS[0], prompt='1 2 3 4 5 6 7 :')
  with pytest.raises(ValueError, match='may have 6 tokens, got 9'):
    Evaluator(
      engine,
      scoring,
      task.tokenizer,
      [Suite(name='long', problems=[long])],
      max_prompt_length=6,
      prompts_per_batch=2,
      group_size=1,
      key=jax.random.key(0),
    )
