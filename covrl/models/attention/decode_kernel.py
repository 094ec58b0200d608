# SPDX-License-Identifier: Apache-2.0
"""TPU kernel of decode attention: adds cached tokens to an online softmax.

A Pallas kernel that iterates over a list of blocks: each is a run of cache slots
of one source (a prompt, or a row's response) that a tile of rows attends to.
Rows that have ended, padding before a prompt, slots not yet written and tokens
outside a sliding window are not read.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from covrl.models.attention.online_softmax import OnlineSoftmax
from covrl.models.int8 import Int8Vectors, Vectors
from covrl.models.layers import soft_cap

# Reference to an array inside a kernel; Pallas has no public name for its type.
Ref: TypeAlias = Any

# Approximate bytes of keys and values read per step: few, so that little is read
# beyond the ends of a row, and enough to amortise a step's fixed time.
STEP_BYTES = 2**19
# Lanes of a tile of memory. Block sizes are multiples of this number of slots.
LANES = 128


class DecodeOptions(NamedTuple):
  """Static options of decode attention on one device.

  Attributes:
    scale: scale of the scores.
    cap: soft cap of the scores, or `None`.
    use_kernel: whether the TPU kernel is used.
    interpret: whether the kernel runs in interpret mode, for tests.
  """

  scale: float
  cap: float | None
  use_kernel: bool
  interpret: Any


class SlotRange(NamedTuple):
  """Contiguous range of cache slots.

  Attributes:
    start: first slot.
    end: one past the last slot; equal to `start` if the range is empty.
  """

  start: Int[Array, ' N']
  end: Int[Array, ' N']


class BlockList(NamedTuple):
  """List of cache blocks, those of a range contiguous.

  Attributes:
    length: number of valid entries; the rest is ignored.
    range_index: index of the range of each block.
    block: index of each block within the slots.
  """

  length: Int[Array, '']
  range_index: Int[Array, ' M']
  block: Int[Array, ' M']


class BlockReads(NamedTuple):
  """Blocks to read, those of a tile contiguous, and the slots of each row.

  Attributes:
    length: number of valid blocks.
    tile: tile of rows that attends to each block.
    source: prompt or row that each block belongs to.
    block: index of each block within its source.
    row_source: index of the source that each row attends to; −1 for none.
    slots: the slots of that source that the row attends to.
  """

  length: Int[Array, '']
  tile: Int[Array, ' M']
  source: Int[Array, ' M']
  block: Int[Array, ' M']
  row_source: Int[Array, ' S']
  slots: SlotRange


def attend_blocks(
  queries: Float[Array, 'S K g h'],
  state: OnlineSoftmax,
  keys: Vectors,
  values: Vectors,
  layer: Int[Array, ''],
  reads: BlockReads,
  *,
  tile_rows: int,
  scale: float,
  cap: float | None,
  interpret: Any,
  share: float = 1.0,
) -> OnlineSoftmax:
  """Adds blocks of keys to the online softmax of rows, on one device.

  Args:
    queries: queries of one token per row, `g` heads for each key head.
    state: the online softmax so far, `[S, K, g]`.
    keys: keys of all layers and sources, `[L, N, K, C, h]`.
    values: values of the same tokens.
    layer: index of the layer.
    reads: the blocks to read.
    tile_rows: rows whose queries are one matrix.
    scale: scale of the scores.
    cap: soft cap of the scores.
    interpret: whether to run in interpret mode, for tests.
    share: share of the calls that read anything, for the stated cost.
  """
  rows, kv_heads, groups, width = queries.shape
  tiles, tile_queries = rows // tile_rows, tile_rows * groups
  length = keys.shape[3]
  size = block_size(length, 2 * kv_heads * width * keys.dtype.itemsize)

  def to_tiles(x: Array) -> Array:
    x = x.reshape(tiles, tile_rows, kv_heads, groups, -1).swapaxes(1, 2)
    return x.reshape(tiles, kv_heads, tile_queries, -1)

  def from_tiles(x: Array) -> Array:
    x = x.reshape(tiles, kv_heads, tile_rows, groups, -1).swapaxes(1, 2)
    return x.reshape(rows, kv_heads, groups, -1)

  def at_tile(i: Any, layer: Ref, tile: Ref, *_: Ref) -> tuple[Any, ...]:
    del layer
    return tile[i], 0, 0, 0

  def at_block(
    i: Any, layer: Ref, tile: Ref, source: Ref, block: Ref, *_: Ref
  ) -> tuple[Any, ...]:
    del tile
    return layer[0], source[i], 0, block[i], 0

  def at_scale(*arguments: Any) -> tuple[Any, ...]:
    return at_block(*arguments)[:4]

  query_spec = pl.BlockSpec((None, kv_heads, tile_queries, width), at_tile)
  sum_spec = pl.BlockSpec((None, kv_heads, tile_queries, 1), at_tile)
  cache_spec = pl.BlockSpec((None, None, kv_heads, size, width), at_block)
  scale_spec = pl.BlockSpec((None, None, kv_heads, size), at_scale)
  cached: list[Array] = []
  cached_specs: list[pl.BlockSpec] = []
  for vectors in (keys, values):
    if isinstance(vectors, Int8Vectors):
      cached += [vectors.values, vectors.scale]
      cached_specs += [cache_spec, scale_spec]
    else:
      cached.append(vectors)
      cached_specs.append(cache_spec)
  sums = jax.ShapeDtypeStruct((tiles, kv_heads, tile_queries, 1), jnp.float32)
  weighted_values = jax.ShapeDtypeStruct(
    (tiles, kv_heads, tile_queries, width), jnp.float32
  )
  old_state = OnlineSoftmax(*(to_tiles(x) for x in state))
  call = pl.pallas_call(
    functools.partial(
      _kernel,
      size=size,
      tile_rows=tile_rows,
      groups=groups,
      scale=scale,
      cap=cap,
      is_int8=isinstance(keys, Int8Vectors),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=7,
      grid=(reads.length,),
      in_specs=[query_spec, *cached_specs, sum_spec, sum_spec, query_spec],
      out_specs=(sum_spec, sum_spec, query_spec),
    ),
    out_shape=(sums, sums, weighted_values),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('arbitrary',)),
    # An upper bound: all slots of one layer.
    cost_estimate=pl.CostEstimate(
      flops=int(share * 4 * rows * kv_heads * groups * length * width),
      transcendentals=int(share * rows * kv_heads * groups * length),
      bytes_accessed=int(share * sum(_bytes_of_layer(x) for x in cached)),
    ),
    interpret=interpret,
    name='attend_blocks',
  )
  new_state = call(
    layer[None],
    reads.tile,
    reads.source,
    reads.block,
    reads.row_source,
    reads.slots.start,
    reads.slots.end,
    to_tiles(queries),
    *cached,
    *old_state,
  )
  # Tiles without a block are not written by the kernel.
  valid = jnp.arange(reads.tile.shape[0]) < reads.length
  has_block = jnp.zeros(tiles, bool).at[reads.tile].max(valid)
  has_block = has_block[:, None, None, None]
  peak, total, weighted_values = (
    from_tiles(jnp.where(has_block, new, old))
    for new, old in zip(new_state, old_state, strict=True)
  )
  return OnlineSoftmax(peak[..., 0], total[..., 0], weighted_values)


def _bytes_of_layer(cached: Array) -> int:
  """Bytes of one layer in memory, the last axis padded to whole lanes."""
  *others, last = cached.shape[1:]
  padded = -(-last // LANES) * LANES
  return math.prod(others) * padded * cached.dtype.itemsize


def _kernel(
  layer: Ref,
  tile: Ref,
  source: Ref,
  block: Ref,
  row_source: Ref,
  start: Ref,
  end: Ref,
  query: Ref,
  *cache_and_state_refs: Ref,
  size: int,
  tile_rows: int,
  groups: int,
  scale: float,
  cap: float | None,
  is_int8: bool,
) -> None:
  """Kernel of one block: updates the online softmax of a tile."""
  del layer
  (
    *cached,
    peak_before,
    total_before,
    weighted_values_before,
    peak,
    total,
    weighted_values,
  ) = cache_and_state_refs
  key_scale: Ref = None
  value_scale: Ref = None
  if is_int8:
    keys, key_scale, values, value_scale = cached
  else:
    keys, values = cached
  step = pl.program_id(0)
  this_tile, block_source, first_slot = (
    tile[step],
    source[step],
    block[step] * size,
  )

  @pl.when((step == 0) | (tile[jnp.maximum(step - 1, 0)] != this_tile))
  def _load_state() -> None:
    peak[...] = peak_before[...]
    total[...] = total_before[...]
    weighted_values[...] = weighted_values_before[...]

  # Slots that each row of the tile attends to, and their range over the tile.
  shape = (1, tile_rows * groups, size)
  slots = first_slot + jax.lax.broadcasted_iota(jnp.int32, shape, 2)
  row_of_query = jax.lax.broadcasted_iota(jnp.int32, shape, 1) // groups
  allowed = jnp.zeros(shape, bool)
  lowest, highest = jnp.int32(jnp.iinfo(jnp.int32).max), jnp.int32(0)
  for row in range(tile_rows):
    index = this_tile * tile_rows + row
    reads_block = row_source[index] == block_source
    row_start = jnp.where(reads_block, start[index], jnp.iinfo(jnp.int32).max)
    row_end = jnp.where(reads_block, end[index], 0)
    allowed |= (row_of_query == row) & (slots >= row_start) & (slots < row_end)
    lowest, highest = (
      jnp.minimum(lowest, row_start),
      jnp.maximum(highest, row_end),
    )

  scores = jnp.einsum(
    'kqh,kch->kqc',
    query[...],
    keys[...].astype(query.dtype),
    preferred_element_type=jnp.float32,
  )
  if is_int8:
    scores = scores * key_scale[...][:, None]
  scores = jnp.where(allowed, soft_cap(scores * scale, cap), -jnp.inf)
  new_peak = jnp.maximum(peak[...], jnp.max(scores, axis=2, keepdims=True))
  shrink = jnp.exp(peak[...] - new_peak)
  weights = jnp.exp(scores - new_peak)
  peak[...] = new_peak
  total[...] = total[...] * shrink + jnp.sum(weights, axis=2, keepdims=True)
  # Slots out of range may hold anything, and 0 · ∞ is NaN.
  columns = first_slot + jax.lax.broadcasted_iota(jnp.int32, (1, size, 1), 1)
  is_valid = (columns >= lowest) & (columns < highest)
  block_values = jnp.where(is_valid, values[...].astype(query.dtype), 0)
  if is_int8:
    columns_of_scale = first_slot + jax.lax.broadcasted_iota(
      jnp.int32, (1, 1, size), 2
    )
    is_valid = (columns_of_scale >= lowest) & (columns_of_scale < highest)
    weights = weights * jnp.where(is_valid, value_scale[...][:, None], 0)
  weighted_values[...] = weighted_values[...] * shrink + jnp.einsum(
    'kqc,kch->kqh',
    weights.astype(query.dtype),
    block_values,
    preferred_element_type=jnp.float32,
  )


def blocks_to_read(slots: SlotRange, size: int, length: int) -> BlockList:
  """Lists the blocks with a slot in a range.

  Args:
    slots: ranges of slots.
    size: slots per block.
    length: slots per source.
  """
  num_ranges = slots.start.shape[0]
  blocks = -(-length // size)
  first = slots.start // size
  count = jnp.where(
    slots.end > slots.start, (slots.end - 1) // size - first + 1, 0
  )
  end = jnp.cumsum(count)
  index = jnp.arange(num_ranges * blocks)
  range_index = jnp.searchsorted(end, index, side='right', method='compare_all')
  range_index = jnp.minimum(range_index, num_ranges - 1).astype(jnp.int32)
  block = first[range_index] + index - (end - count)[range_index]
  return BlockList(
    length=end[-1],
    range_index=range_index,
    block=jnp.clip(block, 0, blocks - 1).astype(jnp.int32),
  )


def block_size(slots: int, bytes_per_slot: int) -> int:
  """Slots per block: about `STEP_BYTES`, at most a whole source.

  >>> block_size(10240, 512), block_size(100, 512)
  (1024, 100)
  """
  size = max(STEP_BYTES // bytes_per_slot // LANES, 1) * LANES
  return min(size, slots)
