# SPDX-License-Identifier: Apache-2.0
"""Token-level policy losses: one importance ratio per token.

Each is `loss(stats, *, <options>, **context)`, reads `advantages` (A),
`old_logprobs` (log π_old of the same tokens, in nats) and `weights` (each
token's weight in the objective) from the context, and returns
`Σ weights · loss` and a `LossAux`. Bind options with `functools.partial`.

Tokens of weight 0 are not part of the objective, even if they hold NaN. The value
is a surrogate for the optimiser to descend and not a measure of progress: it
depends on the advantages and weights of the batch.

>>> import functools
>>> loss = functools.partial(clipped_surrogate, low=0.2, high=0.28)
>>> stats = TokenStats(logprobs=jnp.zeros((1, 2)), entropy=jnp.zeros((1, 2)))
>>> value, aux = loss(stats, advantages=jnp.array([[1.0, -1.0]]),
...                   old_logprobs=jnp.array([[-1.0, -1.0]]),
...                   weights=jnp.full((1, 2), 0.5))
>>> aux.clipped.tolist()
[[True, False]]
"""

from __future__ import annotations

import math
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from covrl.array_checks import check_number
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
from covrl.types import Scalar, TokenContext, TokenStats


def policy_gradient(
  stats: TokenStats,
  *,
  max_log_ratio: Number | None = None,
  **context: Unpack[TokenContext],
) -> tuple[Scalar, LossAux]:
  """Importance-weighted policy gradient without a trust region.

    loss = −A · ratio,    ratio = exp(log π − log π_old)

  Args:
    stats: statistics of the policy.
    max_log_ratio: bound of |log ratio|, in nats; the ratios of tokens beyond it
      are clamped and have no gradient. `None` does not clamp (as KL-Cov was
      published).
    **context: reads `advantages`, `old_logprobs`, `weights`.

  Returns:
    The loss and its auxiliary output.

  References:
    Williams, Simple Statistical Gradient-Following Algorithms for Connectionist
    Reinforcement Learning, 1992.
  """
  inputs = loss_inputs(stats, context, 'policy_gradient')
  ratio, clipped = clamped_ratio(inputs.log_ratio, max_log_ratio)
  score_weight = inputs.advantages * ratio
  return weighted_loss(
    inputs,
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
  **context: Unpack[TokenContext],
) -> tuple[Scalar, LossAux]:
  """PPO's clipped surrogate: leaving the trust region does not lower the loss.

    loss = max(−A · ratio, −A · clip(ratio, 1 − low, 1 + high))
    A < 0, dual clip c:  loss = min(−A · c, loss)

  Args:
    stats: statistics of the policy.
    low: how far the ratio of a token may fall below 1 and still lower the loss.
    high: how far it may rise above 1; 0.28 with low 0.2 is clip-higher.
    dual_clip: c > 1, the ratio beyond which tokens of negative advantage stop
      counting; `None` disables it.
    max_log_ratio: bound of |log ratio|, in nats, as for `policy_gradient`.
    **context: reads `advantages`, `old_logprobs`, `weights`.

  Returns:
    The loss and its auxiliary output.

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
  inputs = loss_inputs(stats, context, 'clipped_surrogate')
  ratio, clamped = clamped_ratio(inputs.log_ratio, max_log_ratio)
  losses, clipped = pessimistic_loss(inputs, ratio, low, high)
  if dual_clip is not None:
    ceiling = -inputs.advantages * dual_clip
    is_negative = inputs.advantages < 0
    clipped |= is_negative & (losses > ceiling)
    losses = jnp.where(is_negative, jnp.minimum(ceiling, losses), losses)
  return weighted_loss(
    inputs,
    losses,
    ratio=ratio,
    score_weight=inputs.advantages * ratio,
    clipped=clipped | clamped,
  )


def cispo(
  stats: TokenStats,
  *,
  low: Number = 1.0,
  high: Number = 4.0,
  max_log_ratio: Number | None = 20.0,
  **context: Unpack[TokenContext],
) -> tuple[Scalar, LossAux]:
  """REINFORCE with a truncated ratio: bounds the step, clips no token.

    loss = −A · sg(clip(ratio, 1 − low, 1 + high)) · log π

  Args:
    stats: statistics of the policy.
    low: the ratio is at least 1 − low; 1 disables the lower truncation.
    high: the ratio is at most 1 + high.
    max_log_ratio: bound of |log ratio| in the reported ratio, in nats.
    **context: reads `advantages`, `old_logprobs`, `weights`.

  Returns:
    The loss and its auxiliary output, in which no token is clipped.

  Raises:
    ValueError: if an option is outside its range.

  References:
    MiniMax, MiniMax-M1, arXiv:2506.13585, eqs. 4 and 5.
  """
  check_range('low', low, 0, 1)
  check_range('high', high, 0, math.inf)
  inputs = loss_inputs(stats, context, 'cispo')
  fixed = jax.lax.stop_gradient(inputs.log_ratio)
  ratio, _ = clamped_ratio(fixed, max_log_ratio)
  score_weight = inputs.advantages * jnp.clip(ratio, 1 - low, 1 + high)
  return weighted_loss(
    inputs,
    -score_weight * inputs.logprobs,
    ratio=ratio,
    score_weight=score_weight,
    clipped=jnp.zeros_like(inputs.active),
  )


def sapo(
  stats: TokenStats,
  *,
  positive_sharpness: Number = 1.0,
  negative_sharpness: Number = 1.05,
  max_log_ratio: Number | None = 20.0,
  **context: Unpack[TokenContext],
) -> tuple[Scalar, LossAux]:
  """Soft trust region: a sigmoid gate in place of a clip.

    loss = −A · σ(τ (ratio − 1)) · 4/τ,    τ = τ₊ where A > 0, else τ₋

  Its gradient is that of −A · ratio at ratio 1 and fades on both sides.

  Args:
    stats: statistics of the policy.
    positive_sharpness: τ₊.
    negative_sharpness: τ₋; the larger it is, the sooner the gradient fades.
    max_log_ratio: bound of |log ratio|, in nats, as for `policy_gradient`.
    **context: reads `advantages`, `old_logprobs`, `weights`.

  Returns:
    The loss and its auxiliary output.

  Raises:
    ValueError: if a sharpness is not above 0.

  References:
    Gao et al., Soft Adaptive Policy Optimization, arXiv:2511.20347, eqs. 5, 6.
  """
  for name, sharpness in (
    ('positive_sharpness', positive_sharpness),
    ('negative_sharpness', negative_sharpness),
  ):
    check_number(name, sharpness, 0, is_open=True)
  inputs = loss_inputs(stats, context, 'sapo')
  ratio, clipped = clamped_ratio(inputs.log_ratio, max_log_ratio)
  sharpness = jnp.where(
    inputs.advantages > 0, positive_sharpness, negative_sharpness
  ).astype(ratio.dtype)
  gate = jax.nn.sigmoid(sharpness * (ratio - 1))
  return weighted_loss(
    inputs,
    -inputs.advantages * gate * 4 / sharpness,
    ratio=ratio,
    score_weight=inputs.advantages * ratio * 4 * gate * (1 - gate),
    clipped=clipped,
  )


def dppo(
  stats: TokenStats,
  *,
  low: Number = 0.15,
  high: Number = 0.15,
  measure: Literal['tv', 'kl'] = 'tv',
  max_ratio: Number | None = None,
  max_log_ratio: Number | None = 20.0,
  **context: Unpack[TokenContext],
) -> tuple[Scalar, LossAux]:
  """Trust region on each token's change of probability, not on its ratio.

    loss = −A · ratio where trusted, else 0

  A token is not trusted where its advantage pushes it further from π_old than
  the bound: (A > 0, π > π_old, D > high) or (A < 0, π < π_old, D > low). D is the
  divergence of the two-way choice "this token or another", one of

    'tv'  |π − π_old|
    'kl'  π_old log(π_old/π) + (1 − π_old) log((1 − π_old)/(1 − π))

  Args:
    stats: statistics of the policy.
    low: bound on D for tokens whose probability falls.
    high: bound on D for tokens whose probability rises.
    measure: the divergence D. The paper uses bounds of 0.15 with 'tv' and of
      0.05 with 'kl'.
    max_ratio: truncates the ratio that multiplies the gradient; `None` does
      not truncate.
    max_log_ratio: bound of |log ratio|, in nats.
    **context: reads `advantages`, `old_logprobs`, `weights`.

  Returns:
    The loss and its auxiliary output.

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
  if max_ratio is not None:
    check_range('max_ratio', max_ratio, 0, math.inf)
  inputs = loss_inputs(stats, context, 'dppo')
  fixed = jax.lax.stop_gradient(inputs)
  clipped = _outside_trust_region(fixed, low, high, measure)
  ratio, _ = clamped_ratio(fixed.log_ratio, max_log_ratio)
  truncated_ratio = (
    ratio if max_ratio is None else jnp.minimum(ratio, max_ratio)
  )
  score_weight = inputs.advantages * truncated_ratio
  # exp(x − sg(x)) is 1 and has the derivative of x: the truncation then bounds
  # the gradient instead of removing it.
  straight_through = jnp.exp(inputs.log_ratio - fixed.log_ratio)
  return weighted_loss(
    inputs,
    jnp.where(clipped, 0, -score_weight * straight_through),
    ratio=ratio,
    score_weight=score_weight,
    clipped=clipped,
  )


def pessimistic_loss(
  inputs: LossInputs, ratio: Float[Array, 'B T'], low: Number, high: Number
) -> tuple[Float[Array, 'B T'], Bool[Array, 'B T']]:
  """Returns the larger of unclipped and clipped loss, and where it is clipped."""
  unclipped = -inputs.advantages * ratio
  clipped = -inputs.advantages * bounded(ratio, 1 - low, 1 + high)
  return jnp.maximum(unclipped, clipped), clipped > unclipped


def _outside_trust_region(
  inputs: LossInputs,
  low: Number,
  high: Number,
  measure: Literal['tv', 'kl'],
) -> Bool[Array, 'B T']:
  """Tokens outside DPPO's trust region that the loss would push further out."""
  old_logprobs = inputs.logprobs - inputs.log_ratio
  new, old = jnp.exp(inputs.logprobs), jnp.exp(old_logprobs)
  if measure == 'tv':
    distance = jnp.abs(new - old)
  else:
    # π_old = 1 leaves no other token; π = 1 is infinitely far from π_old < 1.
    others = jnp.log1p(-jnp.minimum(old, 1)) - jnp.log1p(-jnp.minimum(new, 1))
    distance = -old * inputs.log_ratio + jnp.where(
      old < 1, (1 - old) * others, 0
    )
  rising = (inputs.advantages > 0) & (new > old) & (distance > high)
  falling = (inputs.advantages < 0) & (new < old) & (distance > low)
  return rising | falling
