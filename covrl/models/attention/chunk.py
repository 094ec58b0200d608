# SPDX-License-Identifier: Apache-2.0
"""Causal attention of a chunk of columns to itself and to earlier columns.

Chunked prefill processes rows a chunk of columns at a time. An online softmax
takes the chunk first and then blocks of as many earlier keys, so that scores of
a chunk and a block are in memory and never those of whole rows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.models.attention.online_softmax import OnlineSoftmax
from covrl.models.config import ModelConfig
from covrl.models.layers import soft_cap


class ChunkContext(NamedTuple):
  """The rows that a chunk belongs to, in one layer.

  Attributes:
    keys: keys of the whole rows; those before the chunk are read.
    values: values of the same tokens.
    real: true for tokens that are not padding.
    start: column of the chunk's first token.
    window: sliding window in tokens; `None` if no layer has one.
  """

  keys: Float[Array, 'P K T h']
  values: Float[Array, 'P K T h']
  real: Bool[Array, 'P T']
  start: Int[Array, '']
  window: Int[Array, ''] | None = None


def attend_chunk(
  queries: Float[Array, 'P c H h'],
  keys: Float[Array, 'P K c h'],
  values: Float[Array, 'P K c h'],
  context: ChunkContext,
  config: ModelConfig,
) -> Float[Array, 'P c H h']:
  """Causal attention of a chunk, like `covrl.models.attention.grouped_query.attend`.

  Padding attends to itself, and to real tokens before it.

  Args:
    queries: queries of the chunk, `H` heads.
    keys: keys of the chunk, each shared by `H / K` query heads.
    values: values of the chunk.
    context: the rows that the chunk belongs to.
    config: the model, for the scale and the soft cap of the scores.
  """
  rows, size, heads, width = queries.shape
  kv_heads = keys.shape[1]
  groups, length = heads // kv_heads, context.real.shape[1]
  scale = config.attention_scale or width**-0.5
  dtype = jnp.promote_types(queries.dtype, jnp.float32)
  # Queries that share a key head are rows of one matrix product.
  grouped = queries.reshape(rows, size, kv_heads, groups, width)
  grouped = grouped.transpose(0, 2, 3, 1, 4)
  self_scores = jnp.einsum(
    'pkgqh,pkqh->pkgq', grouped, keys, preferred_element_type=dtype
  )
  self_scores = soft_cap(self_scores * scale, config.attention_soft_cap)
  merged_shape = (rows, kv_heads, groups * size)
  state = OnlineSoftmax(
    peak=self_scores.reshape(merged_shape),
    total=jnp.ones(merged_shape, dtype),
    weighted_values=jnp.broadcast_to(
      values[:, :, None].astype(dtype), grouped.shape
    ).reshape(*merged_shape, width),
  )
  grouped = grouped.reshape(*merged_shape, width)
  column = context.start + jnp.arange(size)

  def add(
    state: OnlineSoftmax,
    keys: Float[Array, 'P K c h'],
    values: Float[Array, 'P K c h'],
    first: Int[Array, ''],
    end: Int[Array, ''],
  ) -> OnlineSoftmax:
    """Adds the keys of the columns from `first` that are before `end`."""
    key_column = first + jnp.arange(size)
    real = jax.lax.dynamic_slice_in_dim(context.real, first, size, axis=1)
    distance = column[:, None] - key_column
    allowed = (distance > 0) & (key_column < end)
    if context.window is not None:
      allowed &= distance < context.window
    allowed = jnp.tile(allowed & real[:, None], (1, groups, 1))[:, None]
    scores = jnp.einsum(
      'pkqh,pkch->pkqc', grouped, keys, preferred_element_type=dtype
    )
    scores = soft_cap(scores * scale, config.attention_soft_cap)
    return state.add(jnp.where(allowed, scores, -jnp.inf), values)

  def add_earlier(block: Int[Array, ''], state: OnlineSoftmax) -> OnlineSoftmax:
    first = block * size
    block_keys, block_values = (
      jax.lax.dynamic_slice_in_dim(x, first, size, axis=2)
      for x in (context.keys, context.values)
    )
    return add(state, block_keys, block_values, first, context.start)

  state = add(state, keys, values, context.start, context.start + size)
  first_block = jnp.zeros_like(context.start)
  if context.window is not None:
    first_block = jnp.maximum(context.start - context.window + 1, 0) // size
  end_block = (context.start + size - 1) // size
  # `covrl compile` reads the number of trips, which depends on data, from the scope.
  with jax.named_scope(f'about_{max(length // size // 2, 1)}_trips'):
    state = jax.lax.fori_loop(first_block, end_block, add_earlier, state)
  attended = state.result().astype(queries.dtype)
  attended = attended.reshape(rows, kv_heads, groups, size, width)
  return attended.transpose(0, 3, 1, 2, 4).reshape(queries.shape)
