# SPDX-License-Identifier: Apache-2.0
"""Sums over the sequences of a batch, whether a row holds one or several.

Tokens are compared with tokens of their own stretch of the row, and stretches
only by the sequences at their ends: no scatter (a sort, on TPU), and on a mesh
that splits rows, or the tokens of a row, nothing but those ends is moved.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

# Published implementations add this to a count before they divide by it. In
# float32 it vanishes; in float64 it is what agreement to 1e-12 takes.
COUNT_EPSILON = 1e-8

# A row is cut into so many stretches, and each of them into so many again: few
# where tokens of a row may lie on several devices.
_STRETCHES = (4, 16)


def sequence_sums(
  values: Shaped[Array, 'B T'], segment_ids: Int[Array, 'B T'] | None
) -> Shaped[Array, 'B T']:
  """Gives every token the sum of `values` over its sequence.

  Args:
    values: numbers to add, 0 for tokens of no sequence.
    segment_ids: equal for the tokens of a sequence, which lie side by side in
      one row; `None` where a row is one sequence.

  >>> ids = jnp.array([[1, 1, 2, 2, 2]])
  >>> sequence_sums(jnp.array([[1, 2, 3, 4, 5]]), ids)
  Array([[ 3,  3, 12, 12, 12]], dtype=int32)
  """
  if segment_ids is None:
    total = jnp.sum(values, axis=1, keepdims=True, dtype=values.dtype)
    return jnp.broadcast_to(total, values.shape)
  return _add_up(segment_ids, values)


@jax.custom_vjp
def _add_up(
  ids: Int[Array, 'B T'], values: Shaped[Array, 'B T']
) -> Shaped[Array, 'B T']:
  return _sums_within(ids, values, _STRETCHES)


def _add_up_forward(
  ids: Int[Array, 'B T'], values: Shaped[Array, 'B T']
) -> tuple[Shaped[Array, 'B T'], Int[Array, 'B T']]:
  return _add_up(ids, values), ids


def _add_up_backward(
  ids: Int[Array, 'B T'], signal: Shaped[Array, 'B T']
) -> tuple[None, Shaped[Array, 'B T']]:
  """Adding up over sequences is its own transpose."""
  return None, _add_up(ids, signal)


_add_up.defvjp(_add_up_forward, _add_up_backward)


def _sums_within(
  ids: Int[Array, '*B T'],
  values: Shaped[Array, '*B T'],
  stretches: tuple[int, ...],
) -> Shaped[Array, '*B T']:
  """For each entry, the sum of the values whose id is its own."""
  length = ids.shape[-1]
  if not stretches or length < stretches[0]:
    same = ids[..., :, None] == ids[..., None, :]
    return _sum_where(same, values[..., None, :], axes=(-1,))
  count, *rest = stretches
  fill = [*[(0, 0)] * (ids.ndim - 1), (0, -length % count)]
  ids, values = (
    jnp.pad(x, fill).reshape(*x.shape[:-1], count, -1) for x in (ids, values)
  )
  sums = _sums_within(ids, values, (*rest,))
  # A sequence of several stretches is at an end of each, or at both.
  ends, at_ends = (
    jnp.stack([x[..., 0], x[..., -1]], axis=-1) for x in (ids, sums)
  )
  once = (ends != ends[..., :1]) | jnp.array([True, False])
  is_end = ids[..., None, None] == ends[..., None, None, :, :]
  across = _sum_where(
    is_end & once[..., None, None, :, :],
    at_ends[..., None, None, :, :],
    axes=(-2, -1),
  )
  is_own_end = jnp.any(ids[..., None] == ends[..., None, :], axis=-1)
  joined = jnp.where(is_own_end, across, sums)
  return joined.reshape(*joined.shape[:-2], -1)[..., :length]


def _sum_where(
  chosen: Bool[Array, '*shape'], values: Array, axes: tuple[int, ...]
) -> Array:
  terms = jnp.where(chosen, values, 0)
  return jnp.sum(terms, axis=axes, dtype=values.dtype)


def segment_sums(
  values: Shaped[Array, 'B T'], segment_ids: Int[Array, 'B T'] | None
) -> Shaped[Array, 'B N']:
  """Sums `values` over each sequence of each row.

  Args:
    values: numbers to add.
    segment_ids: which sequence of its row a token belongs to, in [0, T];
      `None` where a row is one sequence.

  Returns:
    One sum per possible id: N is T + 1, or 1 where a row is one sequence.
  """
  if segment_ids is None:
    return jnp.sum(values, axis=1, keepdims=True)
  count = values.shape[1] + 1
  return jax.vmap(
    lambda row, ids: jax.ops.segment_sum(row, ids, num_segments=count)
  )(values, segment_ids)


def spread_segments(
  sums: Shaped[Array, 'B N'],
  segment_ids: Int[Array, 'B T'] | None,
  length: int,
) -> Shaped[Array, 'B T']:
  """Gives every token the value of its sequence.

  Args:
    sums: one value per sequence, as `segment_sums` returns them.
    segment_ids: as given to `segment_sums`.
    length: T.
  """
  if segment_ids is None:
    return jnp.broadcast_to(sums, (sums.shape[0], length))
  return jnp.take_along_axis(sums, segment_ids, axis=1)
