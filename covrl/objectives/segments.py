# SPDX-License-Identifier: Apache-2.0
"""Segment sums: sums over the sequences of padded or packed rows.

Rows are cut into blocks. Tokens are compared with the tokens of their own
block, and blocks only through the sequences at their two ends. This needs no
scatter (a sort, on TPU), and on a mesh that splits rows, or the tokens of a
row, devices exchange only those ends.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

# Published implementations add this to a count before dividing by it. It
# vanishes in float32; agreement to 1e-12 in float64 requires it.
COUNT_EPSILON = 1e-8

# Number of blocks of a row, and of blocks within each of those. The first is
# small, since the tokens of a row may be split over several devices.
_BLOCKS = (4, 16)


def sequence_sums(
  values: Shaped[Array, 'B T'], segment_ids: Int[Array, 'B T'] | None
) -> Shaped[Array, 'B T']:
  """Sums `values` over each token's sequence.

  Args:
    values: numbers to add, 0 for tokens that belong to no sequence.
    segment_ids: equal for the tokens of a sequence, which are contiguous in one
      row; `None` where a row is one sequence.

  Returns:
    For each token, the sum over its sequence.

  >>> ids = jnp.array([[1, 1, 2, 2, 2]])
  >>> sequence_sums(jnp.array([[1, 2, 3, 4, 5]]), ids)
  Array([[ 3,  3, 12, 12, 12]], dtype=int32)
  """
  if segment_ids is None:
    total = jnp.sum(values, axis=1, keepdims=True, dtype=values.dtype)
    return jnp.broadcast_to(total, values.shape)
  return _sums_by_id(segment_ids, values)


@jax.custom_vjp
def _sums_by_id(
  ids: Int[Array, 'B T'], values: Shaped[Array, 'B T']
) -> Shaped[Array, 'B T']:
  """Sums the values of equal id in each row, for every token; see `sequence_sums`."""
  return _sums_within(ids, values, _BLOCKS)


def _sums_forward(
  ids: Int[Array, 'B T'], values: Shaped[Array, 'B T']
) -> tuple[Shaped[Array, 'B T'], Int[Array, 'B T']]:
  """Forward pass: the sums, and the ids as residuals."""
  return _sums_by_id(ids, values), ids


def _sums_backward(
  ids: Int[Array, 'B T'], signal: Shaped[Array, 'B T']
) -> tuple[None, Shaped[Array, 'B T']]:
  """Backward pass of the sums over sequences: a symmetric map, so the sums again."""
  return None, _sums_by_id(ids, signal)


_sums_by_id.defvjp(_sums_forward, _sums_backward)


def _sums_within(
  ids: Int[Array, '*B T'],
  values: Shaped[Array, '*B T'],
  blocks: tuple[int, ...],
) -> Shaped[Array, '*B T']:
  """For each entry, the sum of the values with the same id."""
  length = ids.shape[-1]
  if not blocks or length < blocks[0]:
    same = ids[..., :, None] == ids[..., None, :]
    return _sum_where(same, values[..., None, :], axes=(-1,))
  count, *inner_blocks = blocks
  padding = [*[(0, 0)] * (ids.ndim - 1), (0, -length % count)]
  # Padding continues the last sequence: with an id of its own, such as 0, it would be
  # a second part of the sequence of that id.
  ids, values = (
    jnp.pad(x, padding, mode=mode).reshape(*x.shape[:-1], count, -1)
    for x, mode in ((ids, 'edge'), (values, 'constant'))
  )
  sums = _sums_within(ids, values, (*inner_blocks,))
  # A sequence that spans several blocks is at one end, or both, of each.
  ends, end_sums = (
    jnp.stack([x[..., 0], x[..., -1]], axis=-1) for x in (ids, sums)
  )
  is_first_end = (ends != ends[..., :1]) | jnp.array([True, False])
  is_end = ids[..., None, None] == ends[..., None, None, :, :]
  sums_across_blocks = _sum_where(
    is_end & is_first_end[..., None, None, :, :],
    end_sums[..., None, None, :, :],
    axes=(-2, -1),
  )
  has_id_of_end = jnp.any(ids[..., None] == ends[..., None, :], axis=-1)
  joined = jnp.where(has_id_of_end, sums_across_blocks, sums)
  return joined.reshape(*joined.shape[:-2], -1)[..., :length]


def _sum_where(
  mask: Bool[Array, '*shape'], values: Array, axes: tuple[int, ...]
) -> Array:
  """Sums the values under a mask over some axes, in their dtype."""
  terms = jnp.where(mask, values, 0)
  return jnp.sum(terms, axis=axes, dtype=values.dtype)


def segment_sums(
  values: Shaped[Array, 'B T'], segment_ids: Int[Array, 'B T'] | None
) -> Shaped[Array, 'B N']:
  """Sums `values` over each sequence of each row.

  Args:
    values: numbers to add.
    segment_ids: index of the sequence within its row, in [0, T]; `None` where
      a row is one sequence.

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
  """Broadcasts one value per sequence to its tokens: `segment_sums` transposed.

  Args:
    sums: one value per sequence, as returned by `segment_sums`.
    segment_ids: as given to `segment_sums`.
    length: T, the number of tokens of a row.
  """
  if segment_ids is None:
    return jnp.broadcast_to(sums, (sums.shape[0], length))
  return jnp.take_along_axis(sums, segment_ids, axis=1)
