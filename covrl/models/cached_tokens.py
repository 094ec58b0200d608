# SPDX-License-Identifier: Apache-2.0
"""Cached tokens that a decoding step attends to, and the list of prompts to read."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Bool, Int

from covrl.models.cache import DecodeCache, ResponseRing, row_axes
from covrl.models.int8 import Vectors

# Largest number of rows of a tile: their queries and a prompt's keys are one matrix product.
MAX_TILE_ROWS = 8


class PromptReads(NamedTuple):
  """List of (tile of rows, prompt) pairs to read, by shard of rows.

  Attributes:
    tile: index of the tile in its shard.
    prompt_index: index of a prompt that some live row of the tile continues.
    length: number of valid entries of each shard.
  """

  tile: Int[Array, ' S']
  prompt_index: Int[Array, ' S']
  length: Int[Array, ' shards']


class CachedTokens(NamedTuple):
  """The cached tokens that a layer attends to.

  Attributes:
    cache: the cache, without the new token.
    live: rows to compute; others get finite, meaningless results.
    reads: the prompts to read.
    layer: index of the layer.
    window: sliding window in tokens; `None` if no layer has one.
    response_layer: index of the layer in the cache's arrays of responses, one
      for layers with a ring and one for layers without; `None` without rings.
    in_ring: whether the layer has a ring; `None` if no layer has one.
  """

  cache: DecodeCache
  live: Bool[Array, ' S']
  reads: PromptReads
  layer: Int[Array, '']
  window: Int[Array, ''] | None
  response_layer: Int[Array, ''] | None = None
  in_ring: Bool[Array, ''] | None = None


class ResponseSlots(NamedTuple):
  """Slots of responses in one array of the cache, for one layer.

  Attributes:
    keys: keys of the layers that have their tokens here.
    values: values of the same tokens.
    layer: index of the layer in these arrays.
    length: number of slots of each row that hold tokens to attend to; 0 if the
      layer has its tokens elsewhere.
    is_ring: whether slots are those of a ring; static.
    share: share of the layers that have their tokens here; static.
  """

  keys: Vectors
  values: Vectors
  layer: Int[Array, '']
  length: Int[Array, ' S']
  is_ring: bool
  share: float


def response_slots(cached: CachedTokens) -> list[ResponseSlots]:
  """The slots of responses that a layer may attend to, by array.

  A layer has its tokens in one array only: in the others it reads nothing.
  """
  cache = cached.cache
  length = jnp.where(cached.live, cache.length, 0)
  if (
    cache.ring is None
    or cached.response_layer is None
    or cached.in_ring is None
  ):
    arguments = cache.keys, cache.values, cached.layer, length
    return [ResponseSlots(*arguments, is_ring=False, share=1.0)]
  total_layers, in_ring = cache.prompts.keys.shape[0], cached.in_ring
  arrays: list[ResponseSlots] = []
  candidates = (
    (ResponseRing(cache.keys, cache.values), False),
    (cache.ring, True),
  )
  for (keys, values), is_ring in candidates:
    num_layers, num_slots = keys.shape[0], keys.shape[3]
    if num_layers:
      arrays.append(
        ResponseSlots(
          keys,
          values,
          layer=jnp.minimum(cached.response_layer, num_layers - 1),
          length=jnp.where(
            in_ring == is_ring, jnp.minimum(length, num_slots), 0
          ),
          is_ring=is_ring,
          share=num_layers / total_layers,
        )
      )
  return arrays


def list_prompts(cache: DecodeCache, live: Bool[Array, ' S']) -> PromptReads:
  """Lists the prompts that each tile of rows has to read, once per step."""
  if jax.sharding.get_abstract_mesh().empty:
    return list_prompts_of_shard(cache.prompt_index, live)
  axes = P(row_axes(cache) or None)
  return jax.shard_map(
    list_prompts_of_shard,
    in_specs=(axes, axes),
    out_specs=axes,
    check_vma=False,
  )(cache.prompt_index, live)


def list_prompts_of_shard(
  prompt_index: Int[Array, ' S'], live: Bool[Array, ' S']
) -> PromptReads:
  """Lists the prompts that the tiles of one shard have to read."""
  rows = prompt_index.shape[0]
  size = rows_per_tile(rows)
  tile_prompts, tile_live = (
    prompt_index.reshape(-1, size),
    live.reshape(-1, size),
  )
  # Rows that are the first of their tile with their prompt.
  same_prompt = (
    tile_prompts[:, :, None] == tile_prompts[:, None, :]
  ) & tile_live[:, None, :]
  earlier = jnp.tril(jnp.ones((size, size), bool), -1)
  is_first = (tile_live & ~jnp.any(same_prompt & earlier, axis=2)).reshape(-1)
  (first_rows,) = jnp.nonzero(is_first, size=rows, fill_value=0)
  return PromptReads(
    tile=(first_rows // size).astype(jnp.int32),
    prompt_index=prompt_index[first_rows],
    length=jnp.sum(is_first, dtype=jnp.int32)[None],
  )


def rows_per_tile(rows: int) -> int:
  """Rows per tile: the largest divisor of `rows` up to `MAX_TILE_ROWS`."""
  return max(n for n in range(1, MAX_TILE_ROWS + 1) if rows % n == 0)


def lowest_slot(
  cache: DecodeCache, window: Int[Array, ''] | None, response_start: int
) -> Int[Array, ' S']:
  """First slot of the prompt or the response that is in each row's window.

  Args:
    cache: the cache.
    window: sliding window in tokens; `None` without one.
    response_start: where the response starts, counted in the slots of the result:
      the number of a prompt's slots for slots of the prompt, 0 for slots of the
      response.
  """
  if window is None:
    return jnp.zeros_like(cache.length)
  return jnp.maximum(response_start + cache.length - window + 1, 0)
