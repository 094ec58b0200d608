# SPDX-License-Identifier: Apache-2.0
"""Sequence-level policy losses: one importance ratio per sequence.

A row is one sequence unless the context has `segment_ids`. The tokens of a
sequence are those of non-zero weight; they are contiguous within one row.
Arguments and results are otherwise those of `covrl.objectives.losses`.
"""

from __future__ import annotations

import math
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from covrl.objectives.base import (
  LossAux,
  LossInputs,
  Number,
  bounded,
  check_range,
  clamped_ratio,
  loss_inputs,
  weighted_loss,
)
from covrl.objectives.losses import pessimistic_loss
from covrl.objectives.segments import COUNT_EPSILON, sequence_sums
from covrl.types import Scalar, TokenContext, TokenStats


def gspo(
  stats: TokenStats,
  *,
  low: Number = 3e-4,
  high: Number = 4e-4,
  form: Literal['token', 'sequence'] = 'token',
  max_log_ratio: Number | None = 10.0,
  **context: Unpack[TokenContext],
) -> tuple[Scalar, LossAux]:
  """Clips whole sequences by the geometric mean of their tokens' ratios.

    s = exp(mean over the sequence of log π − log π_old)
    loss = max(−A · s, −A · clip(s, 1 − low, 1 + high))

  'token' gives each token the gradient of its own advantage and weight,
  s = sg(s) · π / sg(π); 'sequence' differentiates s itself, so that a token's
  gradient contains the advantages and weights of all tokens of the sequence.
  They differ only where advantages or weights vary within a sequence.

  Args:
    stats: statistics of the policy.
    low: how far s may fall below 1 and still lower the loss.
    high: how far s may rise above 1.
    form: how gradients are distributed over tokens, see above.
    max_log_ratio: bound of |log s|, in nats.
    **context: reads `advantages`, `old_logprobs`, `weights`, `segment_ids`. The
      paper's weights are 'sequence-mean-token-mean'.

  Returns:
    The loss and its auxiliary output, in which `ratio` is s.

  Raises:
    ValueError: if the form is unknown or an option is outside its range.

  References:
    Zheng et al., Group Sequence Policy Optimization, arXiv:2507.18071, eqs. 5
    to 7 ('sequence'), 13 and 14 ('token').
  """
  check_range('low', low, 0, 1)
  check_range('high', high, 0, math.inf)
  if form not in ('token', 'sequence'):
    raise ValueError(f"form must be 'token' or 'sequence', got {form!r}")
  inputs = loss_inputs(stats, context, 'gspo')
  mean = _sequence_mean(inputs.log_ratio, inputs)
  if form == 'token':
    zero_with_gradient = inputs.logprobs - jax.lax.stop_gradient(
      inputs.logprobs
    )
    mean = jax.lax.stop_gradient(mean) + zero_with_gradient
  ratio, clamped = clamped_ratio(mean, max_log_ratio)
  losses, clipped = pessimistic_loss(inputs, ratio, low, high)
  return weighted_loss(
    inputs,
    losses,
    ratio=ratio,
    score_weight=inputs.advantages * ratio,
    clipped=clipped | clamped,
  )


def geo_mean(
  stats: TokenStats,
  *,
  low: Number = 0.4,
  high: Number = 0.4,
  **context: Unpack[TokenContext],
) -> tuple[Scalar, LossAux]:
  """Clips tokens inside the geometric mean of a sequence's ratios (GMPO).

    loss = −Ā · exp(mean of s · min(s · x, s · clip(x, −low, high)))

  with x = log π − log π_old, s = sign(A) and Ā the mean advantage of the
  sequence: an outlier moves a geometric mean little, so the clip can be wide.

  Args:
    stats: statistics of the policy.
    low: how far log-ratios may fall, in nats.
    high: how far log-ratios may rise, in nats.
    **context: reads `advantages` (of one sign within a sequence),
      `old_logprobs`, `weights`, `segment_ids`. The paper's weights are
      'sequence-mean-token-mean'; `score_weight` assumes that they do not vary
      within a sequence.

  Returns:
    The loss and its auxiliary output, in which `ratio` is the sequence's.

  Raises:
    ValueError: if a bound is negative.

  References:
    Zhao et al., Geometric-Mean Policy Optimization, arXiv:2507.20673.
  """
  check_range('low', low, 0, math.inf)
  check_range('high', high, 0, math.inf)
  inputs = loss_inputs(stats, context, 'geo_mean')
  sign = jnp.sign(inputs.advantages)
  unclipped = sign * inputs.log_ratio
  clipped = sign * bounded(inputs.log_ratio, -low, high)
  pessimistic = sign * jnp.minimum(unclipped, clipped)
  ratio = jnp.exp(_sequence_mean(pessimistic, inputs, COUNT_EPSILON))
  advantage = _sequence_mean(inputs.advantages, inputs, COUNT_EPSILON)
  return weighted_loss(
    inputs,
    -advantage * ratio,
    ratio=ratio,
    score_weight=advantage * ratio,
    clipped=clipped < unclipped,
  )


def vespo(
  stats: TokenStats,
  *,
  positive_shape: Number = 2.0,
  positive_rate: Number = 3.0,
  negative_shape: Number = 3.0,
  negative_rate: Number = 2.0,
  max_log_ratio: Number = 20.0,
  **context: Unpack[TokenContext],
) -> tuple[Scalar, LossAux]:
  """REINFORCE, weighted by a smooth function of each sequence's ratio (VESPO).

    loss = −A · sg(φ(w)) · log π,    w = product of the sequence's ratios,
    φ(w) = w^k · exp(λ (1 − w))

  φ is 1 at w = 1 and falls to 0 for sequences that have become unlikely or too
  likely, without a clip and without a mean over the length.

  Args:
    stats: statistics of the policy.
    positive_shape: k where A ≥ 0.
    positive_rate: λ where A ≥ 0.
    negative_shape: k where A < 0.
    negative_rate: λ where A < 0; the larger it is, the sooner φ falls above
      w = 1.
    max_log_ratio: bound of the log ratios of tokens and of |log w|, in nats.
    **context: reads `advantages`, `old_logprobs`, `weights`, `segment_ids`.
      Public code has the weights 'token-mean'.

  Returns:
    The loss and its auxiliary output, in which `ratio` is w and no token is
    clipped.

  Raises:
    ValueError: if an option is negative.

  References:
    VESPO: Variational Sequence-Level Soft Policy Optimization,
    arXiv:2602.10693; defaults of TRL.
  """
  check_range('positive_shape', positive_shape, 0, math.inf)
  check_range('positive_rate', positive_rate, 0, math.inf)
  check_range('negative_shape', negative_shape, 0, math.inf)
  check_range('negative_rate', negative_rate, 0, math.inf)
  check_range('max_log_ratio', max_log_ratio, 0, math.inf)
  inputs = loss_inputs(stats, context, 'vespo')
  fixed = jax.lax.stop_gradient(inputs.log_ratio)
  bounds = -max_log_ratio, max_log_ratio
  log_weight = sequence_sums(jnp.clip(fixed, *bounds), inputs.segment_ids)
  log_weight = jnp.clip(log_weight, *bounds)
  ratio, is_positive = jnp.exp(log_weight), inputs.advantages >= 0
  shape = jnp.where(is_positive, positive_shape, negative_shape)
  rate = jnp.where(is_positive, positive_rate, negative_rate)
  score_weight = inputs.advantages * jnp.exp(
    shape * log_weight + rate * (1 - ratio)
  )
  return weighted_loss(
    inputs,
    -score_weight * inputs.logprobs,
    ratio=ratio,
    score_weight=score_weight,
    clipped=jnp.zeros_like(inputs.active),
  )


def _sequence_mean(
  values: Float[Array, 'B T'], inputs: LossInputs, epsilon: float = 0.0
) -> Float[Array, 'B T']:
  """Mean of `values` over each token's sequence.

  Args:
    values: 0 where the weight is 0.
    inputs: has the active tokens and the segment ids.
    epsilon: added to the number of tokens.
  """
  sums = sequence_sums(values, inputs.segment_ids)
  counts = sequence_sums(inputs.active.astype(jnp.int32), inputs.segment_ids)
  return sums / (jnp.maximum(counts, 1).astype(values.dtype) + epsilon)
