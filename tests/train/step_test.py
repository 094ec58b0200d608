# SPDX-License-Identifier: Apache-2.0
"""Updates do not depend on mesh, number of micro-batches or layout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train.token_chains import (
  COMMON_OPTIONS,
  COMPOSED_METHODS,
  METHODS,
  fingerprint_of,
)
from train.updates import (
  PROGRAMS,
  SEQUENCES,
  WIDTH,
  assert_same_bits,
  fresh_state,
  off_policy_batch,
  padded_batch,
  padded_batch_stats,
  parameters,
  run,
  score,
  update,
)

import covrl
from covrl.data import pack_rows
from covrl.entropy import TokenMaskedState
from covrl.parallel import sharding
from covrl.train.forward import with_old_stats
from covrl.train.microbatch import join_rows, split_rows
from covrl.types import TokenMoments


def gradients(state):
  """Gradients of an update, which the optimiser's first state holds."""
  return jax.tree.leaves(state.opt_state[0].trace)


def assert_same_update(actual, expected, *, rtol=0.0):
  """Asserts that updates are equal to float32 rounding, selections to the bit.

  Args:
    actual: state and metrics.
    expected: state and metrics.
    rtol: tolerance of numbers of the token chain, for statistics that programs of
      different shapes have computed; the selected tokens are the same.
  """
  (state, metrics), (expected_state, expected_metrics) = actual, expected
  for actual_leaf, expected_leaf in zip(
    gradients(state), gradients(expected_state), strict=True
  ):
    scale = np.abs(expected_leaf).max()
    np.testing.assert_allclose(
      actual_leaf, expected_leaf, rtol=1e-5, atol=1e-5 * scale
    )
  jax.tree.map(
    lambda actual_leaf, expected_leaf: (
      np.testing.assert_allclose(actual_leaf, expected_leaf, rtol=rtol)
      if np.issubdtype(expected_leaf.dtype, np.floating)
      else assert_same_bits(actual_leaf, expected_leaf)
    ),
    state.token_state,
    expected_state.token_state,
  )
  if rtol == 0.0:
    assert_same_bits(state.token_state, expected_state.token_state)
  for name in ('selected', 'quota', 'threshold', 'tokens', 'skipped'):
    tolerance = rtol if name == 'threshold' else 0.0
    np.testing.assert_allclose(
      metrics[name], expected_metrics[name], rtol=tolerance, err_msg=name
    )
  for name in expected_metrics:
    np.testing.assert_allclose(
      metrics[name], expected_metrics[name], rtol=1e-4, atol=1e-5, err_msg=name
    )
  np.testing.assert_allclose(
    metrics['loss'], expected_metrics['loss'], rtol=1e-5
  )


def kl_cov_selection(state):
  """Number of tokens that KL-Cov selected, and a fingerprint of them.

  The selector of the test chains returns the fingerprint as `eligible`.
  """
  kl_cov_state = next(
    transform_state
    for transform_state in reversed(state.token_state.inner_state)
    if isinstance(transform_state, TokenMaskedState)
  )
  return int(kl_cov_state.summary.selected), int(kl_cov_state.summary.eligible)


@pytest.mark.parametrize('method', METHODS)
def test_updates_do_not_depend_on_meshes_or_micro_batches(method):
  options = METHODS[method]
  expected = run(*PROGRAMS[0], padded_batch(), **options)
  num_penalised, fingerprint = kl_cov_selection(expected[0])
  num_tokens = int(padded_batch().loss_mask.sum())
  assert expected[1]['selected'] == int(
    num_tokens * options.get('clip_cov_fraction', 0)
  )
  assert num_penalised == int(num_tokens * options.get('kl_cov_fraction', 0))
  assert (fingerprint != 0) == (num_penalised > 0)
  for shape, micro_batches in PROGRAMS[1:]:
    actual = run(shape, micro_batches, padded_batch(), **options)
    assert_same_update(actual, expected)
    assert kl_cov_selection(actual[0]) == (num_penalised, fingerprint)


def largest_change(before, after):
  return max(np.abs(x - y).max() for x, y in zip(after, before, strict=True))


def test_methods_change_the_gradient():
  unedited = gradients(run(*PROGRAMS[0], padded_batch())[0])
  for method in ('clip_cov', 'kl_cov', 'kl_cov with bonus', 'controllers'):
    edited = gradients(run(*PROGRAMS[0], padded_batch(), **METHODS[method])[0])
    assert largest_change(unedited, edited) > 1e-3, method


def run_composed(program, batch, method, **options_of_test):
  """One update by the composed chain with a method switched on."""
  options = COMPOSED_METHODS[method] | COMMON_OPTIONS | options_of_test
  shape, micro_batches = program
  return run(shape, micro_batches, batch, chain='composed', **options)


@pytest.mark.parametrize('method', COMPOSED_METHODS)
def test_composed_methods_do_not_depend_on_the_layout(method):
  """Layouts: two meshes, micro-batches, packed rows, and another order."""
  batch = off_policy_batch()
  expected = run_composed(PROGRAMS[0], batch, method)
  count, _ = kl_cov_selection(expected[0])
  assert count == int(batch.loss_mask.sum() * COMMON_OPTIONS['kl_cov_fraction'])
  order = np.random.default_rng(2).permutation(SEQUENCES)
  packed = pack_rows(batch, length=WIDTH, count=SEQUENCES)
  for program, rows in (
    (PROGRAMS[2], batch),
    (PROGRAMS[0], packed),
    (PROGRAMS[0], jax.tree.map(lambda leaf: leaf[order], batch)),
  ):
    actual = run_composed(program, rows, method)
    assert_same_update(actual, expected)
    assert kl_cov_selection(actual[0]) == kl_cov_selection(expected[0])


def test_composed_methods_change_the_gradient():
  unedited = gradients(
    run_composed(PROGRAMS[0], off_policy_batch(), 'losses alone')[0]
  )
  scale = max(np.abs(leaf).max() for leaf in unedited)
  for method in [*COMPOSED_METHODS][1:]:
    edited = gradients(run_composed(PROGRAMS[0], off_policy_batch(), method)[0])
    assert largest_change(unedited, edited) > 1e-3 * scale, method


@pytest.mark.slow
@pytest.mark.parametrize('method', COMPOSED_METHODS)
@pytest.mark.parametrize(
  'disabled', ['clip_cov_fraction', 'kl_cov_fraction', 'target_entropy', 'all']
)
def test_every_mesh_and_composition_gives_the_same_update(method, disabled):
  zeros = {
    'clip_cov_fraction': 0.0,
    'kl_cov_fraction': 0.0,
    'kl_cov_coefficient': 0.0,
    'target_entropy': 0.0,
  }
  changes = zeros if disabled == 'all' else {disabled: 0.0}
  packed = pack_rows(off_policy_batch(), length=WIDTH, count=SEQUENCES)
  expected = run_composed(PROGRAMS[0], off_policy_batch(), method, **changes)
  for program in PROGRAMS:
    for rows in (off_policy_batch(), packed):
      actual = run_composed(program, rows, method, **changes)
      assert_same_update(actual, expected)
      assert kl_cov_selection(actual[0]) == kl_cov_selection(expected[0])


def unlikeliness_advantages(rewards, groups):
  """Advantages of rewards that are scaled down for likely responses."""
  logprobs = -1 - jnp.cos(7.0 * rewards + 13.0 * groups)
  scaled = covrl.advantages.unlikeliness(rewards, logprobs, groups)
  return covrl.advantages.group_relative(scaled, groups)


@pytest.mark.parametrize(
  'estimator',
  [
    covrl.advantages.max_likelihood,
    functools.partial(covrl.advantages.max_likelihood, order=0.75),
    covrl.advantages.quantile_relative,
    functools.partial(covrl.advantages.pass_at_k, k=3),
    unlikeliness_advantages,
  ],
)
def test_advantages_do_not_depend_on_the_order_of_rows_or_the_mesh(estimator):
  """They are computed from the rewards of whole responses."""
  rng = np.random.default_rng(3)
  groups = np.repeat(np.arange(SEQUENCES // 8), 8)
  rewards = rng.integers(0, 2, SEQUENCES).astype(np.float32)
  order = rng.permutation(SEQUENCES)
  estimate = jax.jit(estimator)
  advantages = np.asarray(estimate(rewards, groups))
  permuted = estimate(rewards[order], groups[order])
  np.testing.assert_array_equal(advantages[order], permuted)
  assert np.isfinite(advantages).all()
  assert advantages.std() > 0.1
  sharded = sharding.shard_batch((rewards, groups), sharding.make_mesh((4, 2)))
  np.testing.assert_allclose(estimate(*sharded), advantages, rtol=1e-6)


@pytest.mark.parametrize(
  'method', ['clip_cov and kl_cov with bonus', 'clip_cov']
)
def test_updates_do_not_depend_on_the_order_of_rows(method):
  order = np.random.default_rng(2).permutation(SEQUENCES)
  shuffled = jax.tree.map(lambda leaf: leaf[order], padded_batch())
  options = METHODS[method]
  for shape, micro_batches in (PROGRAMS[0], PROGRAMS[2]):
    assert_same_update(
      run(shape, micro_batches, shuffled, **options),
      run(*PROGRAMS[0], padded_batch(), **options),
    )


def test_updates_do_not_depend_on_packing():
  packed = pack_rows(padded_batch(), length=WIDTH, count=SEQUENCES)
  assert packed.segment_ids.max() > 2
  for method in ('clip_cov and kl_cov with bonus', 'clip_cov'):
    assert_same_update(
      run(*PROGRAMS[0], packed, **METHODS[method]),
      run(*PROGRAMS[0], padded_batch(), **METHODS[method]),
    )


def test_current_statistics_select_equally_in_one_and_two_micro_batches():
  one_micro_batch, two_micro_batches = (
    run(
      shape, count, padded_batch(), chain='kl_cov_current', **METHODS['kl_cov']
    )
    for shape, count in (PROGRAMS[0], PROGRAMS[1])
  )
  assert kl_cov_selection(one_micro_batch[0])[0] > 0
  assert_same_update(two_micro_batches, one_micro_batch, rtol=1e-6)
  assert kl_cov_selection(two_micro_batches[0]) == kl_cov_selection(
    one_micro_batch[0]
  )
  by_old_stats = run(*PROGRAMS[0], padded_batch(), **METHODS['kl_cov'])
  assert (
    kl_cov_selection(one_micro_batch[0])[1]
    != kl_cov_selection(by_old_stats[0])[1]
  )
  # No option of the step names the source: it follows from the token chain.
  rows = padded_batch()
  stats = padded_batch_stats(parameters())
  chosen = covrl.selectors.top_score(0.04, selection_source='current')(
    stats,
    advantages=jnp.asarray(rows.advantages),
    mask=jnp.asarray(rows.loss_mask),
    sequence_ids=jnp.asarray(rows.sequence_ids),
    positions=jnp.asarray(rows.positions),
  )
  expected = fingerprint_of(chosen.mask, rows.sequence_ids, rows.positions)
  assert kl_cov_selection(one_micro_batch[0])[1] == int(expected)


@pytest.mark.parametrize('micro_batches', [1, 8])
def test_first_update_has_ratio_one_and_no_penalty(micro_batches):
  without_penalty = run((8,), micro_batches, padded_batch(), first=True)
  state, metrics = run(
    (8,), micro_batches, padded_batch(), first=True, **METHODS['kl_cov']
  )
  assert kl_cov_selection(state)[0] > 0
  for name in ('log_ratio', 'log_ratio_abs', 'log_ratio_max', 'clip_fraction'):
    assert metrics[name] == 0.0, name
  assert metrics['penalty_share'] == 0.0
  assert_same_bits(gradients(state), gradients(without_penalty[0]))
  # The first update measures the error of the scoring program, for the dead zone.
  assert state.last_update.log_ratio_noise > 0.1
  later = run((8,), micro_batches, padded_batch(), **METHODS['kl_cov'])
  assert later[1]['log_ratio_abs'] > 0.01
  assert later[1]['penalty_share'] > 0.01
  assert later[0].last_update.log_ratio_noise == np.float32(1e-6)


@pytest.mark.parametrize('micro_batches', [1, 2])
def test_the_only_update_of_a_rollout_needs_no_scores(micro_batches):
  batch, state = (
    padded_batch(),
    fresh_state(
      'kl_cov_and_bonus', kl_cov_fraction=0.3, kl_cov_coefficient=1.0, bonus=0.1
    ),
  )
  scored_batch = with_old_stats(batch, score(parameters(), batch))
  expected, metrics = update(
    (8,), 1, scored_batch, state, first=True, chain='kl_cov_and_bonus'
  )
  unknown = jnp.full_like(batch.old_logprobs, jnp.nan)
  moments = TokenMoments(
    square=unknown, square_log=unknown, square_log_square=unknown
  )
  unscored_batch = dataclasses.replace(
    batch, old_logprobs=unknown, old_entropy=unknown, old_moments=moments
  )
  updated, unscored_metrics = update(
    (8,),
    micro_batches,
    unscored_batch,
    state,
    chain='kl_cov_and_bonus',
    has_old_stats=False,
  )
  for actual_leaf, expected_leaf in zip(
    gradients(updated), gradients(expected), strict=True
  ):
    np.testing.assert_allclose(
      actual_leaf,
      expected_leaf,
      rtol=1e-5,
      atol=1e-5 * np.abs(expected_leaf).max(),
    )
  mask = batch.loss_mask
  ratio = (scored_batch.old_logprobs - batch.sampler_logprobs)[mask]
  assert unscored_metrics['selected'] == metrics['selected'] > 0
  np.testing.assert_allclose(
    [
      unscored_metrics['sampler_gap'],
      unscored_metrics['sampler_gap_max'],
      unscored_metrics['rollout_entropy'],
      unscored_metrics['importance_weight/0.5'],
    ],
    [
      np.abs(ratio).mean(),
      np.abs(ratio).max(),
      scored_batch.old_entropy[mask].mean(),
      np.exp(np.quantile(ratio, 0.5, method='inverted_cdf')),
    ],
    rtol=1e-4,
  )


def test_logs_entropy_change_by_earlier_updates():
  rows = padded_batch()
  _, metrics = run((8,), 1, rows, **METHODS['kl_cov'])
  raised = dataclasses.replace(rows, old_entropy=rows.old_entropy + 0.1)
  _, raised_metrics = run((8,), 1, raised, **METHODS['kl_cov'])
  change = (
    metrics['entropy_change_since_rollout']
    - raised_metrics['entropy_change_since_rollout']
  )
  assert change == pytest.approx(0.1, rel=1e-4)
  _, first_metrics = run((8,), 1, raised, first=True, **METHODS['kl_cov'])
  assert first_metrics['entropy_change_since_rollout'] == 0


@pytest.mark.parametrize('micro_batches', [1, 8])
def test_the_chains_advance_once_per_update(micro_batches):
  state, _ = run(
    (8,),
    micro_batches,
    padded_batch(),
    **METHODS['clip_cov and kl_cov with bonus'],
  )
  clip_cov, kl_cov, *_ = state.token_state.inner_state
  assert state.token_state.count == clip_cov.updates == kl_cov.updates == 1
  assert optax.tree.get(state.opt_state, 'count') == 1
  assert state.step == 6


def test_rows_are_split_with_a_stride_and_joined_again():
  rows = np.arange(12).reshape(6, 2)
  micro_batches = split_rows({'rows': rows, 'scalar': np.asarray(7)}, 3)
  assert micro_batches['rows'][0].tolist() == [[0, 1], [6, 7]]
  assert micro_batches['scalar'].tolist() == [7, 7, 7]
  np.testing.assert_array_equal(join_rows(micro_batches['rows']), rows)
