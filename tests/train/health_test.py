# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity in rewards, updates, parameters and whole runs."""

import contextlib
import dataclasses
import math
import pathlib
import resource
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train import process
from train.runs import SMALL
from train.updates import padded_batch, run, update

import covrl
from covrl.exit_codes import Exit
from covrl.rewards import Outcome, PendingScores, Reward, Status
from covrl.rollout.score import PendingRollouts
from covrl.train.apply import apply_gradients
from covrl.train.collect.rollout_metrics import rollout_metrics
from covrl.types import Rollouts, TrainState, UpdateMeasurements


def scored_rollouts(*scores, weight=1.0):
  """Finished rollouts of one-token responses with given scores."""
  count = len(scores)
  zeros: Any = np.zeros((count, 2), np.float32)
  ids: Any = np.arange(count, dtype=np.int32)
  mask: Any = np.ones((count, 2), bool)
  truncated: Any = np.zeros(count, bool)
  policy_step: Any = np.zeros((count, 2), np.int32)
  rows = Rollouts(
    tokens=zeros.astype(np.int32),
    positions=zeros.astype(np.int32),
    attention_mask=mask,
    loss_mask=mask,
    sampler_logprobs=zeros,
    behaviour_logprobs=zeros,
    sequence_ids=ids,
    group_ids=ids // 2,
    source_ids=np.zeros_like(ids),
    policy_step=policy_step,
    truncated=truncated,
    rewards={},
  )
  outcomes: Future[list[Outcome]] = Future()
  outcomes.set_result([Outcome(score, Status.SCORED) for score in scores])
  scores = PendingScores(
    (Reward(name='maths', score='a:b', weight=weight),),
    count,
    {'maths': (range(count), outcomes)},
  )
  return PendingRollouts(
    rollouts=rows, responses=('',) * count, scores=scores
  ).result()


@pytest.mark.parametrize(
  'bad', [1e308, 1e39, -1e39, 3e38, 1e20, math.inf, -math.inf, math.nan]
)
def test_responses_with_scores_that_float32_cannot_hold_are_masked(bad):
  scored = scored_rollouts(1.0, bad, 0.0)
  assert scored.masked == 1
  assert np.isfinite(scored.rollouts.rewards['score']).all()
  assert scored.counts['maths/invalid'] == 1
  assert len(scored.failures) == 1
  assert (
    'a score must be a number of magnitude 1e+15 or less'
    in (scored.failures[0])
  )
  advantages = covrl.group_relative(
    jnp.asarray(scored.rollouts.rewards['score']), jnp.array([0, 0, 0])
  )
  assert jnp.isfinite(advantages).all()


def test_responses_with_too_large_sums_of_rewards_are_masked():
  scored = scored_rollouts(1.0, 1e12, weight=1e4)
  assert scored.masked == 1
  assert scored.failures == [
    'the sum of all rewards must be of magnitude 1e+15 or less, got 1e+16'
  ]


@pytest.mark.parametrize('weight', [math.nan, math.inf, 1e30])
def test_refuses_weights_of_rewards_that_are_not_finite_or_too_large(weight):
  with pytest.raises(ValueError, match="weight of the reward 'maths' must"):
    Reward(name='maths', score='a:b', weight=weight)


def test_metrics_of_an_iteration_without_scores_are_nan():
  scored = scored_rollouts(math.nan, math.nan)
  zeros = np.zeros((2, 2), np.float32)
  stats: Any = (SimpleNamespace(logprobs=zeros, entropy=zeros), None)
  metrics = rollout_metrics(scored.rollouts, stats, sources=('gsm8k',), step=0)
  present = {'truncated_fraction', 'end_fraction'}
  assert {name for name, x in metrics.items() if not math.isnan(x)} == present


def test_an_update_without_tokens_changes_nothing_and_has_no_metrics():
  rows = padded_batch()
  empty_mask: Any = np.zeros_like(rows.loss_mask)
  empty = dataclasses.replace(
    rows, loss_mask=empty_mask, weights=empty_mask.astype(np.float32)
  )
  options: Any = {
    'target_entropy': 4.0,
    'kl_cov_fraction': 0.04,
    'kl_cov_coefficient': 1.0,
    'clip_cov_fraction': 0.02,
  }
  state_before, _ = run((8,), 1, rows, **options)
  state, metrics = update((8,), 1, empty, state_before)
  for name in ('trainable', 'opt_state', 'token_state', 'last_update'):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(state, name),
      getattr(state_before, name),
    )
  assert state.step == state_before.step + 1
  assert metrics['tokens'] == metrics['skipped'] == 0
  count_names = (
    'tokens',
    'skipped',
    'quota',
    'eligible',
    'selected',
    'nonfinite',
    'clamped',
  )
  carried_over = ('log_ratio_noise', 'coefficient')
  for name, value in metrics.items():
    is_count = name in count_names or name.startswith('quadrant/')
    if not name.startswith(carried_over):
      assert value == 0 if is_count else np.isnan(value), (name, value)
  # The next update is that of a run without the empty one.
  actual, expected = (
    update((8,), 1, rows, initial_state)
    for initial_state in (state, state_before)
  )
  for name in ('entropy', 'loss', 'entropy_change_since_rollout'):
    assert actual[1][name] == expected[1][name], name


def test_small_top_shares_of_few_tokens_have_no_covariance():
  _, metrics = run((8,), 1, padded_batch())
  tokens = int(padded_batch().loss_mask.sum())
  assert tokens * 0.0002 < 1
  assert np.isnan(metrics['covariance_top/0.0002'])
  assert np.isfinite(metrics['covariance_top/0.5'])
  assert np.isnan(metrics['threshold'])


def apply_update(tx, gradient, params=None):
  """One guarded update of a vector by a parameter chain."""
  params = {'w': jnp.ones(3)} if params is None else params
  state = TrainState(
    trainable=params,
    frozen={},
    opt_state=tx.init(params),
    token_state=(),
    step=jnp.zeros((), jnp.int32),
    last_update=UpdateMeasurements.initial(),
  )
  return apply_gradients(
    tx,
    state,
    {'w': jnp.full(3, gradient)},
    (),
    UpdateMeasurements.initial(),
    jnp.asarray(True),
    jnp.asarray(0.5),
  )


@pytest.mark.parametrize(
  'tx',
  [
    optax.sgd(math.nan),
    optax.adam(math.inf),
    optax.sgd(3e38),
    optax.adam(lambda count: jnp.nan),
  ],
)
def test_updates_that_are_not_finite_are_skipped(tx):
  state, finite = apply_update(tx, 3.0)
  assert finite == 0
  np.testing.assert_array_equal(state.trainable['w'], np.ones(3))
  jax.tree.map(
    np.testing.assert_array_equal,
    state.opt_state,
    tx.init({'w': jnp.ones(3)}),
  )
  assert state.step == 1


def test_updates_that_overflow_the_dtype_of_parameters_are_skipped():
  params = {'w': jnp.full(3, 6e4, jnp.float16)}
  state, finite = apply_update(optax.sgd(1.0), -6e4, params)
  assert finite == 0
  np.testing.assert_array_equal(state.trainable['w'], params['w'])
  assert apply_update(optax.sgd(1.0), 1.0)[1] == 1


def test_nan_log_ratios_make_gradients_and_weights_nan():
  gradient = covrl.losses.divergence_gradient
  for kind in ('abs', 'k2', 'k3'):
    assert jnp.isnan(gradient(jnp.array([jnp.nan]), kind)).all(), kind
  tx: Any = covrl.truncated_importance_weights(5.0, 0.5, out_of_range='mask')
  ones = covrl.TokenStats(logprobs=jnp.ones((1, 2)), entropy=jnp.ones((1, 2)))
  signal, _ = tx.update(
    ones,
    tx.init(ones.template()),
    ones,
    mask=jnp.ones((1, 2), bool),
    old_logprobs=-jnp.ones((1, 2)),
    sampler_logprobs=jnp.array([[jnp.nan, -9.0]]),
  )
  assert jnp.isnan(signal.logprobs[0, 0])
  assert signal.logprobs[0, 1] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
  'recipe',
  [
    'toy_unhealthy:nan_learning_rate',
    'toy_unhealthy:nan_warm_start',
    'toy_unhealthy:infinite_rewards',
  ],
)
def test_a_run_with_nan_parameters_ends_with_one_sentence(tmp_path, recipe):
  settings: dict[str, Any] = SMALL | {'train__max_skipped_updates': 3}
  if recipe.endswith('rewards'):
    settings['rewards__max_failures'] = 0.5
  started = process.start(recipe, tmp_path / 'run', **settings)
  _, stderr = started.communicate(timeout=600)
  lines = process.metric_lines(tmp_path / 'run', 'train')
  if recipe.endswith('rewards'):
    assert started.returncode == Exit.REFUSED, stderr
    assert 'a score must be a number of magnitude 1e+15 or less' in stderr
    return
  assert started.returncode == Exit.DIVERGED, stderr
  notices = (tmp_path / 'run' / 'notices.jsonl').read_text()
  assert 'has diverged: ' in notices.splitlines()[-1]
  assert 'has diverged: ' in (tmp_path / 'run' / 'report.html').read_text()
  if recipe.endswith('warm_start'):
    assert stderr.splitlines()[-1].startswith(
      'covrl: the warm start has diverged: its last 4 updates were skipped'
    )
    assert not lines
    return
  assert stderr.splitlines()[-1].startswith('covrl: training has diverged: ')
  assert 'update 1 of iteration 0 is skipped' in stderr
  assert '3 updates skipped' in stderr
  assert [line['skipped'] for line in lines] == [1.0] * 3
  report = (tmp_path / 'run' / 'report.html').read_text()
  assert '3 of 3 updates were skipped' in report


@pytest.mark.slow
def test_resources_are_flat_over_many_iterations(tmp_path):
  """Descriptors and children do not grow after the first 50, threads by at most two.

  Pools of libraries start threads when they need them, a leak starts nine.

  Memory grows by less than 20 kB per update. Evaluations are left out: their
  reports read all metrics, which grow.
  """
  settings = SMALL | {
    'train__iterations': 300,
    'checkpoint__every': 20,
    'checkpoint__every_updates': 0,
    'evaluate__every': 1000,
    'logging__samples_every': 20,
  }
  process_ = process.start('toy_kl_cov', tmp_path / 'run', **settings)
  readings = watch(process_, tmp_path / 'run')
  _, stderr = process_.communicate(timeout=60)
  assert process_.returncode == 0, stderr
  settled = [
    reading
    for finished_iterations, reading in readings
    if finished_iterations >= 50
  ]
  quarter = len(settled) // 4
  quarters = settled[:quarter], settled[-quarter:]
  medians = {
    name: [
      float(np.median([reading[name] for reading in readings_of_quarter]))
      for readings_of_quarter in quarters
    ]
    for name in settled[0]
  }
  for name in ('descriptors', 'threads', 'children'):
    early, late = medians[name]
    assert late <= early + (2 if name == 'threads' else 0), medians
  # Temporary allocations, by a save for example, do not count.
  early, late = (
    min(reading['memory'] for reading in readings_of_quarter)
    for readings_of_quarter in quarters
  )
  updates = 2 * round((300 - 50) * 3 / 4)
  assert (late - early) / updates < 20_000, (early, late)


def watch(process_, workdir):
  """Samples a run's resources; returns (finished iterations, reading)."""
  readings = []
  while process_.poll() is None:
    time.sleep(0.25)
    lines = process.metric_lines(workdir, 'train')
    with contextlib.suppress(OSError, IndexError):
      reading = usage(process_.pid)
      # A process that has ended has no memory.
      if reading['memory']:
        readings.append((lines[-1]['iteration'] if lines else 0, reading))
  return readings


def usage(pid):
  """Resident bytes, and numbers of descriptors, threads and children."""
  proc = pathlib.Path('/proc') / str(pid)
  tasks = list((proc / 'task').iterdir())
  children = [(task / 'children').read_text().split() for task in tasks]
  pages = int((proc / 'statm').read_text().split()[1])
  return {
    'memory': pages * resource.getpagesize(),
    'descriptors': len(list((proc / 'fd').iterdir())),
    'threads': len(tasks),
    'children': sum(map(len, children)),
  }
