# SPDX-License-Identifier: Apache-2.0
"""Decode attention: one new token per row over a KV cache with shared prompts.

    softmax over (the prompt, the response so far, the token itself)

An online softmax takes the three parts in turn. A prompt is read once for a tile
of rows that continue it, and responses only as far as they reach. What a row
does not attend to changes no bit of its result, so that a row depends neither on
the other rows nor on its index.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Bool, Float, Int

from covrl.models.cache import DecodeCache, row_axes
from covrl.models.config import ModelConfig
from covrl.models.decode_kernel import (
  Reads,
  SlotRange,
  attend_blocks,
  block_size,
  blocks_to_read,
)
from covrl.models.layers import soft_cap
from covrl.models.online_softmax import OnlineSoftmax
from covrl.parallel import sharding

# Rows whose queries meet a prompt in one matrix product.
TILE_ROWS = 8
# Slots of all rows that are read per step, without the kernel.
BLOCK_SLOTS = 64
# JAX scope of attention to the responses' own tokens, for `covrl.compile`, which
# also takes from scopes how often loops run whose trip count depends on data.
RESPONSES = 'responses'


class PromptReads(NamedTuple):
  """List of (tile of rows, prompt) pairs to read, by shard of rows.

  Attributes:
    tile: index of the tile in its shard.
    prompt: index of a prompt that some live row of the tile continues.
    length: number of valid entries of each shard.
  """

  tile: Int[Array, ' S']
  prompt: Int[Array, ' S']
  length: Int[Array, ' shards']


class CachedTokens(NamedTuple):
  """The cached tokens that a layer attends to.

  Attributes:
    cache: the cache, without the new token.
    live: rows to compute; others get finite, meaningless results.
    reads: the prompts to read.
    layer: index of the layer.
    window: sliding window in tokens; `None` if no layer has one.
  """

  cache: DecodeCache
  live: Bool[Array, ' S']
  reads: PromptReads
  layer: Int[Array, '']
  window: Int[Array, ''] | None


class _Layout(NamedTuple):
  """Static description of the computation on one device."""

  scale: float
  cap: float | None
  kernel: bool
  interpret: Any


def list_prompts(cache: DecodeCache, live: Bool[Array, ' S']) -> PromptReads:
  """Lists the prompts that each tile of rows has to read, once per step."""
  if jax.sharding.get_abstract_mesh().empty:
    return list_local(cache.prompt, live)
  axes = P(row_axes(cache) or None)
  return jax.shard_map(
    list_local, in_specs=(axes, axes), out_specs=axes, check_vma=False
  )(cache.prompt, live)


def attend_token(
  queries: Float[Array, 'S H h'],
  keys: Float[Array, 'S K h'],
  values: Float[Array, 'S K h'],
  cached: CachedTokens,
  config: ModelConfig,
  *,
  interpret: Any = False,
) -> Float[Array, 'S H h']:
  """Attention of each row's new token to itself and to the cached tokens.

  Args:
    queries: queries of the new tokens, `H` heads.
    keys: keys of the new tokens, each shared by `H / K` query heads.
    values: values of the new tokens.
    cached: the tokens before.
    config: has the scale and the soft cap.
    interpret: whether to run the TPU kernel in interpret mode, for tests.
  """
  layout = _Layout(
    scale=config.attention_scale or config.head_dim**-0.5,
    cap=config.attention_soft_cap,
    kernel=uses_kernel(config),
    interpret=interpret,
  )
  attend = functools.partial(_attend_local, layout)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return attend(queries, keys, values, cached)
  rows = row_axes(cached.cache) or None
  axes = ('layers', None, 'attention_heads', None, 'head_dim')
  heads = sharding.fitted_spec(
    mesh, axes, cached.cache.keys.shape, sharding.current_rules()
  )[2]
  of_row, of_head, of_cache = P(rows), P(rows, heads), P(None, rows, heads)
  # Scalars, arrays of rows, and the caches.
  by_rank = {0: P(), 1: of_row, 5: of_cache}
  specs = jax.tree.map(lambda leaf: by_rank[leaf.ndim], cached)
  return jax.shard_map(
    attend,
    mesh=mesh,
    in_specs=(of_head, of_head, of_head, specs),
    out_specs=of_head,
    check_vma=False,
  )(queries, keys, values, cached)


def uses_kernel(config: ModelConfig) -> bool:
  """Whether decoding uses the TPU kernel."""
  narrow = jnp.finfo(config.dtype).bits <= 32
  return sharding.platform() == 'tpu' and narrow


def list_local(
  prompt: Int[Array, ' S'], live: Bool[Array, ' S']
) -> PromptReads:
  """Lists the prompts of one shard's tiles."""
  rows = prompt.shape[0]
  size = _tile_rows(rows)
  tiles, alive = prompt.reshape(-1, size), live.reshape(-1, size)
  # Rows that are the first of their tile with their prompt.
  same = (tiles[:, :, None] == tiles[:, None, :]) & alive[:, None, :]
  before = jnp.tril(jnp.ones((size, size), bool), -1)
  is_first = (alive & ~jnp.any(same & before, axis=2)).reshape(-1)
  (found,) = jnp.nonzero(is_first, size=rows, fill_value=0)
  return PromptReads(
    tile=(found // size).astype(jnp.int32),
    prompt=prompt[found],
    length=jnp.sum(is_first, dtype=jnp.int32)[None],
  )


def _tile_rows(rows: int) -> int:
  """Rows per tile: the largest divisor of `rows` up to `TILE_ROWS`."""
  return max(n for n in range(1, TILE_ROWS + 1) if rows % n == 0)


def _attend_local(
  layout: _Layout,
  queries: Float[Array, 'S H h'],
  keys: Float[Array, 'S K h'],
  values: Float[Array, 'S K h'],
  cached: CachedTokens,
) -> Float[Array, 'S H h']:
  """Attention on one device."""
  rows, heads, width = queries.shape
  kv_heads = keys.shape[1]
  grouped = queries.reshape(rows, kv_heads, heads // kv_heads, width)
  dtype = jnp.promote_types(queries.dtype, jnp.float32)
  scores = jnp.einsum(
    'skgh,skh->skg', grouped, keys, preferred_element_type=dtype
  )
  scores = soft_cap(scores * layout.scale, layout.cap)
  state = OnlineSoftmax(
    peak=scores,
    total=jnp.ones_like(scores),
    mixed=jnp.broadcast_to(values[:, :, None].astype(dtype), grouped.shape),
  )
  if layout.kernel:
    state = _attend_prompt_blocks(layout, grouped, state, cached)
  else:
    state = _attend_prompts(layout, grouped, state, cached)
  with jax.named_scope(RESPONSES):
    if layout.kernel:
      state = _attend_response_blocks(layout, grouped, state, cached)
    else:
      state = _attend_responses(layout, grouped, state, cached)
  return state.result().astype(queries.dtype).reshape(queries.shape)


def _attend_prompts(
  layout: _Layout,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
) -> OnlineSoftmax:
  """Adds the prompts to the online softmax, a tile of rows at a time."""
  cache, reads = cached.cache, cached.reads
  rows, kv_heads, groups, _ = queries.shape
  size, slots = _tile_rows(rows), cache.prompts.keys.shape[3]

  def to_tiles(x: Array) -> Array:
    x = x.reshape(-1, size, *x.shape[1:]).swapaxes(1, 2)
    return x.reshape(x.shape[0], kv_heads, size * groups, *x.shape[4:])

  def from_tiles(x: Array) -> Array:
    x = x.reshape(-1, kv_heads, size, groups, *x.shape[3:]).swapaxes(1, 2)
    return x.reshape(rows, kv_heads, groups, *x.shape[4:])

  tiles = to_tiles(queries)
  first = slots - cache.prompts.lengths
  lowest = _lowest_slot(cache, cached.window, slots)
  slot = jnp.arange(slots)

  def read(i: Int[Array, ''], state: OnlineSoftmax) -> OnlineSoftmax:
    tile, prompt = reads.tile[i], reads.prompt[i]
    at = tile * size + jnp.arange(size)
    continues = (cache.prompt[at] == prompt) & cached.live[at]
    start = jnp.maximum(first[prompt], lowest[at])
    allowed = continues[:, None] & (slot >= start[:, None])
    allowed = jnp.repeat(allowed, groups, axis=0)[None]
    key = cache.prompts.keys[cached.layer, prompt]
    value = cache.prompts.values[cached.layer, prompt]
    part = jax.tree.map(lambda x: x[tile], state)
    scores = jnp.einsum(
      'kqh,kch->kqc', tiles[tile], key, preferred_element_type=part.peak.dtype
    )
    scores = soft_cap(scores * layout.scale, layout.cap)
    part = part.add(jnp.where(allowed, scores, -jnp.inf), value)
    return jax.tree.map(lambda x, new: x.at[tile].set(new), state, part)

  state = OnlineSoftmax(*(to_tiles(x) for x in state))
  # Each prompt once; more often where several tiles continue it.
  with jax.named_scope(f'about_{min(cache.prompts.keys.shape[1], rows)}_trips'):
    state = jax.lax.fori_loop(0, reads.length[0], read, state)
  return OnlineSoftmax(*(from_tiles(x) for x in state))


def _attend_responses(
  layout: _Layout,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
) -> OnlineSoftmax:
  """Adds the responses' tokens, a block of slots of all rows at a time."""
  cache, window = cached.cache, cached.window
  slots = cache.keys.shape[3]
  size = min(BLOCK_SLOTS, slots)
  length = jnp.where(cached.live, cache.length, 0)
  lowest = _lowest_slot(cache, window, 0)

  def read(block: Int[Array, ''], state: OnlineSoftmax) -> OnlineSoftmax:
    # The last block of a row may overlap the one before.
    first = jnp.minimum(block * size, slots - size)

    def at_block(x: Array) -> Array:
      start = (cached.layer, 0, 0, first, 0)
      return jax.lax.dynamic_slice(
        x, start, (1, *x.shape[1:3], size, x.shape[4])
      )[0]

    slot = first + jnp.arange(size)
    allowed = (
      (slot >= block * size)
      & (slot < length[:, None])
      & (slot >= lowest[:, None])
    )
    scores = jnp.einsum(
      'skgh,skch->skgc',
      queries,
      at_block(cache.keys),
      preferred_element_type=state.peak.dtype,
    )
    scores = soft_cap(scores * layout.scale, layout.cap)
    scores = jnp.where(allowed[:, None, None], scores, -jnp.inf)
    return state.add(scores, at_block(cache.values))

  last = (jnp.max(length) + size - 1) // size
  with jax.named_scope(f'about_{-(-slots // size)}_trips'):
    return jax.lax.fori_loop(0, last, read, state)


def _attend_prompt_blocks(
  layout: _Layout,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
) -> OnlineSoftmax:
  """`_attend_prompts` with the TPU kernel."""
  cache, reads = cached.cache, cached.reads
  keys, rows = cache.prompts.keys, queries.shape[0]
  slots, tile_rows = keys.shape[3], _tile_rows(rows)
  size = block_size(slots, _slot_bytes(keys))
  first = slots - cache.prompts.lengths
  start = jnp.maximum(
    first[cache.prompt], _lowest_slot(cache, cached.window, slots)
  )
  start = jnp.where(cached.live, jnp.minimum(start, slots), slots)
  # The slots that some row of a pair's tile attends to.
  is_pair = (
    cache.prompt.reshape(-1, tile_rows)[reads.tile] == reads.prompt[:, None]
  )
  of_tile = start.reshape(-1, tile_rows)[reads.tile]
  lowest = jnp.min(jnp.where(is_pair, of_tile, slots), axis=1)
  lowest = jnp.where(jnp.arange(rows) < reads.length[0], lowest, slots)
  ends = jnp.full_like(lowest, slots)
  blocks = blocks_to_read(SlotRange(lowest, ends), size, slots)
  return attend_blocks(
    queries,
    state,
    keys,
    cache.prompts.values,
    cached.layer,
    Reads(
      length=blocks.length,
      tile=reads.tile[blocks.row],
      source=reads.prompt[blocks.row],
      block=blocks.block,
      of_row=jnp.where(cached.live, cache.prompt, -1),
      slots=SlotRange(start, ends),
    ),
    tile_rows=tile_rows,
    scale=layout.scale,
    cap=layout.cap,
    interpret=layout.interpret,
  )


def _attend_response_blocks(
  layout: _Layout,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
) -> OnlineSoftmax:
  """`_attend_responses` with the TPU kernel."""
  cache, keys = cached.cache, cached.cache.keys
  slots, row = keys.shape[3], jnp.arange(queries.shape[0], dtype=jnp.int32)
  end = jnp.where(cached.live, cache.length, 0)
  start = jnp.minimum(_lowest_slot(cache, cached.window, 0), end)
  size = block_size(slots, _slot_bytes(keys))
  blocks = blocks_to_read(SlotRange(start, end), size, slots)
  return attend_blocks(
    queries,
    state,
    keys,
    cache.values,
    cached.layer,
    Reads(
      length=blocks.length,
      tile=blocks.row,
      source=blocks.row,
      block=blocks.block,
      of_row=row,
      slots=SlotRange(start, end),
    ),
    tile_rows=1,
    scale=layout.scale,
    cap=layout.cap,
    interpret=layout.interpret,
  )


def _slot_bytes(keys: Float[Array, 'L N K C h']) -> int:
  """Bytes of a slot's keys and values in one layer."""
  return 2 * keys.shape[2] * keys.shape[4] * keys.dtype.itemsize


def _lowest_slot(
  cache: DecodeCache, window: Int[Array, ''] | None, slots: int
) -> Int[Array, ' S']:
  """First slot in each row's window, of the prompt or (`slots` 0) response.

  Args:
    cache: the cache.
    window: sliding window in tokens.
    slots: slots of the part that precede the response's first.
  """
  if window is None:
    return jnp.zeros_like(cache.length)
  return jnp.maximum(slots + cache.length - window + 1, 0)
