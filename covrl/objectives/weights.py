# SPDX-License-Identifier: Apache-2.0
"""Each token's weight in the objective: the one place that aggregates.

Losses and penalties multiply by these weights and sum, so that a penalty is
never off by a denominator.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.objectives.segments import (
  COUNT_EPSILON,
  segment_sums,
  spread_segments,
)
from covrl.objectives.terms import Number

WEIGHT_MODES = (
  'token-mean',
  'token-sum',
  'sequence-mean-token-mean',
  'sequence-mean-token-sum',
  'constant-length',
)


def token_weights(
  loss_mask: Bool[Array, 'B T'],
  mode: str = 'token-mean',
  *,
  segment_ids: Int[Array, 'B T'] | None = None,
  sequence_ids: Int[Array, 'B T'] | None = None,
  length: Number | None = None,
) -> Float[Array, 'B T']:
  """How much each token counts in the objective.

    'token-mean'                mask / N
    'token-sum'                 mask
    'sequence-mean-token-mean'  mask / (S · tokens of its sequence)
    'sequence-mean-token-sum'   mask / S
    'constant-length'           mask / (S · length)

  N is the number of tokens on the mask and S the number of sequences with at
  least one of them, both of the whole array: pass the whole optimiser batch
  and slice the weights into micro-batches, never the other way round.

  Args:
    loss_mask: true where the target is to be trained on.
    mode: how tokens and sequences are averaged.
    segment_ids: which sequence of its row a token belongs to, in [0, T].
    sequence_ids: which sequence of the run; consulted where `segment_ids` is
      not given, to tell the sequences of a packed row apart. A sequence must
      be contiguous and lie in one row.
    length: tokens that a sequence is divided by under 'constant-length'; other
      modes do not read it.

  Returns:
    Weights in float32 (float64 where 64-bit floats are on), 0 off the mask.

  Raises:
    ValueError: if the mode is unknown, or 'constant-length' has no length.

  >>> mask = jnp.array([[True, True, True], [True, False, False]])
  >>> token_weights(mask, 'sequence-mean-token-sum').tolist()
  [[0.5, 0.5, 0.5], [0.5, 0.0, 0.0]]

  References:
    Liu et al., Understanding R1-Zero-Like Training, arXiv:2503.20783 (constant
    length); Yu et al., DAPO, arXiv:2503.14476, eq. 8 (token mean).
  """
  if mode not in WEIGHT_MODES:
    raise ValueError(f'mode must be one of {WEIGHT_MODES}, got {mode!r}')
  if mode == 'constant-length' and length is None:
    raise ValueError("mode 'constant-length' needs a length, got None")
  mask = loss_mask.astype(jnp.result_type(float))
  if mode == 'token-sum':
    return mask
  if mode == 'token-mean':
    return mask / _at_least_one(jnp.sum(loss_mask, dtype=jnp.int32))
  segments = _segments(segment_ids, sequence_ids)
  counts = segment_sums(loss_mask.astype(jnp.int32), segments)
  mask = mask / _at_least_one(jnp.sum(counts > 0, dtype=jnp.int32))
  if mode == 'sequence-mean-token-sum':
    return mask
  if mode == 'sequence-mean-token-mean':
    tokens = spread_segments(counts, segments, loss_mask.shape[1])
    return mask / (_at_least_one(tokens) + COUNT_EPSILON)
  return mask if length is None else mask / length


def _segments(
  segment_ids: Int[Array, 'B T'] | None,
  sequence_ids: Int[Array, 'B T'] | None,
) -> Int[Array, 'B T'] | None:
  """Ids that are small within a row; runs of equal `sequence_ids` number them."""
  if segment_ids is not None or sequence_ids is None:
    return segment_ids
  changes = sequence_ids[:, 1:] != sequence_ids[:, :-1]
  return jnp.cumsum(jnp.pad(changes, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)


def _at_least_one(count: Int[Array, '*shape']) -> Float[Array, '*shape']:
  """A count to divide by, as a float; an empty one divides nothing."""
  return jnp.maximum(count, 1).astype(jnp.result_type(float))
