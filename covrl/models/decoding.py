# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token per row on TPU, reading only what is remembered.

A Pallas kernel that goes through a list of blocks of the cache: those that hold
a token which some row may see. Rows that have ended have none; padding before a
prompt, slots not yet written and what a window hides are never read.
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

# What a kernel sees of an array; Pallas has no public name for its type.
Ref: TypeAlias = Any

# Bytes of keys and values that a step reads, about: few enough for what is read
# beyond the ends of a row to be little, and worth a step's fixed time.
STEP_BYTES = 2**19
# Slots of a block come in multiples of this.
LANES = 128


class Span(NamedTuple):
  """The slots that each row may see.

  Attributes:
    start: the first.
    end: after the last; `start` where the row sees nothing.
  """

  start: Int[Array, ' S']
  end: Int[Array, ' S']


class Steps(NamedTuple):
  """A list of blocks, each row's together.

  Attributes:
    length: how many there are; what follows them is not read.
    row: whose.
    block: which of the row's.
  """

  length: Int[Array, '']
  row: Int[Array, ' N']
  block: Int[Array, ' N']


def is_used(config: ModelConfig) -> bool:
  """Whether tokens are decoded by the kernel."""
  narrow = jnp.finfo(config.dtype).bits <= 32
  return sharding.platform() == 'tpu' and narrow


def attend_token(
  queries: Float[Array, 'S H h'],
  cache: LayerCache,
  span: Span,
  config: ModelConfig,
  *,
  interpret: Any = False,
) -> Float[Array, 'S H h']:
  """As `attend`, of one query per row over contiguous slots.

  Args:
    queries: `H` heads.
    cache: the new token's keys and values are in it.
    span: what each row may see; rows that see nothing get zeros.
    config: has scale and cap.
    interpret: whether to run the kernel in Python, for tests off TPU.
  """
  attend = functools.partial(
    _attend,
    scale=config.attention_scale or config.head_dim**-0.5,
    cap=config.attention_soft_cap,
    interpret=interpret,
  )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.are_all_axes_manual:
    return attend(queries, cache.keys, cache.values, cache.layer, span)
  rules = sharding.rules_in_use()
  axes = ('layers', 'batch', 'attention_heads', 'attended', 'head_dim')
  kept = sharding.fitted_spec(mesh, axes, cache.keys.shape, rules)
  heads, rows = jax.P(kept[1], kept[2], None), jax.P(kept[1])
  return jax.shard_map(
    attend,
    mesh=mesh,
    in_specs=(heads, kept, kept, jax.P(), rows),
    out_specs=heads,
    check_vma=False,
  )(queries, cache.keys, cache.values, cache.layer, span)


def _attend(
  queries: Float[Array, 'S H h'],
  keys: Float[Array, 'L S K C h'],
  values: Float[Array, 'L S K C h'],
  layer: Int[Array, ''],
  span: Span,
  *,
  scale: float,
  cap: float | None,
  interpret: Any,
) -> Float[Array, 'S H h']:
  """A device's part."""
  rows, heads, width = queries.shape
  kv_heads, slots = keys.shape[2:4]
  groups = heads // kv_heads
  size = block_size(slots, 2 * kv_heads * width * keys.dtype.itemsize)
  steps = steps_of(span, size, slots)

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
      grid=(steps.length,),
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
    # One layer of a cache that is full, and its queries: a step, at most.
    cost_estimate=pl.CostEstimate(
      flops=4 * rows * heads * slots * width,
      transcendentals=rows * heads * slots,
      bytes_accessed=2
      * rows
      * (kv_heads * slots + heads)
      * width
      * keys.dtype.itemsize,
    ),
    interpret=interpret,
    name='attend_token',
  )
  mixed = call(
    layer[None],
    steps.row,
    steps.block,
    span.start,
    span.end,
    queries.reshape(rows, kv_heads, groups, width),
    keys,
    values,
  )
  # A row that sees nothing is not written.
  sees = (span.end > span.start)[:, None, None]
  return jnp.where(sees, mixed.reshape(queries.shape), 0)


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
  """One block of one row: the softmax of what was seen so far goes on."""
  del layer
  step = pl.program_id(0)
  here, first_slot = row[step], block[step] * size

  @pl.when(first_slot <= start[here])
  def _begin() -> None:
    peak[...] = jnp.full_like(peak, -jnp.inf)
    total[...] = jnp.zeros_like(total)
    mixed[...] = jnp.zeros_like(mixed)

  slots = first_slot + jax.lax.broadcasted_iota(jnp.int32, (1, 1, size), 2)
  seen = (slots >= start[here]) & (slots < end[here])
  scores = jnp.einsum(
    'kgh,kch->kgc',
    query[...],
    keys[...],
    preferred_element_type=jnp.float32,
  )
  scores = jnp.where(seen, soft_cap(scores * scale, cap), -jnp.inf)
  highest = jnp.maximum(peak[...], jnp.max(scores, axis=2, keepdims=True))
  shrink = jnp.exp(peak[...] - highest)
  shares = jnp.exp(scores - highest)
  peak[...] = highest
  total[...] = total[...] * shrink + jnp.sum(shares, axis=2, keepdims=True)
  # What is beyond the ends may be anything, and 0 · ∞ is no number.
  columns = first_slot + jax.lax.broadcasted_iota(jnp.int32, (1, size, 1), 1)
  kept = (columns >= start[here]) & (columns < end[here])
  mixed[...] = mixed[...] * shrink + jnp.einsum(
    'kgc,kch->kgh',
    shares.astype(values.dtype),
    jnp.where(kept, values[...], 0),
    preferred_element_type=jnp.float32,
  )

  @pl.when(first_slot + size >= end[here])
  def _end() -> None:
    out[...] = (mixed[...] / total[...]).astype(out.dtype)


def steps_of(span: Span, size: int, slots: int) -> Steps:
  """The blocks that hold a slot which some row may see.

  Args:
    span: what each row may see.
    size: slots of a block.
    slots: of a row.
  """
  rows = span.start.shape[0]
  blocks = -(-slots // size)
  first = span.start // size
  count = jnp.where(
    span.end > span.start, (span.end - 1) // size - first + 1, 0
  )
  before = jnp.cumsum(count)
  place = jnp.arange(rows * blocks)
  row = jnp.searchsorted(before, place, side='right', method='compare_all')
  row = jnp.minimum(row, rows - 1).astype(jnp.int32)
  block = first[row] + place - (before - count)[row]
  return Steps(
    length=before[-1],
    row=row,
    block=jnp.clip(block, 0, blocks - 1).astype(jnp.int32),
  )


def block_size(slots: int, bytes_per_slot: int) -> int:
  """Slots of a block, of a row's: about so many bytes, or the whole row.

  >>> block_size(10240, 512), block_size(100, 512)
  (1024, 100)
  """
  size = max(STEP_BYTES // bytes_per_slot // LANES, 1) * LANES
  return min(size, slots)
