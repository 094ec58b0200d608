# SPDX-License-Identifier: Apache-2.0
"""Token weights: how an objective averages over tokens and sequences.

Losses and penalties multiply by these weights and sum, and do no averaging of
their own, so that all of them have the same denominator.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, check_number
from covrl.objectives.base import Number
from covrl.objectives.segments import COUNT_EPSILON, sequence_sums

WeightMode = Literal[
  'token-mean',
  'token-sum',
  'sequence-mean-token-mean',
  'sequence-mean-token-sum',
  'constant-length',
]
WEIGHT_MODES: tuple[WeightMode, ...] = get_args(WeightMode)


def token_weights(
  loss_mask: Bool[Array, 'B T'],
  mode: WeightMode = 'token-mean',
  *,
  segment_ids: Int[Array, 'B T'] | None = None,
  sequence_ids: Int[Array, 'B T'] | None = None,
  length: Number | None = None,
) -> Float[Array, 'B T']:
  """Weight of each token in the objective.

    'token-mean'                mask / N
    'token-sum'                 mask
    'sequence-mean-token-mean'  mask / (S · tokens of its sequence)
    'sequence-mean-token-sum'   mask / S
    'constant-length'           mask / (S · length)

  N is the number of tokens on the mask and S the number of sequences with at
  least one of them, both counted over the whole array: pass the whole optimiser
  batch and slice the weights into micro-batches, never the other way round.

  Args:
    loss_mask: true for targets to be trained on.
    mode: how tokens and sequences are averaged.
    segment_ids: index of the sequence within its row. The tokens of a sequence
      are contiguous in one row; without ids a row is one sequence.
    sequence_ids: index of the sequence within the run, used if `segment_ids` is
      not given.
    length: number of tokens that 'constant-length' divides by; ignored by other
      modes.

  Returns:
    Weights in float32 (float64 where 64-bit floats are on), 0 off the mask.

  Raises:
    TypeError: if the mask is not of bools, or ids are not integers.
    ValueError: if the mode is unknown, 'constant-length' has no positive
      length, or shapes differ.

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
    raise ValueError(
      "length must be given with mode 'constant-length', got None"
    )
  if length is not None:
    check_number('length', length, 0, is_open=True)
  shape = check_array('loss_mask', loss_mask, 'bool', 'B T')
  for name, ids in (
    ('segment_ids', segment_ids),
    ('sequence_ids', sequence_ids),
  ):
    if ids is not None:
      check_array(name, ids, 'int', 'B T', shape)
  weights = loss_mask.astype(jnp.result_type(float))
  if mode == 'token-sum':
    return weights
  if mode == 'token-mean':
    return weights / _positive_float(jnp.sum(loss_mask, dtype=jnp.int32))
  segments = sequence_ids if segment_ids is None else segment_ids
  tokens_of_sequence = sequence_sums(loss_mask.astype(jnp.int32), segments)
  num_sequences = jnp.sum(
    _sequence_starts(segments, weights.shape) & (tokens_of_sequence > 0),
    dtype=jnp.int32,
  )
  weights = weights / _positive_float(num_sequences)
  if mode == 'sequence-mean-token-sum':
    return weights
  if mode == 'sequence-mean-token-mean':
    return weights / (_positive_float(tokens_of_sequence) + COUNT_EPSILON)
  return weights if length is None else weights / length


def _sequence_starts(
  segments: Int[Array, 'B T'] | None, shape: tuple[int, ...]
) -> Bool[Array, 'B T']:
  """True at the first token of each sequence."""
  if segments is None:
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) == 0
  changes = segments[:, 1:] != segments[:, :-1]
  return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)


def _positive_float(count: Int[Array, '*shape']) -> Float[Array, '*shape']:
  """Converts a count to a float to divide by; 0 becomes 1."""
  return jnp.maximum(count, 1).astype(jnp.result_type(float))
