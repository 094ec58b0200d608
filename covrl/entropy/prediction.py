# SPDX-License-Identifier: Apache-2.0
"""What a signal is about to do to the entropy, before it does.

A descent step of size η on cotangents (g, h) of log π(a) and H moves the logits
by Δz = −η [g (e_a − π) − h π f] with f = log π + H, and so the entropy by

  ΔH = η [ g (π(a) f(a) − κ) − h Σπ² f² ],   κ = Σπ² f,

to first order and where logits are free parameters. For a policy gradient it is
−η c* (see `exact_score`), for an entropy bonus η · coefficient · Σπ² f².
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from covrl.entropy.decisions import Plan
from covrl.entropy.exact import exact_sum
from covrl.types import Scalar, TokenMoments, TokenStats


class Outlook(NamedTuple):
  """First-order change of the entropy per unit of step size, in nats.

  Attributes:
    drift: of everything in the signal but one coefficient.
    effect: of one unit of that coefficient.
    limit: a coefficient beyond it has no more effect than at it.
  """

  drift: ArrayLike
  effect: ArrayLike
  limit: ArrayLike = math.inf

  @classmethod
  def of(
    cls, drift: Scalar, effect: ArrayLike, limit: ArrayLike = math.inf
  ) -> 'Outlook':
    """An outlook of arrays, as a plan keeps it."""
    return cls(drift, *(jnp.asarray(x, drift.dtype) for x in (effect, limit)))


# Nothing foreseen: a coefficient is its own unit.
BLIND = Outlook(drift=0.0, effect=1.0)


def entropy_change(
  signal: TokenStats, stats: TokenStats, moments: TokenMoments
) -> Float[Array, 'B T']:
  """First-order entropy change of each token's signal at step size 1, in nats.

    g (π(a) f(a) − κ) − h Σπ² f²,   f = log π + H,   κ = Σπ² f

  Args:
    signal: cotangents (g, h), the weights of the objective included.
    stats: of the policy.
    moments: of the same policy.

  Returns:
    Per token; 0 where it is not finite.

  >>> pi = jnp.array([0.5, 0.25, 0.25])
  >>> from covrl import token_stats_from_logits
  >>> stats, moments = token_stats_from_logits(
  ...   jnp.log(pi)[None, None], jnp.zeros((1, 1), int), moments=True)
  >>> bonus = TokenStats(logprobs=jnp.zeros((1, 1)), entropy=-jnp.ones((1, 1)))
  >>> f = jnp.log(pi) + stats.entropy[0, 0]
  >>> bool(jnp.allclose(entropy_change(bonus, stats, moments), pi**2 @ f**2))
  True
  """
  entropy = stats.entropy
  surprise = jnp.exp(stats.logprobs) * (stats.logprobs + entropy)
  kappa = moments.square_log + entropy * moments.square
  spread = moments.square_log_square + entropy * (moments.square_log + kappa)
  change = signal.logprobs * (surprise - kappa) - signal.entropy * spread
  return jnp.where(jnp.isfinite(change), change, 0)


def look_ahead(
  edit: Callable[[float], TokenStats],
  stats: TokenStats,
  context: Mapping[str, Any],
) -> Outlook:
  """What a coefficient would do, and what happens without it.

  Decided once for the optimiser batch, the same bits in every layout.

  Args:
    edit: the signal that a coefficient makes, affine in it.
    stats: of the policy.
    context: see `TokenContext`.

  Returns:
    The outlook, `BLIND` without `moments` in the context.
  """
  moments = context.get('moments')
  if moments is None:
    return BLIND
  stats = jax.lax.stop_gradient(stats)

  def change(coefficient: float) -> Scalar:
    return total(entropy_change(edit(coefficient), stats, moments))

  def look() -> Outlook:
    without = change(0.0)
    return Outlook.of(drift=without, effect=change(1.0) - without)

  return Plan.of(context).decide(look)


def total(values: Float[Array, 'B T']) -> Scalar:
  """The sum over all tokens, the same bits in every layout."""
  return exact_sum(values, jnp.ones_like(values, bool))
