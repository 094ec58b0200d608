# SPDX-License-Identifier: Apache-2.0
"""Advantages by the success rate of a prompt: formulas, order, special groups."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives import (
  group_relative,
  max_likelihood,
  quantile_relative,
)

likelihood = jax.jit(max_likelihood)
quantiles = jax.jit(quantile_relative)


def binary_rewards(successes, size):
  return jnp.asarray([1.0] * successes + [0.0] * (size - successes))


@pytest.mark.parametrize('order', [0.0, 0.75, 1.0])
@pytest.mark.parametrize('successes', range(5))
def test_max_likelihood_equals_its_formula(successes, order):
  p = successes / 4
  actual = likelihood(
    binary_rewards(successes, 4), jnp.zeros(4, int), order=order
  )
  amplified = p**-order if p else 0.0
  expected = [(1 - p) * amplified] * successes + [-p * amplified] * (
    4 - successes
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_max_likelihood_is_the_gradient_of_the_log_of_the_success_rate():
  """Enumerated over all groups of n = 3: the gradient of −Σ_{k<n} (1 − p)^k/k."""
  p, size = 0.3, 3
  gradient = 0.0
  for successes in range(size + 1):
    probability = math.comb(size, successes) * p**successes
    probability *= (1 - p) ** (size - successes)
    advantages = likelihood(
      binary_rewards(successes, size), jnp.zeros(size, int)
    )
    # d log P(success)/dp = 1/p, d log P(failure)/dp = −1/(1 − p).
    scores = jnp.where(jnp.arange(size) < successes, 1 / p, -1 / (1 - p))
    gradient += probability * float(jnp.mean(advantages * scores))
  expected = sum((1 - p) ** (k - 1) for k in range(1, size))
  assert gradient == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('size', [4, 5, 8])
@pytest.mark.parametrize('quantile', [0.2, 0.4, 0.6])
def test_quantile_relative_switches_at_the_published_rate(size, quantile):
  for successes in range(1, size):
    rewards = binary_rewards(successes, size)
    actual = quantiles(rewards, jnp.zeros(size, int), quantile=quantile)
    rate = successes / size
    is_hard = rate <= 1 - quantile + 1e-9
    deviation = math.sqrt(rate * (1 - rate) * size / (size - 1))
    expected = (np.asarray(rewards) - (0 if is_hard else 1)) / deviation
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_quantile_relative_subtracts_the_median_of_real_valued_rewards():
  rewards = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
  actual = quantiles(jnp.asarray(rewards), jnp.zeros(5, int), quantile=0.5)
  expected = (rewards - np.sort(rewards)[2]) / (rewards.std(ddof=1) + 1e-6)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize('function', [max_likelihood, quantile_relative])
def test_groups_and_order_do_not_matter(function):
  rng = np.random.default_rng(0)
  rewards = jnp.asarray(rng.integers(0, 3, 24), jnp.float32)
  ids = jnp.asarray(rng.integers(0, 5, 24))
  function = jax.jit(function)
  advantages = function(rewards, ids)
  order = rng.permutation(24)
  np.testing.assert_allclose(
    function(rewards[order], ids[order]), advantages[order], rtol=1e-6
  )
  other_rewards = jnp.where(ids == 3, rewards, rewards + 1)
  np.testing.assert_allclose(
    function(other_rewards, ids)[ids == 3], advantages[ids == 3], rtol=1e-6
  )


@pytest.mark.parametrize('function', [max_likelihood, quantile_relative])
def test_groups_without_a_difference_get_zero_and_nan_rewards_give_nan(
  function,
):
  ids = jnp.array([0, 0, 1, 1, 2, 3, 3])
  rewards = jnp.array([2.0, 2.0, 0.0, 0.0, 5.0, jnp.nan, 1.0])
  actual = np.asarray(function(rewards, ids))
  # Equal rewards, no success and a response alone give 0; a NaN reward gives NaN.
  np.testing.assert_array_equal(actual[:5], 0)
  assert np.isnan(actual[5:]).all()


def test_negative_rewards_make_likelihood_advantages_nan():
  rewards, ids = jnp.array([-1.0, 0.5, 1.0, 0.0]), jnp.array([0, 0, 1, 1])
  actual = np.asarray(max_likelihood(rewards, ids))
  assert np.isnan(actual[:2]).all()
  np.testing.assert_array_equal(actual[2:], [1, -1])


def test_order_zero_is_group_relative_and_extreme_quantiles_bound_the_sign():
  rewards, ids = jnp.array([1.0, 0.0, 3.0]), jnp.zeros(3, int)
  np.testing.assert_allclose(
    max_likelihood(rewards, ids, order=0.0),
    group_relative(rewards, ids, scale=None),
    rtol=1e-6,
  )
  assert np.asarray(quantile_relative(rewards, ids, quantile=1.0)).max() == 0
  assert np.asarray(quantile_relative(rewards, ids, quantile=0.0)).min() == 0


def test_refuses_options_outside_their_range():
  for call, sentence in (
    (
      lambda x, i: max_likelihood(x, i, order=1.5),
      r'order must lie .*got 1\.5',
    ),
    (lambda x, i: quantile_relative(x, i, quantile=40), 'quantile must lie'),
    (lambda x, i: quantile_relative(x, i, eps=-1.0), 'eps must be'),
  ):
    with pytest.raises(ValueError, match=sentence):
      call(jnp.ones(2), jnp.zeros(2, int))
