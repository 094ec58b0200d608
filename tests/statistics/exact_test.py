# SPDX-License-Identifier: Apache-2.0
"""Exact sums: correct, and bitwise equal in every order and sharding."""

import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from covrl.entropy import exact_mean, exact_sum
from covrl.parallel import sharding

jit_sum = jax.jit(exact_sum)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  values=hnp.arrays(
    np.float32,
    (4, 8),
    elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
  ),
  mask=hnp.arrays(bool, (4, 8)),
  seed=st.integers(0, 1000),
)
def test_sums_are_exact_and_have_the_same_bits_in_any_order(values, mask, seed):
  total = jit_sum(values, mask)
  order = np.random.default_rng(seed).permutation(values.size)
  shuffled = jit_sum(
    values.reshape(-1)[order].reshape(4, 8),
    mask.reshape(-1)[order].reshape(4, 8),
  )
  assert np.asarray(total).tobytes() == np.asarray(shuffled).tobytes()
  exact = math.fsum(values[mask].astype(float))
  largest = float(np.max(np.abs(values[mask]), initial=0))
  # Rounded like the exact sum, but for summands below 2⁻⁴⁸ of the largest.
  assert abs(float(total) - exact) <= 2**-23 * abs(exact) + 2**-42 * largest


@pytest.mark.parametrize('shape', [(8,), (4, 2), (2, 2, 2)])
def test_mean_is_bitwise_equal_on_every_mesh(shape):
  rng = np.random.default_rng(0)
  values = (
    rng.normal(size=(64, 33)) * 10 ** rng.uniform(-3, 3, (64, 33))
  ).astype(np.float32)
  mask = rng.random((64, 33)) < 0.7
  mesh = sharding.make_mesh(shape)
  placed = sharding.shard_batch((values, mask), mesh)
  expected = np.asarray(jax.jit(exact_mean)(values, mask)).tobytes()
  assert np.asarray(jax.jit(exact_mean)(*placed)).tobytes() == expected
  replicated = jax.NamedSharding(mesh, PartitionSpec(None, None))
  whole = jax.device_put((values, mask), replicated)
  assert np.asarray(jax.jit(exact_mean)(*whole)).tobytes() == expected


def test_rounds_like_float64():
  rng = np.random.default_rng(1)
  for size in (1, 7, 4096, 100_000):
    values = rng.normal(size=size).astype(np.float32) - 0.3
    exact = math.fsum(values.astype(float))
    actual = float(jit_sum(values, np.ones(size, bool)))
    assert abs(actual - exact) <= 1.2e-7 * abs(exact)


def test_empty_sums_are_zero_and_cancelling_sums_are_exact():
  none = jnp.zeros((2, 2), bool)
  assert exact_sum(jnp.ones((2, 2)), none) == 0
  assert jnp.isnan(exact_mean(jnp.ones((2, 2)), none))
  big = jnp.array([[3e38, 1.0, -3e38, 2.0]])
  assert (
    exact_sum(big, jnp.ones((1, 4), bool)) == 0
  )  # below 2⁻⁴⁸ of the largest
  near = jnp.array([[1e8, 1.0, -1e8, 2.0]])
  assert exact_sum(near, jnp.ones((1, 4), bool)) == 3


def test_float64_stays_wide(x64):
  values = jnp.array([1.0, 1e-12, -1.0])
  assert values.dtype == jnp.float64
  total = exact_sum(values, jnp.ones(3, bool))
  assert total.dtype == jnp.float64
  np.testing.assert_allclose(total, 1e-12, rtol=1e-9)
