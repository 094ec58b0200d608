# SPDX-License-Identifier: Apache-2.0
"""Importance weights, CE-GPPO and the penalty to a reference policy, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from entropy.drifted_batch import LENGTH, ROWS, as_numpy, cotangents, make_batch

import covrl
from covrl.entropy import update_signal
from covrl.types import TokenStats


@pytest.fixture
def batch():
  return make_batch()


def importance_weights(batch, **options):
  """The weights that the chain multiplies a gradient of ones by."""
  stats, context = batch
  token_tx = covrl.truncated_importance_weights(**options)

  @jax.jit
  def edit(stats, context):
    signal = jax.tree.map(jnp.ones_like, stats)
    return update_signal(
      token_tx, signal, token_tx.init(TokenStats.template()), stats, **context
    )[0]

  after = edit(stats, context)
  np.testing.assert_array_equal(after.logprobs, after.entropy)
  return np.asarray(after.logprobs)


def test_importance_weights_of_tokens_equal_their_formula(batch):
  arrays = as_numpy(batch)
  mask = arrays['mask']
  ratio = np.exp(arrays['old_logprobs'] - arrays['sampler_logprobs'])
  assert ratio[mask].max() > 1.3
  assert ratio[mask].min() < 0.7
  weights = importance_weights(batch, cap=1.3)
  expected = np.minimum(ratio, 1.3)
  np.testing.assert_allclose(weights[mask], expected[mask], rtol=1e-5)
  weights = importance_weights(batch, cap=1.3, floor=0.7, out_of_range='mask')
  expected = np.where((ratio > 1.3) | (ratio < 0.7), 0, ratio)
  np.testing.assert_allclose(weights[mask], expected[mask], rtol=1e-5)


def test_importance_weights_of_packed_sequences_equal_their_formula(batch):
  stats, context = batch
  arrays = as_numpy(batch)
  mask = arrays['mask']
  ids = np.where(np.arange(LENGTH) < 5, 1, 2) * np.ones((ROWS, 1), int)
  context = context | {'segment_ids': jnp.asarray(ids)}
  log_ratio = arrays['old_logprobs'] - arrays['sampler_logprobs']
  ratio = np.ones(mask.shape)
  for row in range(ROWS):
    for segment in (1, 2):
      in_segment = ids[row] == segment
      ratio[row, in_segment] = np.exp(
        log_ratio[row, in_segment & mask[row]].sum()
      )
  weights = importance_weights((stats, context), level='sequence')
  expected = np.minimum(ratio, 2.0)
  np.testing.assert_allclose(weights[mask], expected[mask], rtol=1e-5)
  # Without segments a row is one sequence.
  del context['segment_ids']
  weights = importance_weights((stats, context), level='sequence', cap=1e9)
  whole_rows = np.exp(log_ratio.sum(1, keepdims=True)) * np.ones(mask.shape)
  np.testing.assert_allclose(weights[mask], whole_rows[mask], rtol=1e-5)


def test_ce_gppo_is_the_gradient_of_its_loss(batch):
  stats, context = batch
  options = {'low': 0.1, 'high': 0.15}
  token_tx = covrl.ce_gppo(0.5, 0.9, **options)
  ppo = functools.partial(covrl.clipped_surrogate, **options)
  mask = context['mask']

  def published(logprobs):
    a = context['advantages']
    log_ratio = jnp.where(mask, logprobs - context['old_logprobs'], 0)
    ratio = jnp.exp(log_ratio)
    ratio_gradient = ratio / jax.lax.stop_gradient(ratio)
    is_below = (ratio < 1 - 0.1) & (a < 0)
    is_above = (ratio > 1 + 0.15) & (a > 0)
    assert is_below.shape == is_above.shape
    losses = jnp.where(is_below, -0.5 * 0.9 * ratio_gradient * a, -ratio * a)
    losses = jnp.where(is_above, -0.9 * 1.15 * ratio_gradient * a, losses)
    return jnp.sum(context['weights'] * losses), is_below.sum() * is_above.sum()

  expected, num_clipped = jax.jit(jax.grad(published, has_aux=True))(
    stats.logprobs
  )
  assert int(num_clipped) > 0
  # The loss may clip these tokens or not.
  for loss in (ppo, covrl.policy_gradient):
    before, after = cotangents(token_tx, loss, stats, context)
    np.testing.assert_allclose(after.logprobs, expected, rtol=2e-5, atol=1e-8)
    assert (before.logprobs != after.logprobs).any()


def test_kl_to_reference_is_the_gradient_of_its_estimator(batch):
  stats, context = batch
  mask = context['mask']

  def penalty(logprobs):
    r = jnp.where(mask, logprobs - context['ref_logprobs'], 0)
    return 0.04 * jnp.sum(context['weights'] * (jnp.exp(-r) + r - 1))

  expected = jax.grad(penalty)(stats.logprobs)
  token_tx = covrl.kl_to_reference(0.04)
  before, after = cotangents(token_tx, covrl.policy_gradient, stats, context)
  np.testing.assert_allclose(
    after.logprobs - before.logprobs, expected, rtol=1e-3, atol=1e-7
  )
