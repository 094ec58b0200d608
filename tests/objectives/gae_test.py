# SPDX-License-Identifier: Apache-2.0
"""Generalised advantage estimates equal direct sums, for any mask and decay."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from covrl.objectives import gae, length_adaptive_decay, whiten
from covrl.parallel import sharding

SHAPE = (3, 6)


@jax.jit
def estimate(rewards, values, mask, discount, decay, critic_decay):
  return gae(
    rewards,
    values,
    mask,
    discount=discount,
    trace_decay=decay,
    critic_trace_decay=critic_decay,
    whiten=False,
  )


def direct_sums(rewards, values, mask, discount, decay):
  """Σ_k (γλ)^k δ_{t+k} over the tokens on the mask, in float64."""
  sums = np.zeros(mask.shape)
  for row, is_on_mask in enumerate(mask):
    columns = np.flatnonzero(is_on_mask)
    r, v = rewards[row, columns], np.append(values[row, columns], 0.0)
    for t in range(len(columns)):
      for k in range(t, len(columns)):
        error = r[k] + discount * v[k + 1] - v[k]
        sums[row, columns[t]] += (discount * decay[row]) ** (k - t) * error
  return sums


numbers = st.floats(-4, 4, width=32)
unit = st.floats(0, 1, width=32)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  hnp.arrays(np.float32, SHAPE, elements=numbers),
  hnp.arrays(np.float32, SHAPE, elements=numbers),
  hnp.arrays(bool, SHAPE),
  unit,
  hnp.arrays(np.float32, SHAPE[:1], elements=unit),
  unit,
)
def test_equals_direct_sums(
  rewards, values, mask, discount, decay, critic_decay
):
  advantages, returns = estimate(
    np.where(mask, rewards, np.nan),
    np.where(mask, values, np.inf),
    mask,
    discount,
    decay,
    critic_decay,
  )
  expected = direct_sums(rewards, values, mask, discount, decay)
  np.testing.assert_allclose(advantages, expected, atol=2e-4)
  critic_advantages = direct_sums(
    rewards, values, mask, discount, np.full(SHAPE[0], critic_decay)
  )
  expected = np.where(mask, critic_advantages + values, 0)
  np.testing.assert_allclose(returns, expected, atol=2e-4)


def test_the_defaults_are_returns_minus_values():
  rewards = jnp.array([[0.0, 0.5, 2.0]])
  values, mask = jnp.array([[0.5, 1.0, 1.5]]), jnp.ones((1, 3), bool)
  advantages, returns = gae(rewards, values, mask, whiten=False)
  np.testing.assert_allclose(returns, [[2.5, 2.5, 2.0]])
  np.testing.assert_allclose(advantages, [[2.0, 1.5, 0.5]])


def test_actor_and_critic_may_have_different_decays():
  """γ = 1, λ = 0 for the actor and 1 for the critic, an observation between."""
  rewards = jnp.array([[0.0, 9.0, 0.0, 1.0]])
  values = jnp.array([[0.2, 9.0, 0.6, 0.7]])
  mask = jnp.array([[True, False, True, True]])
  advantages, returns = gae(
    rewards,
    values,
    mask,
    trace_decay=0.0,
    critic_trace_decay=1.0,
    whiten=False,
  )
  np.testing.assert_allclose(advantages, [[0.4, 0, 0.1, 0.3]], rtol=1e-6)
  np.testing.assert_allclose(returns, [[1, 0, 1, 1]], rtol=1e-6)


def test_returns_are_those_of_unwhitened_advantages():
  rng = np.random.default_rng(0)
  rewards, values = rng.normal(size=(2, 4, 5)).astype(np.float32)
  rewards, values = jnp.asarray(rewards), jnp.asarray(values)
  mask = jnp.asarray(rng.random((4, 5)) < 0.7)
  unwhitened, expected = estimate(rewards, values, mask, 1.0, 1.0, 1.0)
  whitened, returns = jax.jit(gae)(rewards, values, mask)
  np.testing.assert_array_equal(returns, expected)
  np.testing.assert_array_equal(whitened, jax.jit(whiten)(unwhitened, mask))


def test_decay_adapts_to_length():
  lengths = np.array([0, 10, 20, 40, 400])
  mask = np.arange(400) < lengths[:, None]
  decay = length_adaptive_decay(jnp.asarray(mask), 0.05)
  np.testing.assert_allclose(decay, [0, 0, 0, 0.5, 0.95], atol=1e-6)


@pytest.mark.parametrize('shape', [(8,), (2, 4), (1, 2, 2, 1, 2)])
def test_whitening_has_the_same_bits_on_any_mesh_and_in_any_order(shape):
  rng = np.random.default_rng(3)
  values = (10 ** rng.normal(0, 2, (16, 32))).astype(np.float32)
  mask = rng.random((16, 32)) < 0.6
  expected = np.asarray(jax.jit(whiten)(values, mask))
  mesh = sharding.make_mesh(shape)
  spec = PartitionSpec(('data', 'fsdp', 'expert'), 'context')
  sharded = jax.NamedSharding(mesh, spec)
  actual = jax.jit(whiten)(*jax.device_put((values, mask), sharded))
  np.testing.assert_array_equal(actual, expected)
  order = rng.permutation(16)
  shuffled = jax.jit(whiten)(values[order], mask[order])
  np.testing.assert_array_equal(shuffled, expected[order])
  whitened = expected[mask].astype(float)
  assert whitened.mean() == pytest.approx(0, abs=1e-6)
  assert whitened.std(ddof=1) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize('value', [0.1, 1.0, 1e6])
def test_equal_advantages_whiten_to_zero(value):
  mask = jnp.asarray(np.random.default_rng(0).random((8, 9)) < 0.5)
  assert not whiten(jnp.full((8, 9), value), mask).any()


def test_values_that_are_not_finite_are_never_hidden():
  mask = jnp.ones((2, 3), bool)
  for bad in (np.nan, np.inf):
    assert np.isnan(whiten(jnp.zeros((2, 3)).at[1, 1].set(bad), mask)).all()
    assert np.isnan(whiten(jnp.full((2, 3), bad), mask)).all()


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('options', 'sentence'),
  [
    ({'discount': 1.5}, r'discount must lie in \[0, 1\], got 1\.5'),
    ({'trace_decay': -0.5}, r'trace_decay must lie in \[0, 1\], got -0\.5'),
    ({'critic_trace_decay': 2.0}, r'critic_trace_decay must lie in \[0, 1\]'),
    (
      {'trace_decay': jnp.ones(4)},
      r'trace_decay must be \[S\] = \(2,\), got \(4,\)',
    ),
  ],
)
def test_refuses_decays_outside_their_range_or_shape(options, sentence):
  ones = jnp.ones((2, 3))
  with pytest.raises(ValueError, match=sentence):
    gae(ones, ones, ones > 0, **options)


def test_decay_refuses_a_coefficient_of_zero():
  with pytest.raises(ValueError, match='coefficient must be positive, got 0'):
    length_adaptive_decay(jnp.ones((1, 2), bool), 0.0)
