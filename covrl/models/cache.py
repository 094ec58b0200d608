# SPDX-License-Identifier: Apache-2.0
"""KV cache for decoding.

All layers share one array, which is the carry of the loops over layers and
tokens and is written one slot at a time: XLA then updates it in place, whereas
stacking each layer's output would copy the whole cache every step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from covrl.models.layers import constrain


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


class KVCache(NamedTuple):
  """Keys and values of all layers.

  Attributes:
    keys: keys with rotary embeddings; slot `c` of row `s` holds one token.
    values: values of the same tokens.
    mask: true for slots that hold a real token of the row.
  """

  keys: Float[Array, 'L S K C h']
  values: Float[Array, 'L S K C h']
  mask: Bool[Array, 'S C']

  def repeat(self, group_size: int) -> KVCache:
    """Repeats each row `group_size` times, one per response."""
    return KVCache(
      keys=repeat_rows(self.keys, group_size, axis=1),
      values=repeat_rows(self.values, group_size, axis=1),
      mask=repeat_rows(self.mask, group_size),
    )

  def pad_to(self, length: int) -> KVCache:
    """Appends empty slots, up to `length` slots per row."""
    empty = length - self.mask.shape[1]
    padding = (*((0, 0),) * 3, (0, empty), (0, 0))
    return KVCache(
      keys=_shard_heads(jnp.pad(self.keys, padding)),
      values=_shard_heads(jnp.pad(self.values, padding)),
      mask=jnp.pad(self.mask, ((0, 0), (0, empty))),
    )


def _shard_heads(heads: Float[Array, 'L S K C h']) -> Float[Array, 'L S K C h']:
  """Shards rows and heads as attention does."""
  return constrain(heads, 'layers', 'batch', 'attention_heads', None, None)


class LayerCache(NamedTuple):
  """View of one layer on the arrays that all layers share.

  Attributes:
    keys: keys of all layers.
    values: values of all layers.
    layer: index of this layer.
    slot: first slot that the next tokens are written to.
  """

  keys: Float[Array, 'L S K C h']
  values: Float[Array, 'L S K C h']
  layer: Int[Array, '']
  slot: Int[Array, '']

  @classmethod
  def of_one_layer(
    cls, keys: Float[Array, 'S K C h'], values: Float[Array, 'S K C h']
  ) -> LayerCache:
    """Creates a cache of one layer from its keys and values."""
    zero = jnp.zeros((), jnp.int32)
    return cls(keys=keys[None], values=values[None], layer=zero, slot=zero)

  def write(
    self, keys: Float[Array, 'S K T h'], values: Float[Array, 'S K T h']
  ) -> LayerCache:
    """Writes the next tokens' keys and values; XLA does it in place."""
    start = (self.layer, 0, 0, self.slot, 0)
    return self._replace(
      keys=jax.lax.dynamic_update_slice(self.keys, keys[None], start),
      values=jax.lax.dynamic_update_slice(self.values, values[None], start),
    )

  def read(
    self,
  ) -> tuple[Float[Array, 'S K C h'], Float[Array, 'S K C h']]:
    """This layer's keys and values."""
    return (
      jax.lax.dynamic_index_in_dim(self.keys, self.layer, keepdims=False),
      jax.lax.dynamic_index_in_dim(self.values, self.layer, keepdims=False),
    )
