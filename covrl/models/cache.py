# SPDX-License-Identifier: Apache-2.0
"""Keys and values of tokens already read, kept between decoding steps.

All layers share one array, which travels through the loops as a carry and is
written one slot at a time: XLA then updates it in place, where stacking each
layer's output anew would copy the whole cache every step.
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
  """Repeats each row `count` times, neighbours together.

  A broadcast and a reshape, so that rows split over a mesh stay where they
  are.

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
  """What decoding remembers, for all layers.

  Attributes:
    keys: rotated keys; slot `c` of row `s` holds one token.
    values: their values.
    mask: true for the slots that hold a real token of the row.
  """

  keys: Float[Array, 'L S K C h']
  values: Float[Array, 'L S K C h']
  mask: Bool[Array, 'S C']

  def repeat(self, group_size: int) -> KVCache:
    """Gives every row `group_size` continuations, neighbours together."""
    return KVCache(
      keys=repeat_rows(self.keys, group_size, axis=1),
      values=repeat_rows(self.values, group_size, axis=1),
      mask=repeat_rows(self.mask, group_size),
    )

  def extended(self, length: int) -> KVCache:
    """The same with empty slots after what there is, `length` in all."""
    room = length - self.mask.shape[1]
    after = (*((0, 0),) * 3, (0, room), (0, 0))
    return KVCache(
      keys=_apart(jnp.pad(self.keys, after)),
      values=_apart(jnp.pad(self.values, after)),
      mask=jnp.pad(self.mask, ((0, 0), (0, room))),
    )


def _apart(heads: Float[Array, 'L S K C h']) -> Float[Array, 'L S K C h']:
  """On a mesh, rows and heads each where they are attended to."""
  return constrain(heads, 'layers', 'batch', 'attention_heads', None, None)


class LayerCache(NamedTuple):
  """One layer's view of the arrays that all layers share.

  Attributes:
    keys: of every layer.
    values: of every layer.
    layer: which layer is looking.
    slot: where the next tokens are written.
  """

  keys: Float[Array, 'L S K C h']
  values: Float[Array, 'L S K C h']
  layer: Int[Array, '']
  slot: Int[Array, '']

  @classmethod
  def of(
    cls, keys: Float[Array, 'S K C h'], values: Float[Array, 'S K C h']
  ) -> LayerCache:
    """A cache of one layer that holds just these."""
    zero = jnp.zeros((), jnp.int32)
    return cls(keys=keys[None], values=values[None], layer=zero, slot=zero)

  def write(
    self, keys: Float[Array, 'S K T h'], values: Float[Array, 'S K T h']
  ) -> LayerCache:
    """Stores the next tokens' keys and values, in place where XLA may."""
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
