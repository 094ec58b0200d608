# SPDX-License-Identifier: Apache-2.0
"""Response-level advantages: published values, formulas, invariances."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.objectives import (
  group_relative,
  leave_one_out,
  opo,
  pass_at_k,
  unlikeliness,
)

jit_group_relative = jax.jit(
  group_relative, static_argnames=('scale', 'singleton')
)
jit_leave_one_out = jax.jit(leave_one_out, static_argnames='singleton')


def groups_of(case, dtype):
  """Rewards and group ids of a case; each padding row is a group."""
  rewards = jnp.sum(case.input('token_level_rewards', dtype), axis=1)
  count = len(case.arrays['in/index'])
  ids = np.arange(100, 116)
  ids[:count] = case.arrays['in/index']
  return rewards, jnp.asarray(ids), count


FUNCTIONS = {
  'grpo': jit_group_relative,
  'grpo_vectorized': jit_group_relative,
  'rloo': jit_leave_one_out,
  'rloo_vectorized': functools.partial(jit_leave_one_out, singleton='zero'),
}


def check_published(golden, function, dtype, tolerance):
  for case in golden(function):
    rewards, ids, count = groups_of(case, dtype)
    if function == 'opo':
      lengths = jnp.sum(case.input('response_mask'), axis=1)
      actual = jax.jit(opo)(rewards, ids, lengths)
    else:
      actual = FUNCTIONS[function](rewards, ids)
    assert actual.dtype == dtype
    mask = np.asarray(case.input('response_mask'))
    expected = case.expected('advantages')
    np.testing.assert_allclose(
      (np.asarray(actual)[:, None] * mask)[:count],
      expected[:count],
      rtol=tolerance,
      atol=tolerance * max(1.0, float(np.abs(expected).max())),
      err_msg=case.name,
    )


@pytest.mark.parametrize('function', [*FUNCTIONS, 'opo'])
def test_equals_published_advantages_in_float32(golden, function):
  check_published(golden, function, jnp.float32, 1e-6)


@pytest.mark.parametrize('function', [*FUNCTIONS, 'opo'])
def test_equals_published_advantages_in_float64(golden, function, x64):
  # The published vectorised GRPO computes group moments in float32.
  tolerance = 1e-7 if function == 'grpo_vectorized' else 1e-12
  check_published(golden, function, jnp.float64, tolerance)


rewards_and_groups = st.lists(
  st.tuples(st.floats(-8, 8, width=16), st.sampled_from([-3, 0, 7, 2**31 - 1])),
  min_size=6,
  max_size=6,
)


def numpy_group_relative(rewards, ids):
  result = np.zeros(len(rewards))
  for i, (reward, group) in enumerate(zip(rewards, ids, strict=True)):
    members = rewards[ids == group]
    if len(members) == 1:
      result[i] = reward / (1 + 1e-6)
    else:
      result[i] = (reward - members.mean()) / (members.std(ddof=1) + 1e-6)
  return result


@given(rewards_and_groups, st.permutations(range(6)))
@settings(max_examples=40, deadline=None)
def test_group_relative_equals_numpy_in_any_order(pairs, order):
  rewards = np.array([r for r, _ in pairs], np.float32)
  ids = np.array([g for _, g in pairs], np.int32)
  actual = np.asarray(
    jit_group_relative(jnp.asarray(rewards), jnp.asarray(ids))
  )
  expected = numpy_group_relative(rewards.astype(np.float64), ids)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
  order = np.array(order)
  permuted = jit_group_relative(
    jnp.asarray(rewards[order]), jnp.asarray(ids[order])
  )
  np.testing.assert_allclose(permuted, actual[order], rtol=1e-4, atol=1e-4)


@given(rewards_and_groups)
@settings(max_examples=40, deadline=None)
def test_leave_one_out_subtracts_the_mean_of_the_others(pairs):
  rewards = np.array([r for r, _ in pairs], np.float32)
  ids = np.array([g for _, g in pairs], np.int32)
  actual = jit_leave_one_out(jnp.asarray(rewards), jnp.asarray(ids))
  for i in range(6):
    other_indices = np.flatnonzero((ids == ids[i]) & (np.arange(6) != i))
    baseline = rewards[other_indices].mean() if len(other_indices) else 0
    assert actual[i] == pytest.approx(rewards[i] - baseline, abs=1e-5)


@pytest.mark.parametrize('reward', [0.1, 1 / 3, 1e6 / 7, -2.7e-5])
@pytest.mark.parametrize('size', [2, 3, 7])
def test_equal_rewards_give_exactly_zero(reward, size):
  rewards, ids = jnp.full(size, reward), jnp.zeros(size, jnp.int32)
  assert not jit_group_relative(rewards, ids).any()
  assert not jit_group_relative(rewards, ids, scale=None).any()
  assert not jit_leave_one_out(rewards, ids).any()
  assert not opo(rewards, ids, jnp.arange(size)).any()


def test_dr_grpo_subtracts_the_mean_only():
  rewards, ids = jnp.array([1.0, 4.0, 3.0, 0.0]), jnp.array([1, 2, 2, 1])
  np.testing.assert_allclose(
    jit_group_relative(rewards, ids, scale=None), [0.5, 0.5, -0.5, -0.5]
  )


def test_a_response_alone_in_its_group_gets_its_reward_or_zero():
  rewards, ids = jnp.array([0.5, 3.0, 1.0]), jnp.array([1, 2, 1])
  assert jit_group_relative(rewards, ids)[1] == pytest.approx(3 / (1 + 1e-6))
  for function in (jit_group_relative, jit_leave_one_out):
    assert function(rewards, ids, singleton='zero')[1] == 0
  assert jit_leave_one_out(rewards, ids)[1] == 3


def test_opo_without_tokens_is_the_reward():
  rewards = jnp.array([1.0, 2.0])
  actual = opo(rewards, jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32))
  np.testing.assert_array_equal(actual, rewards)


def numpy_pass_at_k(success, k):
  """Pass@k advantages by enumeration of all subsets."""
  subsets = list(itertools.combinations(range(len(success)), k))
  scores = np.array([float(any(success[i] for i in s)) for s in subsets])
  deviation = scores.std()
  if deviation == 0:
    return np.zeros(len(success))
  return np.array(
    [
      np.mean(
        [
          (score - scores.mean()) / deviation
          for s, score in zip(subsets, scores, strict=True)
          if i in s
        ]
      )
      for i in range(len(success))
    ]
  )


@pytest.mark.parametrize('k', [1, 2, 3, 5])
@pytest.mark.parametrize('successes', range(6))
def test_pass_at_k_equals_enumeration_of_all_subsets(k, successes):
  success = np.arange(5) < successes
  # An interleaved second group, and one smaller than k, change nothing.
  rewards = jnp.asarray(np.stack([success, 1 - success], 1).ravel(), float)
  ids = jnp.asarray([0, 1] * 4 + [0, 2], jnp.int32)
  actual = jax.jit(pass_at_k, static_argnames='k')(rewards, ids, k=k)
  np.testing.assert_allclose(
    actual[::2], numpy_pass_at_k(success, k), rtol=1e-5, atol=1e-6
  )
  assert actual[9] == 0


def test_pass_at_one_is_the_whitened_reward():
  rewards, ids = jnp.array([1.0, 0, 0, 1, 0]), jnp.zeros(5, jnp.int32)
  expected = (rewards - 0.4) / jnp.std(rewards)
  np.testing.assert_allclose(pass_at_k(rewards, ids, k=1), expected, rtol=1e-6)


def test_pass_at_k_refuses_k_below_one():
  with pytest.raises(ValueError, match='k must be at least 1, got 0'):
    pass_at_k(jnp.zeros(2), jnp.zeros(2, jnp.int32), k=0)


def test_unlikeliness_lowers_rewards_by_rank_of_likelihood():
  rewards = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
  logprobs = jnp.array([-1.0, -3.0, -9.0, -2.0, -0.5])
  ids = jnp.array([4, 4, 4, 4, 8])
  actual = jax.jit(unlikeliness)(rewards, logprobs, ids)
  np.testing.assert_allclose(
    actual, [1 - 0.25 * 3 / 4, 1 - 0.25 / 4, 0, 1 - 0.25 * 2 / 4, 1]
  )


def test_narrow_rewards_are_widened():
  rewards, ids = jnp.ones(3, jnp.bfloat16), jnp.zeros(3, jnp.int32)
  assert jit_group_relative(rewards, ids).dtype == jnp.float32
  assert pass_at_k(rewards, ids, k=1).dtype == jnp.float32
