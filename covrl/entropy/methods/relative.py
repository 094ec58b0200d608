# SPDX-License-Identifier: Apache-2.0
"""Methods that weigh each token relative to the whole batch.

The reference quantities (a quota, the extremes) are decided once for the
optimiser batch and are the same for every micro-batch, in every layout. A
trainer that decides on old statistics computes them from those.
"""

import math
from typing import Literal, Unpack, get_args

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from covrl.array_checks import concrete_number
from covrl.entropy.base import Fraction, require_entry
from covrl.entropy.decisions import DecisionCache, check_scope
from covrl.entropy.methods.covariance import TokenTransformation
from covrl.entropy.selectors import all_but, top_entropy
from covrl.entropy.transforms import scale_by_token, token_masked
from covrl.types import (
  Scalar,
  Scope,
  SelectionSource,
  TokenContext,
  TokenStats,
)

Curve = Literal['exponential', 'linear']

CURVES = get_args(Curve)

# Lower bound of STEER's scale of entropy changes.
_LEAST_CHANGE = 0.02


def forking_tokens(
  fraction: Fraction = 0.2,
  *,
  minimum: ArrayLike = 0,
  scope: Scope = 'batch',
  selection_source: SelectionSource = 'old',
) -> TokenTransformation:
  """The 80/20 rule: a gradient for the tokens of highest entropy only.

    g, h → 0   outside the top ⌊fraction · N⌋ tokens by entropy

  The others stay in the denominator, as published.

  Args:
    fraction: share of the optimiser batch's response tokens that is kept.
    minimum: smallest number kept.
    scope: see `token_masked`; published per micro-batch.
    selection_source: `'old'` ranks by `old_entropy`, `'current'` by the
      statistics, as published.

  References:
    Wang et al., `Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive
    Effective Reinforcement Learning for LLM Reasoning
    <https://arxiv.org/abs/2506.01939>`_, 2025.

  >>> tx = forking_tokens(0.5, selection_source='current')
  >>> stats = TokenStats(
  ...     logprobs=jnp.ones((1, 2)), entropy=jnp.array([[0.1, 2.0]]))
  >>> signal, _ = tx.update(
  ...     stats, tx.init(stats.template()), stats,
  ...     advantages=jnp.ones((1, 2)), mask=jnp.ones((1, 2), bool))
  >>> signal.logprobs
  Array([[0., 1.]], dtype=float32)
  """
  selector = top_entropy(
    fraction, minimum=minimum, selection_source=selection_source
  )
  return token_masked(optax.set_to_zero(), all_but(selector), scope=scope)


def steer(
  low: float = 0.8,
  high: float | None = None,
  *,
  curve: Curve = 'exponential',
  scope: Scope = 'batch',
) -> TokenTransformation:
  """STEER: scales down the tokens whose update changes the entropy most.

    Ω = |A / π_old(a) · π(a) (1 − π(a)) (log π(a) + H)|
    'exponential':  g, h × exp(log(low) · Ω / max(max Ω, 0.02)), at least low
    'linear':       g, h × high − (high − low) · (Ω − min Ω) / (max Ω − min Ω)

  with extremes over the response tokens of the whole optimiser batch
  (published: of each micro-batch).

  Args:
    low: factor of the largest change; published 0.8.
    high: factor of the smallest change under `'linear'`; published 1.2, which
      is the default there. Under `'exponential'` it is always 1.
    curve: `'exponential'` or `'linear'`.
    scope: `'batch'` or, for parity, `'micro_batch'`.

  Raises:
    ValueError: if an option is outside its range.

  References:
    Hao et al., `Rethinking Entropy Interventions in RLVR: An Entropy Change
    Perspective <https://arxiv.org/abs/2510.10150>`_, 2025.

  >>> tx = steer(low=0.5)
  >>> stats = TokenStats(
  ...     logprobs=jnp.log(jnp.array([[0.5, 1.0]])), entropy=jnp.ones((1, 2)))
  >>> ones = TokenStats(logprobs=jnp.ones((1, 2)), entropy=jnp.zeros((1, 2)))
  >>> signal, _ = tx.update(
  ...     ones, tx.init(stats.template()), stats, advantages=jnp.ones((1, 2)),
  ...     old_logprobs=stats.logprobs, mask=jnp.ones((1, 2), bool))
  >>> signal.logprobs
  Array([[0.5, 1. ]], dtype=float32)
  """
  if curve not in CURVES:
    raise ValueError(f'curve must be one of {CURVES}, got {curve!r}')
  check_scope(scope)
  if high is not None and curve == 'exponential':
    raise ValueError(
      f"high must be None with curve='exponential', where it is 1, got {high:g}"
    )
  for name, value in (('low', low), ('high', high)):
    if value is not None:
      concrete_number(value, name, allow_schedule=False)
  largest_factor = (
    1.0 if curve == 'exponential' else 1.2 if high is None else high
  )
  if not 0 < low < largest_factor < math.inf:
    raise ValueError(
      f'low must lie between 0 and {largest_factor:g}, the factor of the smallest change, '
      f'got {low:g}'
    )

  def factor(
    stats: TokenStats, **context: Unpack[TokenContext]
  ) -> Float[Array, 'B T']:
    mask = require_entry(context, 'mask', 'steer')
    change = _entropy_change(stats, context, mask)
    least, most = DecisionCache.of(context).decide(
      'range', lambda: _range(change, mask), scope
    )
    if curve == 'exponential':
      most = jnp.maximum(most, _LEAST_CHANGE)
      factors = jnp.maximum(jnp.exp(math.log(low) * change / most), low)
    else:
      width = most - least
      # A width of NaN makes factors NaN.
      relative_change = jnp.where(
        width == 0, 0.5, (change - least) / jnp.where(width == 0, 1, width)
      )
      factors = largest_factor - (largest_factor - low) * jnp.clip(
        relative_change, 0, 1
      )
    return jnp.where(mask, factors, 1)

  return scale_by_token('steer', factor)


def _entropy_change(
  stats: TokenStats, context: TokenContext, mask: Bool[Array, 'B T']
) -> Float[Array, 'B T']:
  """STEER's estimate of the magnitude of each token's entropy change."""

  def masked(values: Float[Array, 'B T']) -> Float[Array, 'B T']:
    return jnp.where(mask, values, 0)

  advantages = masked(require_entry(context, 'advantages', 'steer'))
  old_logprobs = masked(require_entry(context, 'old_logprobs', 'steer'))
  logprobs = masked(stats.logprobs)
  logit_term = (1 - jnp.exp(logprobs)) * (logprobs + masked(stats.entropy))
  return jnp.abs(advantages * jnp.exp(logprobs - old_logprobs) * logit_term)


def _range(
  values: Float[Array, 'B T'], mask: Bool[Array, 'B T']
) -> tuple[Scalar, Scalar]:
  """Minimum and maximum under a mask, (0, 0) if it is empty."""
  has_tokens = jnp.any(mask)
  least = jnp.min(jnp.where(mask, values, jnp.inf), initial=jnp.inf)
  most = jnp.max(jnp.where(mask, values, -jnp.inf), initial=-jnp.inf)
  return jnp.where(has_tokens, least, 0), jnp.where(has_tokens, most, 0)
