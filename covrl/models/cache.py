# SPDX-License-Identifier: Apache-2.0
"""KV cache for decoding: prompts once, and one row per response.

Rows that continue the same prompt share its keys and values. Layers share one
array; a step writes the new token of every row and layer at once, so that XLA
updates the array in place. Layers with a sliding window have another, a ring of
as many slots as the largest window.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from covrl.models.cache_writes import (
  exceeds_vmem,
  slots_in_whole_tiles,
  write_by_shard,
  write_slots,
)
from covrl.models.int8 import Int8Vectors, Vectors, as_stored, zeros_stored
from covrl.models.layers import constrain
from covrl.parallel import sharding


def repeat_rows(
  x: Shaped[Array, '...'], count: int, *, axis: int = 0
) -> Shaped[Array, '...']:
  """Repeats each row `count` times consecutively, like `jnp.repeat`.

  A broadcast and a reshape, so that rows split over a mesh are not moved.

  >>> repeat_rows(jnp.array([1, 2]), 2).tolist()
  [1, 1, 2, 2]
  """
  shape = x.shape
  repeated = jnp.broadcast_to(
    jnp.expand_dims(x, axis + 1),
    (*shape[: axis + 1], count, *shape[axis + 1 :]),
  )
  return repeated.reshape(
    *shape[:axis], shape[axis] * count, *shape[axis + 1 :]
  )


class PromptCache(NamedTuple):
  """Keys and values of prompts, padded on the left.

  Attributes:
    keys: keys with rotary embeddings, `[L, P, K, C, h]`.
    values: values of the same tokens.
    lengths: number of tokens of each prompt; they are in the last slots.
    experts: experts that each token was routed to, see `ExpertRecordSpec`; `None`
      unless they were requested.
  """

  keys: Vectors
  values: Vectors
  lengths: Int[Array, ' P']
  experts: UInt[Array, 'P C L k'] | None = None

  def as_int8(self) -> PromptCache:
    """The cache with keys and values as integers."""
    keys, values = (
      x if isinstance(x, Int8Vectors) else Int8Vectors.of(x)
      for x in (self.keys, self.values)
    )
    return self._replace(keys=keys, values=values)

  def with_columns(
    self,
    keys: Float[Array, 'L P K c h'],
    values: Float[Array, 'L P K c h'],
    experts: UInt[Array, 'P c L k'] | None,
    start: Int[Array, ''],
  ) -> PromptCache:
    """Replaces the slots from `start` on."""
    write = functools.partial(
      jax.lax.dynamic_update_slice_in_dim, start_index=start
    )
    written = self._replace(
      keys=write(self.keys, keys, axis=3),
      values=write(self.values, values, axis=3),
    )
    if self.experts is None or experts is None:
      return written
    return written._replace(experts=write(self.experts, experts, axis=1))


class ResponseRing(NamedTuple):
  """The newest tokens of responses, in the layers with a window.

  Slot `t % R` of `R` slots holds token `t`; a window is not longer than `R`.

  Attributes:
    keys: keys of the tokens, `[l, S, K, R, h]`.
    values: values of the same tokens.
  """

  keys: Vectors
  values: Vectors


class LayerIndices(NamedTuple):
  """Indices of a layer in the arrays of a cache.

  Attributes:
    layer: index among all layers, in the arrays of prompts.
    response_layer: index in the arrays of responses, one for layers with a ring
      and one for layers without; `None` if no layer has a ring.
    in_ring: whether the layer has a ring; `None` if no layer has one.
  """

  layer: Int[Array, '*L']
  response_layer: Int[Array, '*L'] | None
  in_ring: Bool[Array, '*L'] | None


class DecodeCache(NamedTuple):
  """Keys and values of prompts and of the responses that continue them.

  Attributes:
    prompts: the prompts.
    prompt_index: index of each row's prompt, among the prompts of the row's shard;
      see `num_shards`.
    keys: keys of the responses' tokens, `[l, S, K, C, h]`, in the layers without
      a ring; slot `t` holds token `t`.
    values: values of the same tokens.
    length: number of tokens of each row in the cache.
    experts: experts that each row's last token was routed to, see
      `ExpertRecordSpec`; `None` unless they were requested.
    ring: keys and values of layers with a window; `None` if none has a ring.
  """

  prompts: PromptCache
  prompt_index: Int[Array, ' S']
  keys: Vectors
  values: Vectors
  length: Int[Array, ' S']
  experts: UInt[Array, 'S L k'] | None = None
  ring: ResponseRing | None = None

  @classmethod
  def empty(
    cls,
    prompts: PromptCache,
    prompt_index: Int[Array, ' S'],
    slots: int,
    windows: tuple[int, ...] = (),
  ) -> DecodeCache:
    """Creates rows without any token.

    Args:
      prompts: the prompts.
      prompt_index: index of each row's prompt, see `DecodeCache`.
      slots: tokens per row. Large caches on TPUs have a few more, for whole
        tiles.
      windows: sliding window of each layer in tokens, 0 for none. Layers whose
        window is shorter than a row keep a ring; without `windows`, none does.
    """
    layers, _, heads, _, width = prompts.keys.shape
    rows, dtype = prompt_index.shape[0], prompts.keys.dtype

    def zeros(layers: int, slots: int) -> Vectors:
      slots = slots_in_whole_tiles((layers, rows, heads, slots, width), dtype)
      zeros = zeros_stored((layers, rows, heads, slots, width), prompts.keys)
      return jax.tree.map(_shard_heads, zeros)

    ring_size = max((w for w in windows if 0 < w < slots), default=0)
    num_in_ring = sum(0 < window <= ring_size for window in windows)
    without_ring = zeros(layers - num_in_ring, slots)
    ring = zeros(num_in_ring, ring_size) if ring_size else None
    return cls(
      prompts=prompts,
      prompt_index=prompt_index,
      keys=without_ring,
      values=without_ring,
      length=jnp.zeros_like(prompt_index),
      ring=None if ring is None else ResponseRing(ring, ring),
    )

  def position(self) -> Int[Array, ' S']:
    """Index of each row's next token within its sequence."""
    shards = num_shards(self)
    lengths = self.prompts.lengths.reshape(shards, -1)
    prompt_index = self.prompt_index.reshape(shards, -1)
    row_lengths = jnp.take_along_axis(lengths, prompt_index, axis=1)
    return row_lengths.reshape(-1) + self.length

  def append(
    self,
    keys: Float[Array, 'L S K h'],
    values: Float[Array, 'L S K h'],
    live: Bool[Array, ' S'],
    windows: tuple[int, ...] = (),
  ) -> DecodeCache:
    """Appends one token to each live row.

    Args:
      keys: the tokens' keys in every layer.
      values: the tokens' values.
      live: rows to append to; a row without an empty slot is not changed.
      windows: see `empty`.
    """
    # Slots beyond the last are dropped.
    slots = self.keys.shape[3]
    slot = jnp.where(live, self.length, slots)
    cache = self._replace(length=self.length + live)
    if self.ring is None:
      return cache._replace(
        keys=self._write(self.keys, keys, slot),
        values=self._write(self.values, values, slot),
      )
    without_ring, with_ring = self._layers_by_ring(windows)
    ring_size = self.ring.keys.shape[3]
    ring_slot = jnp.where(slot < slots, slot % ring_size, ring_size)
    return cache._replace(
      keys=self._write(self.keys, keys[without_ring], slot),
      values=self._write(self.values, values[without_ring], slot),
      ring=ResponseRing(
        self._write(self.ring.keys, keys[with_ring], ring_slot),
        self._write(self.ring.values, values[with_ring], ring_slot),
      ),
    )

  def with_contents(
    self,
    keys: Float[Array, 'L S K n h'],
    values: Float[Array, 'L S K n h'],
    length: Int[Array, ' S'],
    windows: tuple[int, ...] = (),
  ) -> DecodeCache:
    """Replaces the contents of the rows by the first of the given tokens.

    Args:
      keys: the tokens' keys in every layer; at most as many as a row has slots.
      values: the tokens' values.
      length: number of tokens of each row.
      windows: see `empty`.
    """
    count = keys.shape[3]

    def write(stored: Vectors, new: Array) -> Vectors:
      return jax.tree.map(
        lambda stored, new: stored.at[:, :, :, :count].set(new),
        stored,
        as_stored(new, stored),
      )

    if self.ring is None:
      return self._replace(
        keys=write(self.keys, keys),
        values=write(self.values, values),
        length=length,
      )
    without_ring, with_ring = self._layers_by_ring(windows)
    ring_size = self.ring.keys.shape[3]
    token = newest_tokens(length, jnp.arange(ring_size), ring_size)
    token = jnp.maximum(token, 0)[None, :, None, :, None]

    def ring_of(new: Array, stored: Vectors) -> Vectors:
      return as_stored(jnp.take_along_axis(new, token, axis=3), stored)

    return self._replace(
      keys=write(self.keys, keys[without_ring]),
      values=write(self.values, values[without_ring]),
      length=length,
      ring=ResponseRing(
        ring_of(keys[with_ring], self.ring.keys),
        ring_of(values[with_ring], self.ring.values),
      ),
    )

  def layer_indices(self, windows: tuple[int, ...]) -> LayerIndices:
    """Indices of every layer in the arrays of the cache, stacked to scan over.

    Args:
      windows: see `empty`.
    """
    layers = self.prompts.keys.shape[0]
    layer = jnp.arange(layers, dtype=jnp.int32)
    if self.ring is None:
      return LayerIndices(layer, None, None)
    response_layer = np.zeros(layers, np.int32)
    without_ring, with_ring = self._layers_by_ring(windows)
    for layers_of_array in (without_ring, with_ring):
      response_layer[layers_of_array] = np.arange(len(layers_of_array))
    has_ring = jnp.zeros(layers, bool).at[with_ring].set(True)
    return LayerIndices(layer, jnp.asarray(response_layer), has_ring)

  def _layers_by_ring(
    self, windows: tuple[int, ...]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the layers without and with a ring."""
    assert self.ring is not None
    count = self.ring.keys.shape[0]
    # The layers with the shortest windows have a ring, see `empty`.
    longest_in_ring = sorted(window for window in windows if window)[count - 1]
    has_ring = np.array([0 < window <= longest_in_ring for window in windows])
    return np.flatnonzero(~has_ring), np.flatnonzero(has_ring)

  def _write(
    self, stored: Vectors, new: Float[Array, 'L S K h'], slot: Int[Array, ' S']
  ) -> Vectors:
    """Writes one slot of each row; those beyond the last are dropped."""

    def write(stored: Array, new: Array) -> Array:
      if exceeds_vmem(stored):
        return write_by_shard(row_axes(self), stored, new, slot)
      return write_slots(stored, new, slot)

    return jax.tree.map(write, stored, as_stored(new, stored))


def newest_tokens(
  length: Int[Array, ' S'], slot: Int[Array, ' C'], size: int
) -> Int[Array, 'S C']:
  """Tokens in slots of rings of `size` slots; negative for empty ones.

  >>> newest_tokens(jnp.array([5]), jnp.arange(3), 3).tolist()
  [[3, 4, 2]]
  """
  last = length[:, None] - 1
  return last - (last - slot) % size


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


def _shard_heads(
  heads: Shaped[Array, 'L S K C *h'],
) -> Shaped[Array, 'L S K C *h']:
  """Shards rows and heads as attention does."""
  axes = ('layers', 'batch', 'attention_heads', None, None)[: heads.ndim]
  return constrain(heads, *axes)
