# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention with rotary positions, plain XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from covrl.models.cache import LayerCache
from covrl.models.config import ModelConfig
from covrl.models.layers import constrain, normal, output_scale

Heads = Float[Array, 'B T H h']


def rotate(
  x: Float[Array, 'B T H h'], positions: Int[Array, 'B T'], *, theta: float
) -> Float[Array, 'B T H h']:
  """Turns each pair of features by an angle proportional to the position.

      (x_i, x_{i+h/2}) turned by position · θ^(−2i/h)

  so that ⟨rotated query, rotated key⟩ depends on the distance alone.

  Args:
    x: queries or keys.
    positions: place of each token within its sequence.
    theta: base of the wavelengths.

  References:
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position
    Embedding", arXiv:2104.09864, (34); features paired by halves.
  """
  half = x.shape[-1] // 2
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  frequencies = theta ** (-jnp.arange(half, dtype=dtype) / half)
  angles = positions[..., None, None].astype(dtype) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = x[..., :half], x[..., half:]
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def attend(
  queries: Float[Array, 'B T H h'],
  keys: Float[Array, 'B K C h'],
  values: Float[Array, 'B K C h'],
  mask: Bool[Array, 'B T C'],
) -> Float[Array, 'B T H h']:
  """The mean of the values, weighted by how well each key fits the query.

      softmax(q · k / √h) v, over the keys that the mask allows

  The softmax is float32 at least. A query that may see nothing gets the plain
  mean of all values: finite, and meaningless.

  Args:
    queries: `H` heads.
    keys: `K` heads, each serving `H / K` consecutive query heads.
    values: laid out like the keys: every head's tokens contiguous, as the
      batched products want them.
    mask: true where a query may see a key.
  """
  batch, length, num_heads, head_dim = queries.shape
  kv_heads = keys.shape[1]
  groups = num_heads // kv_heads
  dtype = jnp.promote_types(queries.dtype, jnp.float32)

  # The queries that share a key head are rows of one plain matrix product.
  apart = (batch, length, kv_heads, groups, head_dim)
  rows = queries.reshape(apart).transpose(0, 2, 3, 1, 4)
  rows = rows.reshape(batch, kv_heads, groups * length, head_dim)
  visible = jnp.tile(mask, (1, groups, 1))[:, None]

  scores = jnp.einsum(
    'bkqh,bkch->bkqc', rows, keys, preferred_element_type=dtype
  )
  scores = jnp.where(visible, scores * head_dim**-0.5, jnp.finfo(dtype).min)
  shares = jax.nn.softmax(scores, axis=-1).astype(queries.dtype)
  mixed = jnp.einsum('bkqc,bkch->bkqh', shares, values)
  mixed = mixed.reshape(batch, kv_heads, groups, length, head_dim)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(queries.shape)


class Attention(nnx.Module):
  """Grouped-query self-attention.

  References:
    Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models
    from Multi-Head Checkpoints", arXiv:2305.13245.
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    dim, width = config.model_dim, config.head_dim
    heads, kv_heads = config.num_heads, config.num_kv_heads
    into = ('embed', 'heads', 'head_dim')
    into_kv = ('embed', 'kv_heads', 'head_dim')
    self.query = normal(
      rngs, (dim, heads, width), into, scale=dim**-0.5, config=config
    )
    self.key = normal(
      rngs, (dim, kv_heads, width), into_kv, scale=dim**-0.5, config=config
    )
    self.value = normal(
      rngs, (dim, kv_heads, width), into_kv, scale=dim**-0.5, config=config
    )
    self.output = normal(
      rngs,
      (heads, width, dim),
      ('heads', 'head_dim', 'embed'),
      scale=output_scale(heads * width, config),
      config=config,
    )

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    mask: Bool[Array, 'B T C'],
    cache: LayerCache | None = None,
  ) -> tuple[Float[Array, 'B T D'], LayerCache]:
    """Mixes tokens; with a cache, new keys and values are written to it first.

    Args:
      x: normed residual stream.
      positions: place of each token within its sequence.
      mask: which keys each query may see; `C` is `T`, or the cache's length.
      cache: this layer's view of the whole cache.

    Returns:
      What to add to the stream, and the cache: the given one with the new
      entries in it, or one that holds just them.
    """
    dtype = self.config.dtype
    query, key, value = (
      jnp.einsum('btd,dhk->bthk', x, weight[...].astype(dtype))
      for weight in (self.query, self.key, self.value)
    )
    query = rotate(query, positions, theta=self.config.rope_theta)
    key = rotate(key, positions, theta=self.config.rope_theta)
    query = constrain(query, 'batch', 'sequence', 'heads', None)
    key = constrain(key, 'batch', 'sequence', 'kv_heads', None)
    value = constrain(value, 'batch', 'sequence', 'kv_heads', None)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    if cache is None:
      cache = LayerCache.of(key, value)
    else:
      cache = cache.write(key, value)
    mixed = attend(query, *cache.read(), mask)
    output = self.output[...].astype(dtype)
    return jnp.einsum('bthk,hkd->btd', mixed, output), cache
