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

from covrl.models.attention import flash
from covrl.models.attention.chunk import ChunkContext, attend_chunk
from covrl.models.attention.cudnn import attend_unpacked, cudnn_supports
from covrl.models.attention.decode import attend_token
from covrl.models.cache import repeat_rows
from covrl.models.cached_tokens import CachedTokens
from covrl.models.config import ModelConfig
from covrl.models.layers import (
  RMSNorm,
  constrain,
  linear,
  make_adapter,
  normal_param,
  output_std,
  soft_cap,
)
from covrl.models.rope import Rotation, rotate
from covrl.parallel import sharding

# Queries per block of `attend_causal`, at least, and blocks per row, at most: each
# block adds to the program.
_MIN_BLOCK, _MAX_BLOCKS = 64, 8


class AttentionMask(NamedTuple):
  """Keys that each query attends to, as the implementation of attention takes them.

  Attributes:
    mask: true where a query attends to a key, never to a later one; `None` if a
      kernel is used.
    segment_ids: of whole rows, for the kernel of `flash`.
    cached: tokens that a row's one query attends to beside itself; see
      `attend_token`.
    chunk: rows that the tokens are a chunk of; see `attend_chunk`.
    window: sliding window of the layer in tokens, for the kernel of `flash`;
      `None` if no layer has one.
    lengths: tokens of each row, for cuDNN: a row is one sequence, which begins
      in its first column.
  """

  mask: Bool[Array, 'B T C'] | None = None
  segment_ids: Int[Array, 'B T'] | None = None
  cached: CachedTokens | None = None
  chunk: ChunkContext | None = None
  window: Int[Array, ''] | None = None
  lengths: Int[Array, ' B'] | None = None


class KeyValues(NamedTuple):
  """Keys and values of tokens in one layer, heads before tokens.

  Attributes:
    keys: keys with rotary embeddings.
    values: values of the same tokens.
  """

  keys: Float[Array, 'B K T h']
  values: Float[Array, 'B K T h']


def attend(
  queries: Float[Array, 'B T H h'],
  keys: Float[Array, 'B K C h'],
  values: Float[Array, 'B K C h'],
  mask: Bool[Array, 'B T C'],
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> Float[Array, 'B T H h']:
  """Scaled dot-product attention with grouped key and value heads.

      softmax(scale q · k) v, over the keys that the mask allows

  The softmax is computed in at least float32. A query without any allowed key
  gets the mean of all values: finite, and meaningless.

  Args:
    queries: `H` heads.
    keys: `K` heads, each shared by `H / K` consecutive query heads.
    values: one per key, heads before tokens: the layout of batched products.
    mask: true where a query attends to a key.
    scale: scale of the scores; h^−1/2 if `None`.
    cap: soft cap of the scores, see `soft_cap`.
  """
  batch, length, num_heads, head_dim = queries.shape
  kv_heads = keys.shape[1]
  groups = num_heads // kv_heads
  dtype = jnp.promote_types(queries.dtype, jnp.float32)
  if length > 1 and cudnn_supports(queries.dtype, head_dim, cap):
    return jax.nn.dot_product_attention(
      queries,
      keys.swapaxes(1, 2),
      values.swapaxes(1, 2),
      mask=mask[:, None],
      scale=scale or head_dim**-0.5,
      implementation='cudnn',
    )

  # Queries that share a key head are rows of one matrix product.
  grouped_shape = (batch, length, kv_heads, groups, head_dim)
  rows = queries.reshape(grouped_shape).transpose(0, 2, 3, 1, 4)
  rows = rows.reshape(batch, kv_heads, groups * length, head_dim)
  allowed = jnp.tile(mask, (1, groups, 1))[:, None]

  scores = jnp.einsum(
    'bkqh,bkch->bkqc', rows, keys, preferred_element_type=dtype
  )
  scores = soft_cap(scores * (scale or head_dim**-0.5), cap)
  scores = jnp.where(allowed, scores, jnp.finfo(dtype).min)
  attended = _average_values(scores, values).astype(queries.dtype)
  attended = attended.reshape(batch, kv_heads, groups, length, head_dim)
  return attended.transpose(0, 3, 1, 2, 4).reshape(queries.shape)


def _average_values(
  scores: Float[Array, 'B K Q C'], values: Float[Array, 'B K C h']
) -> Float[Array, 'B K Q h']:
  """Averages values: softmax(scores) @ values, in the dtype of the scores.

  The product of exponentials and values is divided by the sum of the exponentials.
  To divide the exponentials before the product would take one more pass over the
  scores, forward and backward. With e the exponentials,

    y = Σ e v / Σ e,   dscore_c = e_c (dy · v_c − dy · y) / Σ e.
  """
  peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  mass = jnp.exp(scores - peak)
  total = jnp.sum(mass, axis=-1, keepdims=True)
  product = jnp.einsum(
    'bkqc,bkch->bkqh',
    mass.astype(values.dtype),
    values,
    preferred_element_type=scores.dtype,
  )
  return product / total


def attend_causal(
  queries: Float[Array, 'B T H h'],
  keys: Float[Array, 'B K T h'],
  values: Float[Array, 'B K T h'],
  mask: Bool[Array, 'B T T'],
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> Float[Array, 'B T H h']:
  """`attend` with a causal mask, by blocks of queries.

  The products of a block are with the keys up to its end only, which nearly
  halves the work on long rows.

  Args:
    queries: see `attend`.
    keys: see `attend`.
    values: see `attend`.
    mask: see `attend`; false where a key comes after the query.
    scale: see `attend`.
    cap: see `attend`.
  """
  length = queries.shape[1]
  size = max(_MIN_BLOCK, math.ceil(length / _MAX_BLOCKS))
  if cudnn_supports(queries.dtype, queries.shape[-1], cap):
    size = length
  blocks = [
    attend(
      queries[:, start : start + size],
      keys[:, :, : start + size],
      values[:, :, : start + size],
      mask[:, start : start + size, : start + size],
      scale=scale,
      cap=cap,
    )
    for start in range(0, length, size)
  ]
  return jnp.concatenate(blocks, axis=1)


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
    query_axes = ('embed', 'heads', 'head_dim')
    key_axes = ('embed', 'kv_heads', 'head_dim')
    self.query = normal_param(
      rngs, (dim, heads, width), query_axes, scale=dim**-0.5, config=config
    )
    self.key = normal_param(
      rngs, (dim, kv_heads, width), key_axes, scale=dim**-0.5, config=config
    )
    self.value = normal_param(
      rngs, (dim, kv_heads, width), key_axes, scale=dim**-0.5, config=config
    )
    self.output = normal_param(
      rngs,
      (heads, width, dim),
      ('heads', 'head_dim', 'embed'),
      scale=output_std(heads * width, config),
      config=config,
    )
    self.query_adapter = make_adapter(config, 'query', self.query, rngs=rngs)
    self.key_adapter = make_adapter(config, 'key', self.key, rngs=rngs)
    self.value_adapter = make_adapter(config, 'value', self.value, rngs=rngs)
    self.output_adapter = make_adapter(
      config, 'output', self.output, num_input_axes=2, rngs=rngs
    )
    self.biases = Biases(config) if config.qkv_bias else None
    self.query_norm = _head_norm(config)
    self.key_norm = _head_norm(config)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    rotation: Rotation,
    mask: AttentionMask,
  ) -> tuple[Float[Array, 'B T D'], KeyValues]:
    """Applies attention.

    Args:
      x: normalised residual stream.
      rotation: rotation of each token.
      mask: keys that each query attends to, of the `T` tokens or of the cache.

    Returns:
      The term to add to the residual stream, and the tokens' keys and values.
    """
    config = self.config
    query = linear(x, self.query, self.query_adapter)
    key = linear(x, self.key, self.key_adapter)
    value = linear(x, self.value, self.value_adapter)
    if self.biases is not None:
      query, key, value = self.biases(query, key, value)
    if self.query_norm is not None and self.key_norm is not None:
      query, key = self.query_norm(query), self.key_norm(key)
    query, key = (rotate(heads, rotation) for heads in (query, key))
    copies = kv_head_copies(config)
    key, value = (repeat_rows(x, copies, axis=2) for x in (key, value))
    query, key, value = (
      checkpoint_name(_shard_heads(heads), name)
      for heads, name in ((query, 'query'), (key, 'key'), (value, 'value'))
    )
    key_values = KeyValues(key.swapaxes(1, 2), value.swapaxes(1, 2))
    attended = self._attend(query, key_values, mask)
    attended = constrain(attended, 'batch', 'sequence', 'heads', None)
    return linear(
      attended, self.output, self.output_adapter, num_input_axes=2
    ), key_values

  def _attend(
    self,
    query: Float[Array, 'B T H h'],
    key_values: KeyValues,
    mask: AttentionMask,
  ) -> Float[Array, 'B T H h']:
    """Chooses the implementation by the field of the mask that is set."""
    config, (keys, values) = self.config, key_values
    if mask.cached is not None:
      attended = attend_token(
        query[:, 0], keys[:, :, 0], values[:, :, 0], mask.cached, config
      )
      return attended[:, None]
    if mask.chunk is not None:
      return attend_chunk(query, keys, values, mask.chunk, config)
    if mask.lengths is not None:
      keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
      attended = attend_unpacked(query, keys, values, mask.lengths, config)
      return checkpoint_name(attended, flash.CHECKPOINT_NAME)
    if mask.segment_ids is not None:
      return flash.attend_rows(
        query, keys, values, mask.segment_ids, mask.window, config
      )
    if mask.mask is None:
      raise TypeError(
        'AttentionMask must have mask, segment_ids, cached, chunk or lengths, got'
        ' none of them'
      )
    attended = attend_causal(
      query,
      keys,
      values,
      mask.mask,
      scale=config.attention_scale,
      cap=config.attention_soft_cap,
    )
    return checkpoint_name(attended, flash.CHECKPOINT_NAME)


def _shard_heads(heads: Float[Array, 'B T H h']) -> Float[Array, 'B T H h']:
  """Shards heads for attention; each device has whole rows."""
  return constrain(heads, 'batch', 'attended', 'attention_heads', None)


def kv_head_copies(config: ModelConfig) -> int:
  """Number of copies of each key and value head, so that every shard has one.

  The least number that lets key heads be split over as many shards as query
  heads; 1 if that is impossible.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  shards = sharding.num_shards(
    mesh, 'attention_heads', sharding.current_rules()
  )
  num_copied_heads = math.lcm(config.num_kv_heads, shards)
  return (
    1
    if config.num_heads % num_copied_heads
    else num_copied_heads // config.num_kv_heads
  )


def _head_norm(config: ModelConfig) -> RMSNorm | None:
  """Norm of each head's queries or keys, or `None` if the model has none."""
  return (
    RMSNorm(config, config.head_dim, 'head_dim') if config.qk_norm else None
  )


class Biases(nnx.Module):
  """Biases of queries, keys and values, initially 0."""

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
    """Adds the biases."""
    dtype = self.config.dtype
    return (
      query + self.query[...].astype(dtype),
      key + self.key[...].astype(dtype),
      value + self.value[...].astype(dtype),
    )
