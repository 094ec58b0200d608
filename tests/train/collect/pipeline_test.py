# SPDX-License-Identifier: Apache-2.0
"""Rollouts that are sampled while the policy is trained."""

import signal
import subprocess
import time

import numpy as np
import optax
import pytest
from train import process, runs
from train.collectors import (
  GROUP,
  PARTIAL,
  PROMPTS,
  STATES,
  LengthScoring,
  assert_same,
  make_collector,
  make_config,
)

import covrl
from covrl.config import ConfigError
from covrl.config.validation import check
from covrl.rewards import (
  PendingScores,
)
from covrl.train.algorithm import Algorithm
from covrl.train.warnings.settings import config_warnings


def test_the_next_rollout_is_sampled_by_the_policy_before_the_updates():
  pipelined, sequential = make_collector(pipeline=1), make_collector()
  batches = [pipelined.collect(k, STATES[k]) for k in range(4)]
  assert [b.metrics['staleness_max'] for b in batches] == [0, 1, 1, 1]
  for k, batch in enumerate(batches):
    mask = batch.batch.loss_mask
    assert (batch.policy_step[mask] == max(k - 1, 0)).all()
    assert_same(batch, sequential.collect(k, STATES[max(k - 1, 0)]))
  # Nothing is sampled beyond the last iteration.
  assert pipelined.state.ahead is None
  assert pipelined.state.prompts['draw'] == 4
  # The policy after one update samples other responses.
  other_batch = make_collector().collect(0, STATES[1]).batch
  assert not np.array_equal(other_batch.tokens, batches[0].batch.tokens)


def test_scores_are_waited_for_after_the_next_rollout_is_sampled(monkeypatch):
  scoring = LengthScoring()
  collector, counts = make_collector(scoring, pipeline=1), []
  original_result = PendingScores.result

  def counting_result(scores):
    counts.append(len(scoring.texts))
    return original_result(scores)

  monkeypatch.setattr(PendingScores, 'result', counting_result)
  for k in range(4):
    collector.collect(k, STATES[k])
  size = PROMPTS * GROUP
  assert counts == [2 * size, 3 * size, 4 * size, 4 * size]


def test_a_collector_is_restored_with_the_rollout_that_is_sampled_ahead():
  uninterrupted, interrupted = (
    make_collector(pipeline=1),
    make_collector(pipeline=1),
  )
  for collector in (uninterrupted, interrupted):
    collector.collect(0, STATES[0])
  saved = interrupted.state
  assert saved.ahead is not None
  arrays = saved.ahead.arrays()
  zeros = interrupted.zero_rollouts()
  assert arrays.keys() == zeros.keys()
  for name, leaf in arrays.items():
    assert (leaf.shape, leaf.dtype) == (zeros[name].shape, zeros[name].dtype)
  resumed = make_collector(pipeline=1)
  resumed.restore(saved.prompts, arrays, None)
  for k in (1, 2, 3):
    assert_same(
      resumed.collect(k, STATES[k]), uninterrupted.collect(k, STATES[k])
    )
  # An abandoned rollout is drawn again.
  interrupted.collect(1, STATES[1])
  interrupted.state = saved
  resumed.restore(saved.prompts, arrays, None)
  assert_same(interrupted.collect(1, STATES[1]), resumed.collect(1, STATES[1]))


def kill_at(recipe, workdir, step):
  """Starts a run and kills it once this step is logged."""
  started = process.start(recipe, workdir)
  try:
    while not any(
      x['step'] >= step for x in process.metric_lines(workdir, 'train')
    ):
      assert started.poll() is None, 'the run ended by itself'
      time.sleep(0.005)
  finally:
    started.kill()
    started.communicate()


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['pipelined', 'partial', 'partial_replay'])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(recipe, tmp_path):
  recipe = f'toy_off_policy:{recipe}'
  uninterrupted, killed = tmp_path / 'whole', tmp_path / 'killed'
  lines = process.train(recipe, uninterrupted)
  # In the middle of an iteration of two updates, and between two.
  kill_at(recipe, killed, 3)
  kill_at(recipe, killed, 6)
  process.train(recipe, killed)
  runs.assert_same_metrics(killed, uninterrupted)
  trained = [line for line in lines if line['phase'] == 'train']
  assert [line['staleness_max'] for line in trained[:4]] == [0, 0, 2, 2]
  staleness = [line['staleness'] for line in trained[4:]]
  if 'partial' in recipe:
    assert any(value != 2 for value in staleness)
  else:
    assert staleness == [2] * 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('recipe', ['pipelined', 'partial'])
def test_a_run_killed_at_random_moments_equals_the_uninterrupted_one(
  recipe, tmp_path
):
  recipe = f'toy_off_policy:{recipe}'
  uninterrupted, killed = tmp_path / 'whole', tmp_path / 'killed'
  began = time.monotonic()
  process.train(recipe, uninterrupted)
  seconds = time.monotonic() - began
  rng = np.random.default_rng()
  for _ in range(4):
    running = process.start(recipe, killed)
    try:
      running.communicate(timeout=seconds * rng.uniform(0.3, 1.0))
    except subprocess.TimeoutExpired:
      running.kill()
      running.communicate()
    assert running.returncode in (0, -signal.SIGKILL)
  process.train(recipe, killed)
  runs.assert_same_metrics(killed, uninterrupted)


@pytest.mark.parametrize(
  ('fields', 'sentence'),
  [
    (
      {'carried_groups': 1},
      r'rollout\.pipeline must be 1 with rollout\.carried_groups, got 0 and 1',
    ),
    (PARTIAL | {'carried_groups': 5}, 'must be at most .*, got 5 of 4'),
    (
      PARTIAL | {'max_draws': 2},
      r'max_draws must be 1 with rollout\.carried_groups, got 2',
    ),
    (PARTIAL | {'max_staleness': 1}, 'max_staleness must be at least 2, got 1'),
    ({'pipeline': 2}, r'pipeline must lie in \[0, 1\], got 2'),
  ],
)
def test_refuses_fields_that_conflict(fields, sentence):
  with pytest.raises(ConfigError, match=sentence):
    check(make_config(**fields))


@pytest.mark.parametrize(
  ('chain', 'count'),
  [
    (covrl.icepop(), 0),
    (covrl.decoupled_ppo(), 0),
    (covrl.truncated_importance_weights(), 0),
    (covrl.reject_sequences(), 1),
  ],
)
def test_a_chain_without_importance_weights_is_reported(chain, count):
  algorithm = Algorithm(
    loss=covrl.clipped_surrogate,
    token_tx=optax.chain(covrl.entropy_bonus(0.1), chain),
    tx=optax.identity(),
    advantages=covrl.group_relative,
  )
  for rollout in ({'pipeline': 1}, {'cache_dtype': 'int8'}):
    texts = [*config_warnings(make_config(**rollout), algorithm, ())]
    assert sum('no importance weights: add' in text for text in texts) == count
  assert not any(
    'pipeline' in t for t in config_warnings(make_config(), algorithm, ())
  )
