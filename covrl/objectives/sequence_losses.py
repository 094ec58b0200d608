# SPDX-License-Identifier: Apache-2.0
"""Policy losses whose ratio is that of a whole sequence.

A row is one sequence unless `segment_ids` says otherwise. A sequence's tokens
are those of non-zero weight; they lie side by side in one row.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from covrl.objectives.losses import pessimistic
from covrl.objectives.segments import COUNT_EPSILON, sequence_sums
from covrl.objectives.terms import (
  LossAux,
  Number,
  Terms,
  bounded,
  check_range,
  clamped_ratio,
  conclude,
  prepare,
)
from covrl.types import Scalar, TokenStats


def gspo(
  stats: TokenStats,
  *,
  low: Number = 3e-4,
  high: Number = 4e-4,
  form: str = 'token',
  max_log_ratio: Number | None = 10.0,
  advantages: Float[Array, 'B T'],
  old_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  segment_ids: Int[Array, 'B T'] | None = None,
  **_: Any,
) -> tuple[Scalar, LossAux]:
  """Clips whole sequences: the ratio is the geometric mean of their tokens'.

    s = exp(mean over the sequence of log π − log π_old)
    loss = max(−A · s, −A · clip(s, 1 − low, 1 + high))

  'token' gives each token the gradient of its own advantage and weight,
  s = sg(s) · π / sg(π); 'sequence' lets every token move the ratio of all. They
  differ only where advantages or weights vary within a sequence.

  Args:
    stats: of the policy.
    low: how far s may fall below 1 for credit.
    high: how far it may rise.
    form: whose gradient, see above.
    max_log_ratio: bound of |log s|, in nats.
    advantages: A.
    old_logprobs: log π_old of the same tokens.
    weights: each token's weight in the objective; the paper's are
      'sequence-mean-token-mean'.
    segment_ids: which sequence of its row a token belongs to; `None` where a
      row is one sequence.

  Returns:
    The loss and its report, in which `ratio` is s.

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
  terms = prepare(stats, advantages, old_logprobs, weights)
  mean = _sequence_mean(terms.log_ratio, terms, segment_ids)
  if form == 'token':
    own = terms.logprobs - jax.lax.stop_gradient(terms.logprobs)
    mean = jax.lax.stop_gradient(mean) + own
  ratio, clamped = clamped_ratio(mean, max_log_ratio)
  losses, clipped = pessimistic(terms, ratio, low, high)
  return conclude(
    terms,
    losses,
    ratio=ratio,
    score_weight=terms.advantages * ratio,
    clipped=clipped | clamped,
  )


def geo_mean(
  stats: TokenStats,
  *,
  low: Number = 0.4,
  high: Number = 0.4,
  advantages: Float[Array, 'B T'],
  old_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  segment_ids: Int[Array, 'B T'] | None = None,
  **_: Any,
) -> tuple[Scalar, LossAux]:
  """Clips tokens inside the geometric mean of a sequence's ratios (GMPO).

    loss = −Ā · exp(mean of s · min(s · x, s · clip(x, −low, high)))

  with x = log π − log π_old, s = sign(A) and Ā the mean advantage of the
  sequence: an outlier moves a geometric mean little, so the clip can be wide.

  Args:
    stats: of the policy.
    low: how far log-ratios may fall, in nats.
    high: how far they may rise, in nats.
    advantages: A, of one sign within a sequence.
    old_logprobs: log π_old of the same tokens.
    weights: each token's weight in the objective; the paper's are
      'sequence-mean-token-mean', and `score_weight` supposes that they do not
      vary within a sequence.
    segment_ids: as for `gspo`.

  Returns:
    The loss and its report, in which `ratio` is the sequence's.

  Raises:
    ValueError: if a bound is negative.

  References:
    Zhao et al., Geometric-Mean Policy Optimization, arXiv:2507.20673.
  """
  check_range('low', low, 0, math.inf)
  check_range('high', high, 0, math.inf)
  terms = prepare(stats, advantages, old_logprobs, weights)
  sign = jnp.sign(terms.advantages)
  free = sign * terms.log_ratio
  inside = sign * bounded(terms.log_ratio, -low, high)
  kept = sign * jnp.minimum(free, inside)
  ratio = jnp.exp(_sequence_mean(kept, terms, segment_ids, COUNT_EPSILON))
  advantage = _sequence_mean(
    terms.advantages, terms, segment_ids, COUNT_EPSILON
  )
  return conclude(
    terms,
    -advantage * ratio,
    ratio=ratio,
    score_weight=advantage * ratio,
    clipped=inside < free,
  )


def _sequence_mean(
  values: Float[Array, 'B T'],
  terms: Terms,
  segment_ids: Int[Array, 'B T'] | None,
  epsilon: float = 0.0,
) -> Float[Array, 'B T']:
  """Each token's sequence's mean; `values` are 0 where the weight is 0."""
  sums = sequence_sums(values, segment_ids)
  counts = sequence_sums(terms.active.astype(jnp.int32), segment_ids)
  return sums / (jnp.maximum(counts, 1).astype(values.dtype) + epsilon)
