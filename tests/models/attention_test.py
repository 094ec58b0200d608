# SPDX-License-Identifier: Apache-2.0
"""Attention against numpy loops, and rotary embeddings against complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.models import attention, rope

attend = jax.jit(attention.attend)
rotate = jax.jit(rope.rotate, static_argnames='magnitude')


def draw(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_rotation_is_multiplication_by_a_complex_number():
  x = draw(0, 2, 5, 3, 8)
  positions = jnp.array([[0, 1, 2, 3, 4], [7, 7, 0, 100, 31]])
  rates = 100.0 ** (-np.arange(4) / 4)
  rotations = np.exp(1j * np.asarray(positions)[..., None, None] * rates)
  want = (np.asarray(x[..., :4]) + 1j * np.asarray(x[..., 4:])) * rotations
  got = rotate(x, positions, rope.base_frequencies(100.0, 8))
  np.testing.assert_allclose(got[..., :4], want.real, atol=2e-5)
  np.testing.assert_allclose(got[..., 4:], want.imag, atol=2e-5)


def test_rotated_products_depend_on_distance_only():
  q, k = draw(0, 1, 1, 1, 16), draw(1, 1, 1, 1, 16)

  def product(at_q, at_k):
    rotated = [
      rotate(x, jnp.full((1, 1), at), rope.base_frequencies(10000.0, 16))
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
  want = np.zeros(q.shape)
  for b, t, h in np.ndindex(batch, length, heads):
    shared = h // (heads // kv_heads)
    seen = np.flatnonzero(mask[b, t])
    scores = k[b, shared, seen] @ q[b, t, h] / np.sqrt(width)
    shares = np.exp(scores - scores.max())
    want[b, t, h] = shares @ v[b, shared, seen] / shares.sum()
  got = attend(*map(jnp.asarray, (q, k, v, mask)))
  np.testing.assert_allclose(got, want, atol=1e-5)


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
  want = attend(q, kv, kv, mask)
  q, kv = q.astype(jnp.bfloat16), kv.astype(jnp.bfloat16)
  got = attend(q, kv, kv, mask)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)
