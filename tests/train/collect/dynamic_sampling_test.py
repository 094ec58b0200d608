# SPDX-License-Identifier: Apache-2.0
"""Dynamic sampling by slots: prompts are drawn as slots are free, until enough groups pass."""

import functools
import threading
import time
import types
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train import collectors, process, processes_test, runs, toy
from train.collectors import GROUP, PROMPTS

from covrl.config import Config, ConfigError
from covrl.config.validation import check
from covrl.data.packing import prompt_width
from covrl.models import Policy, tiny
from covrl.rewards import (
  Outcome,
  PendingScores,
  Reward,
  Scoring,
  ScoringCall,
  Status,
)
from covrl.rollout import GroupEngine, SamplingEngine
from covrl.train.collect.collector import RolloutCollector
from covrl.types import TokenMoments, TokenStats

DRAWS = 4
REWARD = Reward(name='odd', score='a:b')


class OddLengthScoring(Scoring):
  """Scores responses by whether their length is odd, without workers.

  Args:
    delay: returns the seconds after which the n-th call is scored.

  Attributes:
    begun: number of groups whose scoring was opened.
    cancelled: number of groups whose scoring was cancelled.
  """

  def __init__(self, delay=None):
    self.rewards = (REWARD,)
    self.begun = self.cancelled = 0
    self._delay = delay

  def open(self, references, *, sources, shaping=True):
    del sources, shaping
    call_number = self.begun
    self.begun += len(references) // GROUP
    outcomes_by_index: dict[int, Outcome] = {}
    future: Future[list[Outcome]] = Future()

    def add(index, response, reference, length):
      del response, reference
      outcomes_by_index[index] = Outcome(float(length % 2), Status.SCORED)
      if len(outcomes_by_index) < len(references):
        return
      outcomes = [outcomes_by_index[i] for i in sorted(outcomes_by_index)]
      if self._delay is None:
        future.set_result(outcomes)
      else:
        seconds = self._delay(call_number)
        args = seconds, future.set_result, [outcomes]
        timer = threading.Timer(*args)
        timer.daemon = True
        timer.start()

    def cancel():
      self.cancelled += 1

    indices = range(len(references))
    scores = PendingScores((REWARD,), len(indices), {'odd': (indices, future)})
    parts = [({i: i for i in indices}, add)]
    return ScoringCall(scores, references, parts, cancel)


class Programs(collectors.Programs):
  """Replaces the compiled programs: statistics are 0, advantages the rewards."""

  def score(self, params, batch):
    del params
    zeros = jnp.zeros(batch.tokens.shape)
    moments = TokenMoments(
      square=zeros, square_log=zeros, square_log_square=zeros
    )
    return TokenStats(logprobs=zeros, entropy=zeros), moments


def make_config(**rollout: Any) -> Config:
  """The toy configuration with draws, segments and slots, and these fields."""
  fields = {
    'max_draws': DRAWS,
    'max_response_length': 8,
    'segment': 2,
    'slots': 6,
  }
  return collectors.make_config(**fields | rollout)


TASK = toy.make_task(make_config())
POLICY = Policy(tiny(TASK.tokenizer.vocab_size))


@functools.cache
def engines():
  """An engine for whole draws of prompts and one for groups by slots."""
  rollout, tokenizer = make_config().rollout, TASK.tokenizer
  settings: dict[str, Any] = {
    'end_ids': tokenizer.end_ids,
    'pad_id': tokenizer.pad_id,
    'max_response_length': rollout.max_response_length,
    'slots': rollout.slots,
    'segment': rollout.segment,
  }
  return SamplingEngine(POLICY, **settings), GroupEngine(
    POLICY,
    prompts=PROMPTS,
    prompt_width=prompt_width(rollout.max_prompt_length),
    group_size=GROUP,
    **settings,
  )


@functools.cache
def state(step) -> Any:
  """The policy after some updates."""
  params = POLICY.init(jax.random.key(step))
  return types.SimpleNamespace(params=params, step=jnp.asarray(step))


def make_collector(scoring, **rollout):
  config = make_config(**rollout)
  engine, group_engine = engines()
  programs: Any = Programs()
  by_slots = config.rollout.admission == 'slots'
  return RolloutCollector(
    TASK,
    engine,
    scoring,
    programs,
    config,
    jax.random.key(1),
    group_engine if by_slots else None,
  )


def collect(scoring, iterations=3, **rollout):
  """Returns the data of some iterations, and the draws after each."""
  collector, results = make_collector(scoring, **rollout), []
  for k in range(iterations):
    batch = collector.collect(k, state(k))
    results.append((batch, collector.state.prompts['draw']))
  collector.close()
  return results


SLOTS: dict[str, Any] = {'admission': 'slots'}
# Draws are made until enough groups pass; or two at most, and then groups that
# failed the filter fill up the batch.
FILTERS = [{}, {'fill_groups': True, 'max_draws': 2}]


def assert_close(actual, expected):
  """Asserts equality up to rounding, the trainer's statistics aside."""
  actual, expected = actual.arrays(), expected.arrays()
  for name in ('old_logprobs', 'old_entropy', 'old_moments'):
    object.__setattr__(actual['batch'], name, None)
    object.__setattr__(expected['batch'], name, None)
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('rollout', FILTERS)
def test_sampling_by_slots_trains_on_the_same_groups_as_by_draws(rollout):
  draw_scoring, slot_scoring = OddLengthScoring(), OddLengthScoring()
  by_draws = collect(draw_scoring, **rollout)
  by_slots = collect(slot_scoring, **SLOTS, **rollout)
  for (actual, draw), (expected, expected_draw) in zip(
    by_slots, by_draws, strict=True
  ):
    assert_close(actual, expected)
    assert draw == expected_draw
    for name in ('draws', 'groups/filled', 'groups/masked'):
      assert actual.metrics[name] == expected.metrics[name]
    num_passed = actual.metrics['groups/passed']
    assert num_passed == min(PROMPTS, expected.metrics['groups/passed'])
    assert actual.metrics['groups/drawn'] <= expected.metrics['groups/drawn']
  assert max(batch.metrics['draws'] for batch, _ in by_draws) > 1
  # Groups that are not needed any more are cancelled.
  num_drawn = sum(int(batch.metrics['groups/drawn']) for batch, _ in by_slots)
  assert slot_scoring.cancelled == slot_scoring.begun - num_drawn


def assert_same(actual, expected):
  for (a, draw), (b, expected_draw) in zip(actual, expected, strict=True):
    assert draw == expected_draw
    jax.tree.map(np.testing.assert_array_equal, a.arrays(), b.arrays())
    assert runs.without_clock(a.metrics) == runs.without_clock(b.metrics)


def test_the_speed_of_scoring_does_not_change_the_data():
  expected = collect(OddLengthScoring(), **SLOTS)
  generator = np.random.default_rng(0)
  seconds = generator.exponential(0.02, 1000)
  assert_same(collect(OddLengthScoring(seconds.__getitem__), **SLOTS), expected)


def test_sampling_goes_on_while_scores_are_waited_for():
  # The first group is scored only after all groups have begun, which would block
  # sampling by whole draws for ever.
  class LateScoring(OddLengthScoring):
    def open(self, references, *, sources, shaping=True):
      call = super().open(references, sources=sources, shaping=shaping)
      if self.begun > 1:
        if self.begun == PROMPTS * DRAWS:
          self.release()
        return call
      late_future: Future[list[Outcome]] = Future()
      indices, future = call.scores.futures['odd']
      self.release = lambda: future.add_done_callback(
        lambda scored: late_future.set_result(scored.result())
      )
      scores = PendingScores(
        (REWARD,), len(indices), {'odd': (indices, late_future)}
      )
      return ScoringCall(scores, references, call.adders, call.cancel)

  expected = collect(OddLengthScoring(), 1, **SLOTS)
  late = LateScoring()
  assert_same(collect(late, 1, **SLOTS), expected)
  assert late.begun == PROMPTS * DRAWS


def test_scores_after_the_last_group_are_not_waited_for():
  fast = OddLengthScoring()
  expected = collect(fast, 1, **SLOTS)
  num_needed = int(expected[0][0].metrics['groups/drawn'])
  assert num_needed < PROMPTS * DRAWS
  endless = OddLengthScoring(
    lambda number: 3600.0 if number >= num_needed else 0.0
  )
  assert_same(collect(endless, 1, **SLOTS), expected)


@pytest.mark.parametrize(
  ('fields', 'sentence'),
  [
    ({'max_draws': 1}, r'rollout\.max_draws must be above 1 .* got 1'),
    ({'pipeline': 1}, r'rollout\.pipeline must be 0 .* got 1'),
  ],
)
def test_refuses_fields_that_conflict(fields, sentence):
  check(make_config(**SLOTS))
  with pytest.raises(ConfigError, match=sentence):
    check(make_config(**SLOTS | fields))


def test_only_the_groups_to_train_on_are_scored_by_the_policy():
  config = make_config(**SLOTS)
  assert not config.scores_rollouts
  config.train.sequences_per_update //= 2
  assert config.scores_rollouts
  assert config.scoring_passes == 1
  config.rollout.admission = 'draws'
  assert config.scoring_passes == DRAWS


RUN = {
  **runs.SMALL,
  'rollout__max_draws': 3,
  'rollout__admission': 'slots',
  'rollout__segment': 1,
  'rollout__slots': 12,
}


@pytest.mark.slow
def test_a_killed_and_resumed_run_by_slots_equals_the_uninterrupted_one(
  tmp_path,
):
  uninterrupted, killed = tmp_path / 'uninterrupted', tmp_path / 'killed'
  settings = RUN | {'train__iterations': 4}
  trained = process.train('toy_kl_cov', uninterrupted, **settings)
  assert max(x['draws'] for x in trained if x['phase'] == 'train') > 1
  for step in (3, 6):
    started = process.start('toy_kl_cov', killed, **settings)
    while not any(
      x['step'] >= step for x in process.metric_lines(killed, 'train')
    ):
      assert started.poll() is None, 'the run ended by itself'
      time.sleep(0.005)
    started.kill()
    started.communicate()
  process.train('toy_kl_cov', killed, **settings)
  runs.assert_same_metrics(killed, uninterrupted)


@pytest.mark.slow
def test_several_processes_choose_the_same_groups(tmp_path):
  by_one_process, by_two_processes = tmp_path / 'alone', tmp_path / 'together'
  process.train('toy_kl_cov', by_one_process, **RUN)
  started = processes_test.start(by_two_processes, 2, **RUN)
  codes, errors = processes_test.wait_for_end(started)
  assert codes == [0, 0], errors
  processes_test.assert_same_run(by_two_processes, by_one_process)
