# SPDX-License-Identifier: Apache-2.0
"""KV cache for decoding: prompts once, and one row per response.

Rows that continue the same prompt share its keys and values. All layers share
one array; a step writes the new token of every row and layer at once, so that
XLA updates the array in place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from covrl.models.layers import constrain
from covrl.parallel import sharding


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
  """

  keys: Float[Array, 'L P K C h']
  values: Float[Array, 'L P K C h']
  lengths: Int[Array, ' P']


class DecodeCache(NamedTuple):
  """Keys and values of prompts and of the responses that continue them.

  Attributes:
    prompts: the prompts.
    prompt: index of each row's prompt, among the prompts of the row's shard;
      see `num_shards`.
    keys: keys of the responses' tokens; slot `t` holds token `t`.
    values: values of the same tokens.
    length: number of tokens of each row in the cache.
  """

  prompts: PromptCache
  prompt: Int[Array, ' S']
  keys: Float[Array, 'L S K C h']
  values: Float[Array, 'L S K C h']
  length: Int[Array, ' S']

  @classmethod
  def empty(
    cls, prompts: PromptCache, prompt: Int[Array, ' S'], slots: int
  ) -> DecodeCache:
    """Creates rows without any token.

    Args:
      prompts: the prompts.
      prompt: index of each row's prompt, see `DecodeCache`.
      slots: tokens per row.
    """
    layers, _, heads, _, width = prompts.keys.shape
    shape = (layers, prompt.shape[0], heads, slots, width)
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
    rows = jnp.arange(live.shape[0])
    # Slots beyond the last are dropped.
    slot = jnp.where(live, self.length, self.keys.shape[3])

    def write(cache: Array, new: Array) -> Array:
      # Indexed axes come first.
      return cache.at[:, rows, :, slot].set(
        new.swapaxes(0, 1), mode='drop', unique_indices=True
      )

    return self._replace(
      keys=write(self.keys, keys),
      values=write(self.values, values),
      length=self.length + live,
    )


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
