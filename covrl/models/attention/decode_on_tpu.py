# SPDX-License-Identifier: Apache-2.0
"""Decode attention on TPUs: the cache blocks that the kernel has to read."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from covrl.models.attention.decode_kernel import (
  BlockReads,
  DecodeOptions,
  SlotRange,
  attend_blocks,
  block_size,
  blocks_to_read,
)
from covrl.models.attention.online_softmax import OnlineSoftmax
from covrl.models.cached_tokens import (
  CachedTokens,
  ResponseSlots,
  lowest_slot,
  rows_per_tile,
)
from covrl.models.int8 import Vectors


def attend_prompts(
  options: DecodeOptions,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
) -> OnlineSoftmax:
  """Adds the prompts to the online softmax."""
  cache, reads = cached.cache, cached.reads
  keys, num_rows = cache.prompts.keys, queries.shape[0]
  slots, tile_rows = keys.shape[3], rows_per_tile(num_rows)
  slots_per_block = block_size(slots, _slot_bytes(keys))
  first_slot = slots - cache.prompts.lengths
  start = jnp.maximum(
    first_slot[cache.prompt_index], lowest_slot(cache, cached.window, slots)
  )
  start = jnp.where(cached.live, jnp.minimum(start, slots), slots)
  # For each pair, the slots that a row of its tile attends to.
  has_prompt = (
    cache.prompt_index.reshape(-1, tile_rows)[reads.tile]
    == reads.prompt_index[:, None]
  )
  tile_starts = start.reshape(-1, tile_rows)[reads.tile]
  first_slot_read = jnp.min(jnp.where(has_prompt, tile_starts, slots), axis=1)
  first_slot_read = jnp.where(
    jnp.arange(num_rows) < reads.length[0], first_slot_read, slots
  )
  ends = jnp.full_like(first_slot_read, slots)
  blocks = blocks_to_read(
    SlotRange(first_slot_read, ends), slots_per_block, slots
  )
  return attend_blocks(
    queries,
    state,
    keys,
    cache.prompts.values,
    cached.layer,
    BlockReads(
      length=blocks.length,
      tile=reads.tile[blocks.range_index],
      source=reads.prompt_index[blocks.range_index],
      block=blocks.block,
      row_source=jnp.where(cached.live, cache.prompt_index, -1),
      slots=SlotRange(start, ends),
    ),
    tile_rows=tile_rows,
    scale=options.scale,
    cap=options.cap,
    interpret=options.interpret,
  )


def attend_responses(
  options: DecodeOptions,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
  responses: ResponseSlots,
) -> OnlineSoftmax:
  """Adds the responses' tokens in one array to the online softmax."""
  ranges = _slots_in_window(cached, responses)
  for slots in ranges:
    state = _attend_slots(
      options, queries, state, responses, slots, len(ranges)
    )
  return state


def _slots_in_window(
  cached: CachedTokens, responses: ResponseSlots
) -> list[SlotRange]:
  """Contiguous ranges of slots in the window; a ring may wrap, and has two."""
  cache, num_slots = cached.cache, responses.keys.shape[3]
  lowest = lowest_slot(cache, cached.window, 0)
  if not responses.is_ring:
    return [SlotRange(jnp.minimum(lowest, responses.length), responses.length)]
  count = jnp.minimum(cache.length - lowest, responses.length)
  start = jnp.where(responses.length > 0, lowest % num_slots, 0)
  end = start + count
  zero = jnp.zeros_like(start)
  return [
    SlotRange(start, jnp.minimum(end, num_slots)),
    SlotRange(zero, jnp.maximum(end - num_slots, 0)),
  ]


def _attend_slots(
  options: DecodeOptions,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  responses: ResponseSlots,
  slots: SlotRange,
  num_ranges: int,
) -> OnlineSoftmax:
  """Adds a range of slots of each row; `num_ranges` is the number of such calls."""
  row = jnp.arange(queries.shape[0], dtype=jnp.int32)
  num_slots = responses.keys.shape[3]
  slots_per_block = block_size(num_slots, _slot_bytes(responses.keys))
  blocks = blocks_to_read(slots, slots_per_block, num_slots)
  return attend_blocks(
    queries,
    state,
    responses.keys,
    responses.values,
    responses.layer,
    BlockReads(
      length=blocks.length,
      tile=blocks.range_index,
      source=blocks.range_index,
      block=blocks.block,
      row_source=row,
      slots=slots,
    ),
    tile_rows=1,
    scale=options.scale,
    cap=options.cap,
    share=responses.share / num_ranges,
    interpret=options.interpret,
  )


def _slot_bytes(keys: Vectors) -> int:
  """Bytes of a slot's keys and values in one layer."""
  return 2 * keys.shape[2] * keys.shape[4] * keys.dtype.itemsize
