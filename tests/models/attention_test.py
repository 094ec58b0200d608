# SPDX-License-Identifier: Apache-2.0
"""Attention against numpy loops, and rotary embeddings against complex numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.models import rope, tiny
from covrl.models.attention import grouped_query as attention
from covrl.models.rope import Rotation

attend = jax.jit(attention.attend)
rotate = jax.jit(rope.rotate)


def draw(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_rotation_is_multiplication_by_a_complex_number():
  x = draw(0, 2, 5, 3, 8)
  positions = jnp.array([[0, 1, 2, 3, 4], [7, 7, 0, 100, 31]])
  rates = 100.0 ** (-np.arange(4) / 4)
  rotations = np.exp(1j * np.asarray(positions)[..., None, None] * rates)
  expected = (np.asarray(x[..., :4]) + 1j * np.asarray(x[..., 4:])) * rotations
  actual = rotate(x, Rotation.of(positions, rope.base_frequencies(100.0, 8)))
  np.testing.assert_allclose(actual[..., :4], expected.real, atol=2e-5)
  np.testing.assert_allclose(actual[..., 4:], expected.imag, atol=2e-5)


def test_rotated_products_depend_on_distance_only():
  q, k = draw(0, 1, 1, 1, 16), draw(1, 1, 1, 1, 16)
  frequencies = rope.base_frequencies(10000.0, 16)

  def product(at_q, at_k):
    rotated = [
      rotate(x, Rotation.of(jnp.full((1, 1), at), frequencies))
      for x, at in ((q, at_q), (k, at_k))
    ]
    return float(np.sum(np.asarray(rotated[0]) * np.asarray(rotated[1])))

  assert product(5, 3) == pytest.approx(product(25, 23), abs=1e-5)
  assert product(5, 3) != pytest.approx(product(5, 4), abs=1e-3)


def test_attention_matches_a_loop_over_heads():
  batch, length, heads, kv_heads, slots, width = 2, 3, 6, 2, 5, 4
  q = np.asarray(draw(0, batch, length, heads, width))
  k = np.asarray(draw(1, batch, kv_heads, slots, width))
  v = np.asarray(draw(2, batch, kv_heads, slots, width))
  mask = np.random.default_rng(3).random((batch, length, slots)) < 0.6
  mask[:, :, 0] = True
  expected = np.zeros(q.shape)
  for b, t, h in np.ndindex(batch, length, heads):
    kv_head = h // (heads // kv_heads)
    visible = np.flatnonzero(mask[b, t])
    scores = k[b, kv_head, visible] @ q[b, t, h] / np.sqrt(width)
    weights = np.exp(scores - scores.max())
    expected[b, t, h] = weights @ v[b, kv_head, visible] / weights.sum()
  actual = attend(*map(jnp.asarray, (q, k, v, mask)))
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('length', [1, 5, 12, 70])
def test_blocks_of_queries_change_nothing(length, monkeypatch):
  monkeypatch.setattr(attention, '_MIN_BLOCK', 4)
  q = draw(0, 2, length, 4, 8)
  k, v = (draw(seed, 2, 2, length, 8) for seed in (1, 2))
  segments = jnp.array(
    [[1] * length, [1] * (length // 2) + [2] * (-(-length // 2))]
  )
  mask = jnp.tril(segments[:, :, None] == segments[:, None, :])

  def run(function):
    def loss(q, k, v):
      return jnp.sum(jnp.sin(function(q, k, v, mask, scale=0.5, cap=3.0)))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

  actual, expected = run(attention.attend_causal), run(attention.attend)
  for ours, theirs in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_blocks_leave_out_products_with_later_keys():
  q, kv = draw(0, 1, 512, 2, 8), draw(1, 1, 1, 512, 8)
  mask = jnp.tril(jnp.ones((1, 512, 512), bool))

  def flops(function):
    compiled = jax.jit(function).lower(q, kv, kv, mask).compile()
    return (compiled.cost_analysis() or {})['flops']

  assert flops(attention.attend_causal) < 0.6 * flops(attention.attend)


def test_query_without_allowed_keys_is_finite():
  q, kv = draw(0, 1, 1, 2, 4), draw(1, 1, 1, 3, 4)
  no_keys = jnp.zeros((1, 1, 3), bool)

  def loss(q):
    return jnp.sum(attend(q, kv, kv, no_keys) ** 2)

  value, gradient = jax.jit(jax.value_and_grad(loss))(q)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_softmax_is_float32_for_narrow_inputs():
  q, kv = draw(0, 1, 4, 2, 8), draw(1, 1, 1, 4, 8)
  mask = jnp.ones((1, 4, 4), bool)
  expected = attend(q, kv, kv, mask)
  q, kv = q.astype(jnp.bfloat16), kv.astype(jnp.bfloat16)
  actual = attend(q, kv, kv, mask)
  assert actual.dtype == jnp.bfloat16
  np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=0.03)


@pytest.mark.parametrize('window', [0, 3])
def test_attention_of_sequences_matches_that_with_a_mask(window):
  """Results and derivatives are equal, without NaN; no mask is in memory."""
  config = dataclasses.replace(
    tiny(16), num_heads=4, num_kv_heads=2, head_dim=8, windows=(window,) * 2
  )
  lengths = jnp.array([7, 0, 4])
  arrays = [draw(seed, 3, 7, heads, 8) for seed, heads in enumerate((4, 2, 2))]
  is_token = (jnp.arange(7) < lengths[:, None])[..., None, None]
  distance = jnp.arange(7)[:, None] - jnp.arange(7)
  mask = (distance >= 0) & (distance < (window or 7))
  mask = mask & is_token[:, None, :, 0, 0]

  def with_mask(q, k, v):
    attended = attention.attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)
    return jnp.where(is_token, attended, 0)

  def with_lengths(q, k, v):
    return attention.attend_unpacked(
      q, k, v, lengths, config, implementation='xla'
    )

  weights = draw(9, 3, 7, 4, 8)
  outputs = []
  for attend in (with_lengths, with_mask):
    value, pull_back = jax.vjp(attend, *arrays)
    outputs.append((value, *pull_back(weights)))
  for actual, expected in zip(*outputs, strict=True):
    np.testing.assert_allclose(actual, expected, atol=1e-5)
