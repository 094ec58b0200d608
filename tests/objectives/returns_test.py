# SPDX-License-Identifier: Apache-2.0
"""Token-level returns and advantages: published values and recursions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives import (
  discounted_returns,
  gae,
  reinforce_plus_plus,
  reinforce_plus_plus_baseline,
  remax,
  whiten,
)


@functools.partial(jax.jit, static_argnums=0)
def compute(function, inputs):
  mask, rewards = inputs['mask'], inputs['rewards']
  if function == 'reinforce_plus_plus':
    discount = inputs['discount']
    return {
      'advantages': reinforce_plus_plus(rewards, mask, discount=discount),
      'returns': discounted_returns(rewards, mask, discount=discount),
    }
  if function == 'reinforce_plus_plus_baseline':
    totals = jnp.sum(rewards, axis=1)
    return {
      'advantages': reinforce_plus_plus_baseline(totals, inputs['ids'], mask)
    }
  if function == 'remax':
    return {'advantages': remax(rewards, inputs['baselines'], mask)}
  advantages, returns = gae(
    rewards,
    inputs['values'],
    mask,
    discount=inputs['discount'],
    trace_decay=inputs['trace_decay'],
  )
  return {'advantages': advantages, 'returns': returns}


def inputs_of(case, dtype):
  ids = np.arange(100, 116)
  ids[: case.shape[0]] = case.arrays['in/index']
  inputs = {
    'mask': case.input('response_mask'),
    'rewards': case.input('token_level_rewards', dtype),
    'ids': jnp.asarray(ids),
    'discount': jnp.asarray(case.options['gamma'], dtype),
    'trace_decay': jnp.asarray(case.options['lam'], dtype),
  }
  for name, source in (('values', 'values'), ('baselines', 'reward_baselines')):
    if source in case:
      inputs[name] = case.input(source, dtype)
  return inputs


FUNCTIONS = (
  'reinforce_plus_plus',
  'reinforce_plus_plus_baseline',
  'remax',
  'gae',
)


def check_published(golden, function, dtype, tolerance):
  for case in golden(function):
    inputs = inputs_of(case, dtype)
    mask = np.asarray(inputs['mask'])
    for name, actual in compute(function, inputs).items():
      assert actual.dtype == dtype
      expected = np.where(mask, case.expected(name), 0)
      np.testing.assert_allclose(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance * max(1.0, float(np.abs(expected).max())),
        err_msg=f'{case.name} {name}',
      )


@pytest.mark.parametrize('function', FUNCTIONS)
def test_equals_published_returns_in_float32(golden, function):
  check_published(golden, function, jnp.float32, 2e-6)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_equals_published_returns_in_float64(golden, function, x64):
  check_published(golden, function, jnp.float64, 1e-12)


def test_gae_skips_tokens_off_the_mask(x64):
  rng = np.random.default_rng(0)
  rewards, values = rng.normal(size=(2, 1, 7))
  mask = np.array([[False, True, True, False, False, True, False]])
  is_on_mask = mask[0]
  options = {'discount': 0.9, 'trace_decay': 0.8, 'whiten': False}
  advantages, returns = gae(
    *map(jnp.asarray, (rewards, values, mask)), **options
  )
  without_gaps = (
    rewards[:, is_on_mask],
    values[:, is_on_mask],
    mask[:, is_on_mask],
  )
  expected, expected_returns = gae(*map(jnp.asarray, without_gaps), **options)
  np.testing.assert_allclose(advantages[:, is_on_mask], expected, rtol=1e-12)
  np.testing.assert_allclose(
    returns[:, is_on_mask], expected_returns, rtol=1e-12
  )
  assert not np.asarray(advantages)[:, ~is_on_mask].any()
  delta = rewards[0, 5] - values[0, 5]
  assert advantages[0, 5] == pytest.approx(delta)
  previous_delta = rewards[0, 2] + 0.9 * values[0, 5] - values[0, 2]
  assert advantages[0, 2] == pytest.approx(previous_delta + 0.72 * delta)


def test_gae_with_trace_decay_one_is_return_minus_value():
  rewards, values = jnp.array([[0.0, 0.0, 2.0]]), jnp.array([[0.5, 1.0, 1.5]])
  mask = jnp.ones((1, 3), bool)
  advantages, returns = gae(rewards, values, mask, trace_decay=1, whiten=False)
  np.testing.assert_allclose(advantages, 2 - values)
  np.testing.assert_allclose(returns, [[2, 2, 2]])


def test_remax_is_the_reward_to_go_minus_the_baseline():
  rewards = jnp.array([[1.0, 2.0, 4.0, jnp.nan]])
  mask = jnp.array([[True, True, True, False]])
  np.testing.assert_allclose(
    remax(rewards, jnp.array([3.0]), mask), [[4, 3, 1, 0]]
  )


def test_whitened_values_have_mean_zero_and_variance_one():
  rng = np.random.default_rng(1)
  values, mask = rng.normal(size=(4, 9)) * 3 + 2, rng.random((4, 9)) < 0.5
  poisoned = jnp.asarray(np.where(mask, values, np.nan))
  white = np.asarray(whiten(poisoned, jnp.asarray(mask)))
  assert abs(white[mask].mean()) < 1e-6
  assert white[mask].std(ddof=1) == pytest.approx(1, rel=1e-5)
  assert not white[~mask].any()


@pytest.mark.parametrize('count', [0, 1])
def test_whiten_of_at_most_one_token_is_zero(count):
  mask = jnp.arange(3)[None] < count
  assert not whiten(jnp.full((1, 3), 0.7), mask).any()
