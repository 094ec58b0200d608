# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention with rotary positions."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from covrl.models import flash
from covrl.models.cache import LayerCache, repeat_rows
from covrl.models.config import ModelConfig
from covrl.models.decoding import Span, attend_token
from covrl.models.layers import (
  RMSNorm,
  adapter,
  constrain,
  normal,
  output_scale,
  product,
  soft_cap,
)
from covrl.models.rope import rotate
from covrl.parallel import sharding


class Visible(NamedTuple):
  """What the queries of a layer may see, as the attention in use is told it.

  Attributes:
    mask: true where a query may see a key; `None` where kernels attend.
    segment_ids: of whole rows that kernels attend to.
    span: slots that a row's one query may see, where a kernel attends.
    window: how far the layer looks back; `None` where no layer has a window.
  """

  mask: Bool[Array, 'B T C'] | None = None
  segment_ids: Int[Array, 'B T'] | None = None
  span: Span | None = None
  window: Int[Array, ''] | None = None


def attend(
  queries: Float[Array, 'B T H h'],
  keys: Float[Array, 'B K C h'],
  values: Float[Array, 'B K C h'],
  mask: Bool[Array, 'B T C'],
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> Float[Array, 'B T H h']:
  """The mean of the values, weighted by how well each key fits the query.

      softmax(scale q · k) v, over the keys that the mask allows

  The softmax is float32 at least. A query that may see nothing gets the plain
  mean of all values: finite, and meaningless.

  Args:
    queries: `H` heads.
    keys: `K` heads, each serving `H / K` consecutive query heads.
    values: laid out like the keys: every head's tokens contiguous, as the
      batched products want them.
    mask: true where a query may see a key.
    scale: h^−1/2 unless given.
    cap: bound of what the softmax is given, see `soft_cap`.
  """
  batch, length, num_heads, head_dim = queries.shape
  kv_heads = keys.shape[1]
  groups = num_heads // kv_heads
  dtype = jnp.promote_types(queries.dtype, jnp.float32)
  if _is_for_cudnn(queries, cap):
    return jax.nn.dot_product_attention(
      queries,
      keys.swapaxes(1, 2),
      values.swapaxes(1, 2),
      mask=mask[:, None],
      scale=scale or head_dim**-0.5,
      implementation='cudnn',
    )

  # The queries that share a key head are rows of one plain matrix product.
  apart = (batch, length, kv_heads, groups, head_dim)
  rows = queries.reshape(apart).transpose(0, 2, 3, 1, 4)
  rows = rows.reshape(batch, kv_heads, groups * length, head_dim)
  visible = jnp.tile(mask, (1, groups, 1))[:, None]

  scores = jnp.einsum(
    'bkqh,bkch->bkqc', rows, keys, preferred_element_type=dtype
  )
  scores = soft_cap(scores * (scale or head_dim**-0.5), cap)
  scores = jnp.where(visible, scores, jnp.finfo(dtype).min)
  shares = jax.nn.softmax(scores, axis=-1).astype(queries.dtype)
  mixed = jnp.einsum('bkqc,bkch->bkqh', shares, values)
  mixed = mixed.reshape(batch, kv_heads, groups, length, head_dim)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(queries.shape)


def _is_for_cudnn(queries: Float[Array, 'B T H h'], cap: float | None) -> bool:
  """Whether cuDNN's fused attention can do it, and there is more than a token.

  It is made for halves, for heads of up to 128 features, and has no soft cap.
  """
  _, length, _, head_dim = queries.shape
  return (
    sharding.platform() == 'gpu'
    and queries.dtype in (jnp.bfloat16, jnp.float16)
    and length > 1
    and head_dim <= 128
    and head_dim % 8 == 0
    and cap is None
  )


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
    self.query_adapter = adapter(config, 'query', self.query, rngs=rngs)
    self.key_adapter = adapter(config, 'key', self.key, rngs=rngs)
    self.value_adapter = adapter(config, 'value', self.value, rngs=rngs)
    self.output_adapter = adapter(
      config, 'output', self.output, inputs=2, rngs=rngs
    )
    self.biases = Biases(config) if config.qkv_bias else None
    self.query_norm = _head_norm(config)
    self.key_norm = _head_norm(config)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    visible: Visible,
    frequencies: Float[Array, ' pairs'],
    cache: LayerCache | None = None,
  ) -> tuple[Float[Array, 'B T D'], LayerCache]:
    """Mixes tokens; with a cache, new keys and values are written to it first.

    Args:
      x: normed residual stream.
      positions: place of each token within its sequence.
      visible: which keys each query may see, of `T`, or of the cache.
      frequencies: of the layer's rotations, in radians per position.
      cache: this layer's view of the whole cache.

    Returns:
      What to add to the stream, and the cache: the given one with the new
      entries in it, or one that holds just them.
    """
    config = self.config
    query = product(x, self.query, self.query_adapter)
    key = product(x, self.key, self.key_adapter)
    value = product(x, self.value, self.value_adapter)
    if self.biases is not None:
      query, key, value = self.biases(query, key, value)
    if self.query_norm is not None and self.key_norm is not None:
      query, key = self.query_norm(query), self.key_norm(key)
    query, key = (
      rotate(heads, positions, frequencies, magnitude=config.rope_magnitude)
      for heads in (query, key)
    )
    copies = _copies(config)
    key, value = (repeat_rows(x, copies, axis=2) for x in (key, value))
    query, key, value = (
      checkpoint_name(_apart(heads), name)
      for heads, name in ((query, 'query'), (key, 'key'), (value, 'value'))
    )
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    if cache is None:
      cache = LayerCache.of(key, value)
    else:
      cache = cache.write(key, value)
    mixed = self._mix(query, cache, visible)
    mixed = constrain(mixed, 'batch', 'sequence', 'heads', None)
    return product(mixed, self.output, self.output_adapter, inputs=2), cache

  def _mix(
    self,
    query: Float[Array, 'B T H h'],
    cache: LayerCache,
    visible: Visible,
  ) -> Float[Array, 'B T H h']:
    """The values that each query asks for."""
    config = self.config
    if visible.span is not None:
      mixed = attend_token(query[:, 0], cache, visible.span, config)
      return mixed[:, None]
    keys, values = cache.read()
    if visible.segment_ids is not None:
      return flash.attend_rows(
        query, keys, values, visible.segment_ids, visible.window, config
      )
    if visible.mask is None:
      raise TypeError('a mask, segment ids or a span are required, got none')
    mixed = attend(
      query,
      keys,
      values,
      visible.mask,
      scale=config.attention_scale,
      cap=config.attention_soft_cap,
    )
    return checkpoint_name(mixed, flash.NAME)


def _apart(heads: Float[Array, 'B T H h']) -> Float[Array, 'B T H h']:
  """Whole rows on every device, and a part of the heads."""
  return constrain(heads, 'batch', 'attended', 'attention_heads', None)


def _copies(config: ModelConfig) -> int:
  """How often each key and value head is held, to have one on every shard.

  As few as it takes for heads to be split as many ways as the mesh would have
  them, where that can be.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  parts = sharding.shards(mesh, 'attention_heads', sharding.rules_in_use())
  needed = math.lcm(config.num_kv_heads, parts)
  return 1 if config.num_heads % needed else needed // config.num_kv_heads


def _head_norm(config: ModelConfig) -> RMSNorm | None:
  """The norm of each head's queries or keys, where the model has one."""
  return (
    RMSNorm(config, config.head_dim, 'head_dim') if config.qk_norm else None
  )


class Biases(nnx.Module):
  """What is added to queries, keys and values; nothing at first."""

  def __init__(self, config: ModelConfig) -> None:
    self.config = config
    width, dtype = config.head_dim, config.param_dtype
    zeros = jnp.zeros((config.num_kv_heads, width), dtype)
    self.query = nnx.Param(
      jnp.zeros((config.num_heads, width), dtype), axes=('heads', 'head_dim')
    )
    self.key = nnx.Param(zeros, axes=('kv_heads', 'head_dim'))
    self.value = nnx.Param(zeros, axes=('kv_heads', 'head_dim'))

  def __call__(
    self,
    query: Float[Array, 'B T H h'],
    key: Float[Array, 'B T K h'],
    value: Float[Array, 'B T K h'],
  ) -> tuple[
    Float[Array, 'B T H h'], Float[Array, 'B T K h'], Float[Array, 'B T K h']
  ]:
    """The three, each with its bias."""
    dtype = self.config.dtype
    return (
      query + self.query[...].astype(dtype),
      key + self.key[...].astype(dtype),
      value + self.value[...].astype(dtype),
    )
