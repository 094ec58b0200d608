# SPDX-License-Identifier: Apache-2.0
"""Decode attention on TPU: one query per row over the KV cache.

A Pallas kernel that iterates over a list of cache blocks: those with a slot that
some row attends to. Rows that have ended have none; padding before a prompt,
slots not yet written and tokens outside a sliding window are not read.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from covrl.models.cache import LayerCache
from covrl.models.config import ModelConfig
from covrl.models.layers import soft_cap
from covrl.parallel import sharding

# Reference to an array inside a kernel; Pallas has no public name for its type.
Ref: TypeAlias = Any

# Approximate bytes of keys and values read per step: few, so that little is read
# beyond the ends of a row, and enough to amortise a step's fixed time.
STEP_BYTES = 2**19
# Block sizes are multiples of this number of slots.
LANES = 128


class SlotRange(NamedTuple):
  """Contiguous range of cache slots that each row attends to.

  Attributes:
    start: first slot.
    end: one past the last slot; equal to `start` if the range is empty.
  """

  start: Int[Array, ' S']
  end: Int[Array, ' S']


class BlockList(NamedTuple):
  """List of cache blocks to read, those of a row contiguous.

  Attributes:
    length: number of valid entries; the rest is ignored.
    row: row of each block.
    block: index of each block within its row.
  """

  length: Int[Array, '']
  row: Int[Array, ' N']
  block: Int[Array, ' N']


def uses_kernel(config: ModelConfig) -> bool:
  """Whether decoding uses the kernel."""
  narrow = jnp.finfo(config.dtype).bits <= 32
  return sharding.platform() == 'tpu' and narrow


def attend_token(
  queries: Float[Array, 'S H h'],
  cache: LayerCache,
  slots: SlotRange,
  config: ModelConfig,
  *,
  interpret: Any = False,
) -> Float[Array, 'S H h']:
  """Attention of one query per row over a contiguous range of slots.

  Args:
    queries: `H` heads.
    cache: KV cache that includes the new token.
    slots: range that each row attends to; rows with an empty range get zeros.
    config: has the scale and the soft cap.
    interpret: whether to run the kernel in interpret mode, for tests.
  """
  attend = functools.partial(
    _attend_local,
    scale=config.attention_scale or config.head_dim**-0.5,
    cap=config.attention_soft_cap,
    interpret=interpret,
  )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.are_all_axes_manual:
    return attend(queries, cache.keys, cache.values, cache.layer, slots)
  rules = sharding.current_rules()
  axes = ('layers', 'batch', 'attention_heads', 'attended', 'head_dim')
  kept = sharding.fitted_spec(mesh, axes, cache.keys.shape, rules)
  heads, rows = jax.P(kept[1], kept[2], None), jax.P(kept[1])
  return jax.shard_map(
    attend,
    mesh=mesh,
    in_specs=(heads, kept, kept, jax.P(), rows),
    out_specs=heads,
    check_vma=False,
  )(queries, cache.keys, cache.values, cache.layer, slots)


def _attend_local(
  queries: Float[Array, 'S H h'],
  keys: Float[Array, 'L S K C h'],
  values: Float[Array, 'L S K C h'],
  layer: Int[Array, ''],
  slots: SlotRange,
  *,
  scale: float,
  cap: float | None,
  interpret: Any,
) -> Float[Array, 'S H h']:
  """Attention on one device."""
  rows, heads, width = queries.shape
  kv_heads, length = keys.shape[2:4]
  groups = heads // kv_heads
  size = block_size(length, 2 * kv_heads * width * keys.dtype.itemsize)
  blocks = blocks_to_read(slots, size, length)

  def at_row(i: Any, layer: Ref, row: Ref, *_: Ref) -> tuple[Any, ...]:
    del layer
    return row[i], 0, 0, 0

  def at_block(i: Any, layer: Ref, row: Ref, block: Ref, *_: Ref) -> Any:
    return layer[0], row[i], 0, block[i], 0

  of_row = pl.BlockSpec((None, kv_heads, groups, width), at_row)
  of_cache = pl.BlockSpec((None, None, kv_heads, size, width), at_block)
  call = pl.pallas_call(
    functools.partial(_kernel, size=size, scale=scale, cap=cap),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=5,
      grid=(blocks.length,),
      in_specs=[of_row, of_cache, of_cache],
      out_specs=of_row,
      scratch_shapes=[
        pltpu.VMEM((kv_heads, groups, 1), jnp.float32),
        pltpu.VMEM((kv_heads, groups, 1), jnp.float32),
        pltpu.VMEM((kv_heads, groups, width), jnp.float32),
      ],
    ),
    out_shape=jax.ShapeDtypeStruct(
      (rows, kv_heads, groups, width), queries.dtype
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('arbitrary',)),
    # An upper bound: all slots of one layer.
    cost_estimate=pl.CostEstimate(
      flops=4 * rows * heads * length * width,
      transcendentals=rows * heads * length,
      bytes_accessed=2
      * rows
      * (kv_heads * length + heads)
      * width
      * keys.dtype.itemsize,
    ),
    interpret=interpret,
    name='attend_token',
  )
  mixed = call(
    layer[None],
    blocks.row,
    blocks.block,
    slots.start,
    slots.end,
    queries.reshape(rows, kv_heads, groups, width),
    keys,
    values,
  )
  # Rows with an empty range are not written by the kernel.
  is_written = (slots.end > slots.start)[:, None, None]
  return jnp.where(is_written, mixed.reshape(queries.shape), 0)


def _kernel(
  layer: Ref,
  row: Ref,
  block: Ref,
  start: Ref,
  end: Ref,
  query: Ref,
  keys: Ref,
  values: Ref,
  out: Ref,
  peak: Ref,
  total: Ref,
  mixed: Ref,
  *,
  size: int,
  scale: float,
  cap: float | None,
) -> None:
  """Kernel of one block: updates the row's online softmax."""
  del layer
  step = pl.program_id(0)
  this, first_slot = row[step], block[step] * size

  @pl.when(first_slot <= start[this])
  def _begin() -> None:
    peak[...] = jnp.full_like(peak, -jnp.inf)
    total[...] = jnp.zeros_like(total)
    mixed[...] = jnp.zeros_like(mixed)

  slots = first_slot + jax.lax.broadcasted_iota(jnp.int32, (1, 1, size), 2)
  in_range = (slots >= start[this]) & (slots < end[this])
  scores = jnp.einsum(
    'kgh,kch->kgc',
    query[...],
    keys[...],
    preferred_element_type=jnp.float32,
  )
  scores = jnp.where(in_range, soft_cap(scores * scale, cap), -jnp.inf)
  highest = jnp.maximum(peak[...], jnp.max(scores, axis=2, keepdims=True))
  shrink = jnp.exp(peak[...] - highest)
  weights = jnp.exp(scores - highest)
  peak[...] = highest
  total[...] = total[...] * shrink + jnp.sum(weights, axis=2, keepdims=True)
  # Slots out of range may hold anything, and 0 · ∞ is NaN.
  columns = first_slot + jax.lax.broadcasted_iota(jnp.int32, (1, size, 1), 1)
  is_valid = (columns >= start[this]) & (columns < end[this])
  mixed[...] = mixed[...] * shrink + jnp.einsum(
    'kgc,kch->kgh',
    weights.astype(values.dtype),
    jnp.where(is_valid, values[...], 0),
    preferred_element_type=jnp.float32,
  )

  @pl.when(first_slot + size >= end[this])
  def _end() -> None:
    out[...] = (mixed[...] / total[...]).astype(out.dtype)


def blocks_to_read(slots: SlotRange, size: int, length: int) -> BlockList:
  """Lists the cache blocks with a slot that some row attends to.

  Args:
    slots: range that each row attends to.
    size: slots per block.
    length: slots per row.
  """
  rows = slots.start.shape[0]
  blocks = -(-length // size)
  first = slots.start // size
  count = jnp.where(
    slots.end > slots.start, (slots.end - 1) // size - first + 1, 0
  )
  before = jnp.cumsum(count)
  index = jnp.arange(rows * blocks)
  row = jnp.searchsorted(before, index, side='right', method='compare_all')
  row = jnp.minimum(row, rows - 1).astype(jnp.int32)
  block = first[row] + index - (before - count)[row]
  return BlockList(
    length=before[-1],
    row=row,
    block=jnp.clip(block, 0, blocks - 1).astype(jnp.int32),
  )


def block_size(slots: int, bytes_per_slot: int) -> int:
  """Slots per block: about `STEP_BYTES`, at most a whole row.

  >>> block_size(10240, 512), block_size(100, 512)
  (1024, 100)
  """
  size = max(STEP_BYTES // bytes_per_slot // LANES, 1) * LANES
  return min(size, slots)
