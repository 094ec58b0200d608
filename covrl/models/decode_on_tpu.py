# SPDX-License-Identifier: Apache-2.0
"""Decode attention with the TPU kernel: which blocks it reads."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from covrl.models.cached_tokens import (
  CachedTokens,
  ResponseSlots,
  lowest_slot,
  rows_per_tile,
)
from covrl.models.decode_kernel import (
  Layout,
  Reads,
  SlotRange,
  attend_blocks,
  block_size,
  blocks_to_read,
)
from covrl.models.int8 import Vectors
from covrl.models.online_softmax import OnlineSoftmax


def attend_prompts(
  layout: Layout,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
) -> OnlineSoftmax:
  """Adds the prompts to the online softmax."""
  cache, reads = cached.cache, cached.reads
  keys, rows = cache.prompts.keys, queries.shape[0]
  slots, tile_rows = keys.shape[3], rows_per_tile(rows)
  size = block_size(slots, _slot_bytes(keys))
  first = slots - cache.prompts.lengths
  start = jnp.maximum(
    first[cache.prompt], lowest_slot(cache, cached.window, slots)
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


def attend_responses(
  layout: Layout,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
  part: ResponseSlots,
) -> OnlineSoftmax:
  """Adds the responses' tokens in one array to the online softmax."""
  slots = _slots_in_window(cached, part)
  for each in slots:
    state = _attend_slots(layout, queries, state, part, each, len(slots))
  return state


def _slots_in_window(
  cached: CachedTokens, part: ResponseSlots
) -> list[SlotRange]:
  """Contiguous ranges of slots in the window: two of a ring."""
  cache, size = cached.cache, part.keys.shape[3]
  lowest = lowest_slot(cache, cached.window, 0)
  if not part.is_ring:
    return [SlotRange(jnp.minimum(lowest, part.length), part.length)]
  count = jnp.minimum(cache.length - lowest, part.length)
  start = jnp.where(part.length > 0, lowest % size, 0)
  end = start + count
  none = jnp.zeros_like(start)
  return [
    SlotRange(start, jnp.minimum(end, size)),
    SlotRange(none, jnp.maximum(end - size, 0)),
  ]


def _attend_slots(
  layout: Layout,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  part: ResponseSlots,
  slots: SlotRange,
  parts: int,
) -> OnlineSoftmax:
  """Adds a range of slots of each row."""
  row = jnp.arange(queries.shape[0], dtype=jnp.int32)
  count = part.keys.shape[3]
  size = block_size(count, _slot_bytes(part.keys))
  blocks = blocks_to_read(slots, size, count)
  return attend_blocks(
    queries,
    state,
    part.keys,
    part.values,
    part.layer,
    Reads(
      length=blocks.length,
      tile=blocks.row,
      source=blocks.row,
      block=blocks.block,
      of_row=row,
      slots=slots,
    ),
    tile_rows=1,
    scale=layout.scale,
    cap=layout.cap,
    share=part.share / parts,
    interpret=layout.interpret,
  )


def _slot_bytes(keys: Vectors) -> int:
  """Bytes of a slot's keys and values in one layer."""
  return 2 * keys.shape[2] * keys.shape[4] * keys.dtype.itemsize
