# SPDX-License-Identifier: Apache-2.0
"""Sums over the sequences of a batch, whether a row holds one or several.

Every reduction stays within its row (a vectorised `segment_sum`), so that on a
mesh that splits rows nothing is gathered.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

# Published implementations add this to a count before they divide by it. In
# float32 it vanishes; in float64 it is what agreement to 1e-12 takes.
COUNT_EPSILON = 1e-8


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
