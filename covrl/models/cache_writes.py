# SPDX-License-Identifier: Apache-2.0
"""Writes of one token per row into a KV cache, in place on every platform."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import P
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Int, Shaped

from covrl.parallel import sharding

# Slots per tile of a TPU's memory layout, for 16-bit numbers.
_TILE_SLOTS = 16
# Bytes of VMEM; XLA moves smaller arrays there as a whole.
_VMEM_BYTES = 2**27


def slots_in_whole_tiles(shape: tuple[int, ...], dtype: Any) -> int:
  """Number of slots of a cache, on TPUs rounded up to whole tiles if it is large.

  With a partial tile XLA would store such a cache in another layout, and convert
  it in every segment of decoding.

  Args:
    shape: shape of the keys, `[L, S, K, C, h]`.
    dtype: their type.
  """
  if not exceeds_vmem(jax.ShapeDtypeStruct(shape, dtype)):
    return shape[3]
  tile = _TILE_SLOTS * max(2 // jnp.dtype(dtype).itemsize, 1)
  return -(-shape[3] // tile) * tile


def exceeds_vmem(cache: Any) -> bool:
  """Whether the part of a cache on one device exceeds VMEM; false except on TPUs."""
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else mesh.size
  size = math.prod(cache.shape) * cache.dtype.itemsize // shards
  return sharding.platform() == 'tpu' and size > _VMEM_BYTES


def write_slots(
  cache: Shaped[Array, 'L S K C *h'],
  new: Shaped[Array, 'L S K *h'],
  slot: Int[Array, ' S'],
) -> Shaped[Array, 'L S K C *h']:
  """Writes one slot of each row; slots beyond the last are dropped."""
  rows = jnp.arange(slot.shape[0])
  # Indexed axes come first.
  return cache.at[:, rows, :, slot].set(
    new.swapaxes(0, 1), mode='drop', unique_indices=True
  )


def write_slots_by_row(
  cache: Shaped[Array, 'L S K C *h'],
  new: Shaped[Array, 'L S K *h'],
  slot: Int[Array, ' S'],
) -> Shaped[Array, 'L S K C *h']:
  """Like `write_slots`, row by row.

  For a scatter into so large an array, XLA's TPU compiler copies all of it to
  another layout and back.
  """
  last_slot = cache.shape[3] - 1

  def write(row: Int[Array, ''], cache: Array) -> Array:
    start = (
      0,
      row,
      0,
      jnp.minimum(slot[row], last_slot),
      *(0,) * (cache.ndim - 4),
    )
    shape = (cache.shape[0], 1, cache.shape[2], 1, *cache.shape[4:])
    old_token = jax.lax.dynamic_slice(cache, start, shape)
    token = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)[:, :, :, None]
    token = jnp.where(slot[row] <= last_slot, token, old_token)
    return _row_major(jax.lax.dynamic_update_slice(cache, token, start))

  return jax.lax.fori_loop(0, slot.shape[0], write, _row_major(cache))


def _row_major(cache: Array) -> Array:
  """Fixes the row-major layout of the kernel that reads the cache."""
  layout = Layout(major_to_minor=tuple(range(cache.ndim)))
  return with_layout_constraint(cache, layout)


def write_by_shard(
  row_axes: tuple[str, ...], cache: Array, new: Array, slot: Array
) -> Array:
  """Runs `write_slots_by_row` on every device, for its own rows and heads.

  Args:
    row_axes: mesh axes that split the rows.
    cache: see `write_slots`.
    new: see `write_slots`.
    slot: see `write_slots`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return write_slots_by_row(cache, new, slot)
  axes = ('layers', None, 'attention_heads', None, 'head_dim')[: cache.ndim]
  heads = sharding.fitted_spec(
    mesh, axes, cache.shape, sharding.current_rules()
  )[2]
  cache_spec, row_spec = P(None, row_axes or None, heads), P(row_axes or None)
  return jax.shard_map(
    write_slots_by_row,
    in_specs=(cache_spec, cache_spec, row_spec),
    out_specs=cache_spec,
    check_vma=False,
  )(cache, new, slot)
