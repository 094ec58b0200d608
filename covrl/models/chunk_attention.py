# SPDX-License-Identifier: Apache-2.0
"""Attention of a chunk of whole rows to itself and to all tokens before it.

Chunked prefill processes rows a chunk of columns at a time. An online softmax
takes the chunk first and then blocks of as many earlier keys, so that scores of
a chunk and a block are in memory and never those of whole rows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.models.config import ModelConfig
from covrl.models.layers import soft_cap
from covrl.models.online_softmax import OnlineSoftmax


class ChunkContext(NamedTuple):
  """Rows that a chunk belongs to, in one layer.

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
  """Causal attention of a chunk, like `covrl.models.attention.attend`.

  Padding attends to itself, and to real tokens before it.

  Args:
    queries: queries of the chunk, `H` heads.
    keys: keys of the chunk, each shared by `H / K` query heads.
    values: values of the chunk.
    context: the rows.
    config: has the scale and the soft cap.
  """
  rows, size, heads, width = queries.shape
  kv_heads = keys.shape[1]
  groups, length = heads // kv_heads, context.real.shape[1]
  scale = config.attention_scale or width**-0.5
  dtype = jnp.promote_types(queries.dtype, jnp.float32)
  # Queries that share a key head are rows of one matrix product.
  grouped = queries.reshape(rows, size, kv_heads, groups, width)
  grouped = grouped.transpose(0, 2, 3, 1, 4)
  own = jnp.einsum(
    'pkgqh,pkqh->pkgq', grouped, keys, preferred_element_type=dtype
  )
  own = soft_cap(own * scale, config.attention_soft_cap)
  tall = (rows, kv_heads, groups * size)
  state = OnlineSoftmax(
    peak=own.reshape(tall),
    total=jnp.ones(tall, dtype),
    mixed=jnp.broadcast_to(
      values[:, :, None].astype(dtype), grouped.shape
    ).reshape(*tall, width),
  )
  grouped = grouped.reshape(*tall, width)
  column = context.start + jnp.arange(size)

  def add(
    state: OnlineSoftmax,
    keys: Float[Array, 'P K c h'],
    values: Float[Array, 'P K c h'],
    first: Int[Array, ''],
    end: Int[Array, ''],
  ) -> OnlineSoftmax:
    """Adds the keys of the columns from `first` that are before `end`."""
    of_key = first + jnp.arange(size)
    real = jax.lax.dynamic_slice_in_dim(context.real, first, size, axis=1)
    distance = column[:, None] - of_key
    allowed = (distance > 0) & (of_key < end)
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
  lowest = jnp.zeros_like(context.start)
  if context.window is not None:
    lowest = jnp.maximum(context.start - context.window + 1, 0) // size
  last = (context.start + size - 1) // size
  with jax.named_scope(f'about_{max(length // size // 2, 1)}_trips'):
    state = jax.lax.fori_loop(lowest, last, add_earlier, state)
  mixed = state.result().astype(queries.dtype)
  mixed = mixed.reshape(rows, kv_heads, groups, size, width)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(queries.shape)
