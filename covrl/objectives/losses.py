# SPDX-License-Identifier: Apache-2.0
"""Policy losses whose ratios are those of single tokens.

Each is `f(stats, *, <options>, advantages, old_logprobs, weights, **_)` and
returns `Σ weights · loss` and a `LossAux`; bind options with
`functools.partial`. Tokens of weight 0 are no part of the objective, whatever
they hold. The value is what the optimiser descends on: a surrogate, comparable
between steps only where its docstring's formula is.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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


def policy_gradient(
  stats: TokenStats,
  *,
  max_log_ratio: Number | None = None,
  advantages: Float[Array, 'B T'],
  old_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  **_: Any,
) -> tuple[Scalar, LossAux]:
  """The importance-weighted policy gradient, with no trust region.

    loss = −A · ratio,    ratio = exp(log π − log π_old)

  Args:
    stats: of the policy.
    max_log_ratio: tokens beyond ± this many nats have the ratio's bound and no
      gradient; `None` trusts every ratio (what KL-Cov was published with).
    advantages: A.
    old_logprobs: log π_old of the same tokens.
    weights: each token's weight in the objective.

  Returns:
    The loss and its report.

  References:
    Williams, Simple Statistical Gradient-Following Algorithms for Connectionist
    Reinforcement Learning, 1992.
  """
  terms = prepare(stats, advantages, old_logprobs, weights)
  ratio, clipped = clamped_ratio(terms.log_ratio, max_log_ratio)
  score_weight = terms.advantages * ratio
  return conclude(
    terms,
    -score_weight,
    ratio=ratio,
    score_weight=score_weight,
    clipped=clipped,
  )


def clipped_surrogate(
  stats: TokenStats,
  *,
  low: Number = 0.2,
  high: Number = 0.2,
  dual_clip: Number | None = None,
  max_log_ratio: Number | None = 20.0,
  advantages: Float[Array, 'B T'],
  old_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  **_: Any,
) -> tuple[Scalar, LossAux]:
  """PPO's pessimistic surrogate: no credit for leaving the trust region.

    loss = max(−A · ratio, −A · clip(ratio, 1 − low, 1 + high))
    A < 0, dual clip c:  loss = min(−A · c, loss)

  Args:
    stats: of the policy.
    low: how far the ratio of a token may fall below 1 for credit.
    high: how far it may rise; 0.28 with low 0.2 is clip-higher.
    dual_clip: c > 1, the ratio beyond which tokens of negative advantage stop
      counting; `None` for none.
    max_log_ratio: as for `policy_gradient`.
    advantages: A.
    old_logprobs: log π_old of the same tokens.
    weights: each token's weight in the objective.

  Returns:
    The loss and its report.

  Raises:
    ValueError: if an option is outside its range.

  References:
    Schulman et al., Proximal Policy Optimization, arXiv:1707.06347, eq. 7.
    Ye et al., Mastering Complex Control in MOBA Games, arXiv:1912.09729 (dual
    clip). Yu et al., DAPO, arXiv:2503.14476 (clip-higher).
  """
  check_range('low', low, 0, 1)
  check_range('high', high, 0, math.inf)
  if dual_clip is not None:
    check_range('dual_clip', dual_clip, 1, math.inf)
  terms = prepare(stats, advantages, old_logprobs, weights)
  ratio, clamped = clamped_ratio(terms.log_ratio, max_log_ratio)
  losses, clipped = pessimistic(terms, ratio, low, high)
  if dual_clip is not None:
    floor = -terms.advantages * dual_clip
    negative = terms.advantages < 0
    clipped |= negative & (losses > floor)
    losses = jnp.where(negative, jnp.minimum(floor, losses), losses)
  return conclude(
    terms,
    losses,
    ratio=ratio,
    score_weight=terms.advantages * ratio,
    clipped=clipped | clamped,
  )


def cispo(
  stats: TokenStats,
  *,
  low: Number = 1.0,
  high: Number = 4.0,
  max_log_ratio: Number | None = 20.0,
  advantages: Float[Array, 'B T'],
  old_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  **_: Any,
) -> tuple[Scalar, LossAux]:
  """REINFORCE with a truncated ratio: bounds the step, drops no token.

    loss = −A · sg(clip(ratio, 1 − low, 1 + high)) · log π

  Args:
    stats: of the policy.
    low: lower truncation; 1 for none.
    high: upper truncation.
    max_log_ratio: bound of the ratio that is reported.
    advantages: A.
    old_logprobs: log π_old of the same tokens.
    weights: each token's weight in the objective.

  Returns:
    The loss and its report, in which no token is clipped.

  Raises:
    ValueError: if an option is outside its range.

  References:
    MiniMax, MiniMax-M1, arXiv:2506.13585, eqs. 4 and 5.
  """
  check_range('low', low, 0, 1)
  check_range('high', high, 0, math.inf)
  terms = prepare(stats, advantages, old_logprobs, weights)
  fixed = jax.lax.stop_gradient(terms.log_ratio)
  ratio, _clamped = clamped_ratio(fixed, max_log_ratio)
  score_weight = terms.advantages * jnp.clip(ratio, 1 - low, 1 + high)
  return conclude(
    terms,
    -score_weight * terms.logprobs,
    ratio=ratio,
    score_weight=score_weight,
    clipped=jnp.zeros_like(terms.active),
  )


def sapo(
  stats: TokenStats,
  *,
  positive_sharpness: Number = 1.0,
  negative_sharpness: Number = 1.05,
  max_log_ratio: Number | None = 20.0,
  advantages: Float[Array, 'B T'],
  old_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  **_: Any,
) -> tuple[Scalar, LossAux]:
  """A trust region with soft walls: a sigmoid gate in place of a clip.

    loss = −A · σ(τ (ratio − 1)) · 4/τ,    τ = τ₊ where A > 0, else τ₋

  Its gradient is that of −A · ratio at ratio 1 and fades on both sides.

  Args:
    stats: of the policy.
    positive_sharpness: τ₊.
    negative_sharpness: τ₋; larger fades sooner.
    max_log_ratio: as for `policy_gradient`.
    advantages: A.
    old_logprobs: log π_old of the same tokens.
    weights: each token's weight in the objective.

  Returns:
    The loss and its report.

  References:
    Gao et al., Soft Adaptive Policy Optimization, arXiv:2511.20347, eqs. 5, 6.
  """
  terms = prepare(stats, advantages, old_logprobs, weights)
  ratio, clipped = clamped_ratio(terms.log_ratio, max_log_ratio)
  sharpness = jnp.where(
    terms.advantages > 0, positive_sharpness, negative_sharpness
  ).astype(ratio.dtype)
  gate = jax.nn.sigmoid(sharpness * (ratio - 1))
  return conclude(
    terms,
    -terms.advantages * gate * 4 / sharpness,
    ratio=ratio,
    score_weight=terms.advantages * ratio * 4 * gate * (1 - gate),
    clipped=clipped,
  )


def dppo(
  stats: TokenStats,
  *,
  low: Number = 0.15,
  high: Number = 0.15,
  measure: str = 'tv',
  max_ratio: Number | None = None,
  max_log_ratio: Number | None = 20.0,
  advantages: Float[Array, 'B T'],
  old_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  **_: Any,
) -> tuple[Scalar, LossAux]:
  """Trusts a token by how far its probability moved rather than by its ratio.

    loss = −A · ratio where trusted, else 0

  A token is not trusted where its advantage pushes it further from π_old than
  the bound: (A > 0, π > π_old, D > high) or (A < 0, π < π_old, D > low), with
  D of the two-way choice "this token or another", one of

    'tv'  |π − π_old|
    'kl'  π_old log(π_old/π) + (1 − π_old) log((1 − π_old)/(1 − π))

  Args:
    stats: of the policy.
    low: bound on D for tokens that fall.
    high: bound on D for tokens that rise.
    measure: of the divergence. The paper uses bounds of 0.15 with 'tv' and of
      0.05 with 'kl'.
    max_ratio: truncates the ratio that multiplies the gradient; `None` for
      none.
    max_log_ratio: bound of the ratio, in nats.
    advantages: A.
    old_logprobs: log π_old of the same tokens.
    weights: each token's weight in the objective.

  Returns:
    The loss and its report.

  Raises:
    ValueError: if the measure is unknown or a bound is negative.

  References:
    Qi et al., Rethinking the Trust Region in LLM Reinforcement Learning,
    arXiv:2602.04879.
  """
  check_range('low', low, 0, math.inf)
  check_range('high', high, 0, math.inf)
  if measure not in ('tv', 'kl'):
    raise ValueError(f"measure must be 'tv' or 'kl', got {measure!r}")
  terms = prepare(stats, advantages, old_logprobs, weights)
  fixed = jax.lax.stop_gradient(terms)
  clipped = _strays(fixed, low, high, measure)
  ratio, _clamped = clamped_ratio(fixed.log_ratio, max_log_ratio)
  trusted = ratio if max_ratio is None else jnp.minimum(ratio, max_ratio)
  score_weight = terms.advantages * trusted
  # exp(x − sg(x)) is 1 and has the derivative of x: the truncation then bounds
  # the gradient instead of removing it.
  lift = jnp.exp(terms.log_ratio - fixed.log_ratio)
  return conclude(
    terms,
    jnp.where(clipped, 0, -score_weight * lift),
    ratio=ratio,
    score_weight=score_weight,
    clipped=clipped,
  )


def pessimistic(
  terms: Terms, ratio: Float[Array, 'B T'], low: Number, high: Number
) -> tuple[Float[Array, 'B T'], Bool[Array, 'B T']]:
  """The larger of the free and the clipped loss, and where that is the clipped."""
  free = -terms.advantages * ratio
  clipped = -terms.advantages * bounded(ratio, 1 - low, 1 + high)
  return jnp.maximum(free, clipped), clipped > free


def _strays(
  terms: Terms, low: Number, high: Number, measure: str
) -> Bool[Array, 'B T']:
  """Tokens outside DPPO's trust region that the loss would push further out."""
  old_logprobs = terms.logprobs - terms.log_ratio
  new, old = jnp.exp(terms.logprobs), jnp.exp(old_logprobs)
  if measure == 'tv':
    distance = jnp.abs(new - old)
  else:
    # π_old = 1 leaves no other token; π = 1 is infinitely far from π_old < 1.
    others = jnp.log1p(-jnp.minimum(old, 1)) - jnp.log1p(-jnp.minimum(new, 1))
    distance = -old * terms.log_ratio + jnp.where(
      old < 1, (1 - old) * others, 0
    )
  rising = (terms.advantages > 0) & (new > old) & (distance > high)
  falling = (terms.advantages < 0) & (new < old) & (distance > low)
  return rising | falling
