# SPDX-License-Identifier: Apache-2.0
"""Each token's weight in the objective: the one place that aggregates.

Losses and penalties multiply by these weights and sum, so that a penalty is
never off by a denominator.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.objectives.segments import COUNT_EPSILON, sequence_sums
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
    segment_ids: which sequence of its row a token belongs to.
    sequence_ids: which sequence of the run; consulted where `segment_ids` is
      not given. Either way the tokens of a sequence lie side by side in one
      row.
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
  segments = sequence_ids if segment_ids is None else segment_ids
  tokens = sequence_sums(loss_mask.astype(jnp.int32), segments)
  sequences = jnp.sum(
    _begins(segments, mask.shape) & (tokens > 0), dtype=jnp.int32
  )
  mask = mask / _at_least_one(sequences)
  if mode == 'sequence-mean-token-sum':
    return mask
  if mode == 'sequence-mean-token-mean':
    return mask / (_at_least_one(tokens) + COUNT_EPSILON)
  return mask if length is None else mask / length


def _begins(
  segments: Int[Array, 'B T'] | None, shape: tuple[int, ...]
) -> Bool[Array, 'B T']:
  """Where a sequence begins."""
  if segments is None:
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) == 0
  changes = segments[:, 1:] != segments[:, :-1]
  return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)


def _at_least_one(count: Int[Array, '*shape']) -> Float[Array, '*shape']:
  """A count to divide by, as a float; an empty one divides nothing."""
  return jnp.maximum(count, 1).astype(jnp.result_type(float))
