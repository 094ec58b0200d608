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
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Float, Int

from covrl.models.attention import decode_on_tpu
from covrl.models.attention.decode_kernel import DecodeOptions
from covrl.models.attention.online_softmax import OnlineSoftmax
from covrl.models.cache import newest_tokens, row_axes
from covrl.models.cached_tokens import (
  CachedTokens,
  ResponseSlots,
  lowest_slot,
  response_slots,
  rows_per_tile,
)
from covrl.models.config import ModelConfig
from covrl.models.int8 import Vectors, attention_scores
from covrl.models.layers import soft_cap
from covrl.parallel import sharding

# Slots of all rows that are read per step, without the kernel; fewer on CPUs, so
# that the operands of a product fit into the processor's cache.
BLOCK_SLOTS, CPU_BLOCK_SLOTS = 64, 32
# Bytes of prompts' keys that are read per step on CPUs, at most.
PROMPT_BYTES = 1 << 21
# JAX scopes of attention to the responses' own tokens, for `covrl.compile`, which
# also reads the trip counts of loops that depend on data from scopes.
RESPONSES_SCOPE, RINGS_SCOPE = 'responses', 'rings'


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
    config: the model, for the scale and the soft cap of the scores.
    interpret: whether to run the TPU kernel in interpret mode, for tests.
  """
  options = DecodeOptions(
    scale=config.attention_scale or config.head_dim**-0.5,
    cap=config.attention_soft_cap,
    use_kernel=uses_kernel(config),
    interpret=interpret,
  )
  attend = functools.partial(_attend_local, options)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return attend(queries, keys, values, cached)
  rows = row_axes(cached.cache) or None
  axes = ('layers', None, 'attention_heads', None, 'head_dim')
  heads = sharding.fitted_spec(
    mesh, axes, cached.cache.keys.shape, sharding.current_rules()
  )[2]
  row_spec, head_spec, cache_spec = (
    P(rows),
    P(rows, heads),
    P(None, rows, heads),
  )
  # Scalars, arrays of rows, and the caches.
  by_rank = {0: P(), 1: row_spec, 4: cache_spec, 5: cache_spec}
  specs = jax.tree.map(lambda leaf: by_rank[leaf.ndim], cached)
  return jax.shard_map(
    attend,
    mesh=mesh,
    in_specs=(head_spec, head_spec, head_spec, specs),
    out_specs=head_spec,
    check_vma=False,
  )(queries, keys, values, cached)


def uses_kernel(config: ModelConfig) -> bool:
  """Whether decoding uses the TPU kernel."""
  is_narrow = jnp.finfo(config.dtype).bits <= 32
  return sharding.platform() == 'tpu' and is_narrow


def _attend_local(
  options: DecodeOptions,
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
  scores = soft_cap(scores * options.scale, options.cap)
  state = OnlineSoftmax(
    peak=scores,
    total=jnp.ones_like(scores),
    weighted_values=jnp.broadcast_to(
      values[:, :, None].astype(dtype), grouped.shape
    ),
  )
  if options.use_kernel:
    state = decode_on_tpu.attend_prompts(options, grouped, state, cached)
  else:
    state = _attend_prompts(options, grouped, state, cached)
  for responses in response_slots(cached):
    with jax.named_scope(RINGS_SCOPE if responses.is_ring else RESPONSES_SCOPE):
      if options.use_kernel:
        state = decode_on_tpu.attend_responses(
          options, grouped, state, cached, responses
        )
      else:
        state = _attend_responses(options, grouped, state, cached, responses)
  return state.result().astype(queries.dtype).reshape(queries.shape)


def _attend_prompts(
  options: DecodeOptions,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
) -> OnlineSoftmax:
  """Adds the prompts to the online softmax, a few tiles of rows at a time."""
  cache, reads = cached.cache, cached.reads
  rows, _, groups, _ = queries.shape
  tile_rows, slots = rows_per_tile(rows), cache.prompts.keys.shape[3]
  first_slot = slots - cache.prompts.lengths
  lowest = lowest_slot(cache, cached.window, slots)
  slot = jnp.arange(slots)
  # Each prompt once; more often where several tiles continue it.
  num_pairs = max(min(cache.prompts.keys.shape[1], rows), rows // tile_rows)
  pairs_per_trip = min(num_pairs, _prompts_per_trip(cache.prompts.keys))

  def to_tiles(x: Array) -> Array:
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], tile_rows * groups, *x.shape[4:])

  def from_tiles(x: Array) -> Array:
    x = x.reshape(*x.shape[:2], tile_rows, groups, *x.shape[3:])
    return x.swapaxes(1, 2)

  def add_prompts(trip: Int[Array, ''], state: OnlineSoftmax) -> OnlineSoftmax:
    pair = trip * pairs_per_trip + jnp.arange(pairs_per_trip)
    prompt = reads.prompt_index[pair]
    row = reads.tile[pair][:, None] * tile_rows + jnp.arange(tile_rows)
    continues = (cache.prompt_index[row] == prompt[:, None]) & cached.live[row]
    continues &= (pair < reads.length[0])[:, None]
    start = jnp.maximum(first_slot[prompt][:, None], lowest[row])
    allowed = continues[..., None] & (slot >= start[..., None])
    allowed = jnp.repeat(allowed, groups, axis=1)[:, None]
    key, value = (
      jax.tree.map(lambda x: x[cached.layer, prompt], stacked)
      for stacked in (cache.prompts.keys, cache.prompts.values)
    )
    tiles, tile_state = jax.tree.map(
      lambda x: to_tiles(x[row]), (queries, state)
    )
    scores = attention_scores(tiles, key, tile_state.peak.dtype)
    scores = soft_cap(scores * options.scale, options.cap)
    scores = jnp.where(allowed, scores, -jnp.inf)
    tile_state = tile_state.add(scores, value, queries.dtype)
    # A row continues one prompt only, so that no two pairs write the same row.
    target_rows = jnp.where(continues, row, rows)
    return jax.tree.map(
      lambda x, new: x.at[target_rows].set(from_tiles(new), mode='drop'),
      state,
      tile_state,
    )

  # `covrl compile` reads the number of trips, which depends on data, from the scope.
  with jax.named_scope(f'about_{-(-num_pairs // pairs_per_trip)}_trips'):
    trips = (reads.length[0] + pairs_per_trip - 1) // pairs_per_trip
    return jax.lax.fori_loop(0, trips, add_prompts, state)


def _prompts_per_trip(keys: Vectors) -> int:
  """Prompts whose attention is one batched product.

  On CPUs a few, since the products of small models take less time than a trip
  of the loop does.
  """
  if sharding.platform() != 'cpu':
    return 1
  size = math.prod(keys.shape[2:]) * keys.dtype.itemsize
  return max(PROMPT_BYTES // size, 1)


def _attend_responses(
  options: DecodeOptions,
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  cached: CachedTokens,
  responses: ResponseSlots,
) -> OnlineSoftmax:
  """Adds the responses' tokens, a block of slots of all rows at a time."""
  slots = responses.keys.shape[3]
  on_cpu = sharding.platform() == 'cpu'
  size = min(CPU_BLOCK_SLOTS if on_cpu else BLOCK_SLOTS, slots)
  lowest = lowest_slot(cached.cache, cached.window, 0)

  def add_block(block: Int[Array, ''], state: OnlineSoftmax) -> OnlineSoftmax:
    # The last block of a row may overlap the one before.
    first_slot = jnp.minimum(block * size, slots - size)

    def at_block(x: Array) -> Array:
      start = (responses.layer, 0, 0, first_slot, *(0,) * (x.ndim - 4))
      # Of one type also where JAX's integers have 64 bits.
      start = tuple(jnp.asarray(index, jnp.int32) for index in start)
      return jax.lax.dynamic_slice(
        x, start, (1, *x.shape[1:3], size, *x.shape[4:])
      )[0]

    slot = first_slot + jnp.arange(size)
    token = slot
    if responses.is_ring:
      token = newest_tokens(cached.cache.length, slot, slots)
    allowed = (
      (slot >= block * size)
      & (slot < responses.length[:, None])
      & (token >= lowest[:, None])
    )
    scores = attention_scores(
      queries, jax.tree.map(at_block, responses.keys), state.peak.dtype
    )
    scores = soft_cap(scores * options.scale, options.cap)
    scores = jnp.where(allowed[:, None, None], scores, -jnp.inf)
    values = jax.tree.map(at_block, responses.values)
    return state.add(scores, values, queries.dtype)

  end_block = (jnp.max(responses.length) + size - 1) // size
  # The mean over layers: a share of them have their tokens in this array, and the
  # others have a length of 0 in it.
  trips = max(round(-(-slots // size) * responses.share), 1)
  # `covrl compile` reads the number of trips, which depends on data, from the scope.
  with jax.named_scope(f'about_{trips}_trips'):
    return jax.lax.fori_loop(0, end_block, add_block, state)
