# SPDX-License-Identifier: Apache-2.0
"""KV cache for decoding: prompts once, and one row per response.

Rows that continue the same prompt share its keys and values. All layers share
one array; a step writes the new token of every row and layer at once, so that
XLA updates the array in place.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from covrl.models.layers import constrain
from covrl.parallel import sharding

# Slots of a tile of a TPU's memory, of 16-bit numbers.
_TILE = 16
# Bytes of VMEM, into which XLA moves smaller arrays as a whole.
_VMEM = 2**27


def repeat_rows(
  x: Shaped[Array, '...'], count: int, *, axis: int = 0
) -> Shaped[Array, '...']:
  """Repeats each row `count` times in a row, like `jnp.repeat`.

  A broadcast and a reshape, so that rows split over a mesh are not moved.

  >>> repeat_rows(jnp.array([1, 2]), 2).tolist()
  [1, 1, 2, 2]
  """
  shape = x.shape
  wide = jnp.broadcast_to(
    jnp.expand_dims(x, axis + 1),
    (*shape[: axis + 1], count, *shape[axis + 1 :]),
  )
  return wide.reshape(*shape[:axis], shape[axis] * count, *shape[axis + 1 :])


class PromptCache(NamedTuple):
  """Keys and values of prompts, padded on the left.

  Attributes:
    keys: keys with rotary embeddings.
    values: values of the same tokens.
    lengths: number of tokens of each prompt; they are in the last slots.
    experts: experts that each token was routed to, see `ExpertRecord`; `None`
      unless they were asked for.
  """

  keys: Float[Array, 'L P K C h']
  values: Float[Array, 'L P K C h']
  lengths: Int[Array, ' P']
  experts: UInt[Array, 'P C L k'] | None = None


class DecodeCache(NamedTuple):
  """Keys and values of prompts and of the responses that continue them.

  Attributes:
    prompts: the prompts.
    prompt: index of each row's prompt, among the prompts of the row's shard;
      see `num_shards`.
    keys: keys of the responses' tokens; slot `t` holds token `t`.
    values: values of the same tokens.
    length: number of tokens of each row in the cache.
    experts: experts that each row's last token was routed to, see
      `ExpertRecord`; `None` unless they were asked for.
  """

  prompts: PromptCache
  prompt: Int[Array, ' S']
  keys: Float[Array, 'L S K C h']
  values: Float[Array, 'L S K C h']
  length: Int[Array, ' S']
  experts: UInt[Array, 'S L k'] | None = None

  @classmethod
  def empty(
    cls, prompts: PromptCache, prompt: Int[Array, ' S'], slots: int
  ) -> DecodeCache:
    """Creates rows without any token.

    Args:
      prompts: the prompts.
      prompt: index of each row's prompt, see `DecodeCache`.
      slots: tokens per row. Large caches on TPUs have a few more, for whole
        tiles: without, XLA stores them in an order that every segment changes.
    """
    layers, _, heads, _, width = prompts.keys.shape
    shape = (layers, prompt.shape[0], heads, slots, width)
    if _written_in_turn(jax.ShapeDtypeStruct(shape, prompts.keys.dtype)):
      shape = (*shape[:3], -(-slots // _TILE) * _TILE, width)
    zeros = _shard_heads(jnp.zeros(shape, prompts.keys.dtype))
    return cls(prompts, prompt, zeros, zeros, jnp.zeros_like(prompt))

  def position(self) -> Int[Array, ' S']:
    """Index of each row's next token within its sequence."""
    shards = num_shards(self)
    lengths = self.prompts.lengths.reshape(shards, -1)
    prompt = self.prompt.reshape(shards, -1)
    taken = jnp.take_along_axis(lengths, prompt, axis=1)
    return taken.reshape(-1) + self.length

  def append(
    self,
    keys: Float[Array, 'L S K h'],
    values: Float[Array, 'L S K h'],
    live: Bool[Array, ' S'],
  ) -> DecodeCache:
    """Appends one token to each live row.

    Args:
      keys: the tokens' keys in every layer.
      values: the tokens' values.
      live: rows to append to; a row without an empty slot is not changed.
    """
    # Slots beyond the last are dropped.
    slot = jnp.where(live, self.length, self.keys.shape[3])
    write = write_slots
    if _written_in_turn(self.keys):
      write = functools.partial(_write_by_shard, row_axes(self))
    return self._replace(
      keys=write(self.keys, keys, slot),
      values=write(self.values, values, slot),
      length=self.length + live,
    )


def _written_in_turn(cache: Any) -> bool:
  """Whether a device's part of a cache is larger than a TPU's VMEM, on TPUs."""
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else mesh.size
  size = math.prod(cache.shape) * cache.dtype.itemsize // shards
  return sharding.platform() == 'tpu' and size > _VMEM


def write_slots(
  cache: Float[Array, 'L S K C h'],
  new: Float[Array, 'L S K h'],
  slot: Int[Array, ' S'],
) -> Float[Array, 'L S K C h']:
  """Writes one slot of each row; those beyond the last are dropped."""
  rows = jnp.arange(slot.shape[0])
  # Indexed axes come first.
  return cache.at[:, rows, :, slot].set(
    new.swapaxes(0, 1), mode='drop', unique_indices=True
  )


def write_slots_in_turn(
  cache: Float[Array, 'L S K C h'],
  new: Float[Array, 'L S K h'],
  slot: Int[Array, ' S'],
) -> Float[Array, 'L S K C h']:
  """Like `write_slots`, row by row.

  For a scatter into so large an array, XLA's TPU compiler copies all of it to
  another layout and back.
  """
  last = cache.shape[3] - 1

  def write(row: Int[Array, ''], cache: Array) -> Array:
    at = (0, row, 0, jnp.minimum(slot[row], last), 0)
    shape = (cache.shape[0], 1, cache.shape[2], 1, cache.shape[4])
    old = jax.lax.dynamic_slice(cache, at, shape)
    token = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)[:, :, :, None]
    token = jnp.where(slot[row] <= last, token, old)
    return _in_order(jax.lax.dynamic_update_slice(cache, token, at))

  return jax.lax.fori_loop(0, slot.shape[0], write, _in_order(cache))


def _in_order(cache: Array) -> Array:
  """Fixes the layout to that of the kernel that reads the cache."""
  order = Layout(major_to_minor=tuple(range(cache.ndim)))
  return with_layout_constraint(cache, order)


def _write_by_shard(
  rows: tuple[str, ...], cache: Array, new: Array, slot: Array
) -> Array:
  """`write_slots_in_turn` on every device, for its own rows and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return write_slots_in_turn(cache, new, slot)
  axes = ('layers', None, 'attention_heads', None, 'head_dim')
  heads = sharding.fitted_spec(
    mesh, axes, cache.shape, sharding.current_rules()
  )[2]
  of_cache, of_row = P(None, rows or None, heads), P(rows or None)
  return jax.shard_map(
    write_slots_in_turn,
    in_specs=(of_cache, of_cache, of_row),
    out_specs=of_cache,
    check_vma=False,
  )(cache, new, slot)


def num_shards(cache: DecodeCache) -> int:
  """Number of equal parts of prompts and rows on different devices.

  A row and its prompt are in the same part.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  return math.prod(mesh.shape[name] for name in row_axes(cache))


def row_axes(cache: DecodeCache) -> tuple[str, ...]:
  """Mesh axes that split both prompts and rows, on the current mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  count = math.gcd(cache.prompts.lengths.shape[0], cache.length.shape[0])
  spec = sharding.fitted_spec(
    mesh, ('batch',), (count,), sharding.current_rules()
  )
  return sharding.mesh_axes_of(spec[0])


def _shard_heads(heads: Float[Array, 'L S K C h']) -> Float[Array, 'L S K C h']:
  """Shards rows and heads as attention does."""
  return constrain(heads, 'layers', 'batch', 'attention_heads', None, None)
