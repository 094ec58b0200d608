# SPDX-License-Identifier: Apache-2.0
"""First-order prediction of the entropy change caused by a cotangent.

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

from covrl.context_checks import check_moments, check_stats
from covrl.entropy.decisions import DecisionCache
from covrl.statistics.exact import exact_sum
from covrl.types import Scalar, TokenMoments, TokenStats


class EntropyPrediction(NamedTuple):
  """First-order change of the entropy per unit of step size, in nats.

  Attributes:
    drift: change by the signal without the coefficient's term.
    effect: change by one unit of the coefficient.
    limit: coefficient above which the effect does not grow.
  """

  drift: ArrayLike
  effect: ArrayLike
  limit: ArrayLike = math.inf

  @classmethod
  def of_arrays(
    cls, drift: Scalar, effect: ArrayLike, limit: ArrayLike = math.inf
  ) -> 'EntropyPrediction':
    """A prediction made of arrays only, as a decision must be."""
    return cls(drift, *(jnp.asarray(x, drift.dtype) for x in (effect, limit)))


# Used where nothing can be predicted: one unit of the coefficient counts as 1 nat.
NO_PREDICTION = EntropyPrediction(drift=0.0, effect=1.0)


def entropy_change(
  signal: TokenStats, stats: TokenStats, moments: TokenMoments
) -> Float[Array, 'B T']:
  """First-order entropy change of each token's signal at step size 1, in nats.

    g (π(a) f(a) − κ) − h Σπ² f²,   f = log π + H,   κ = Σπ² f

  Args:
    signal: cotangents (g, h), including the weights of the objective.
    stats: statistics of the policy.
    moments: moments of the same policy.

  Returns:
    Change per token; 0 where it is not finite.

  Raises:
    TypeError: an argument has another type than its annotation.
    ValueError: shapes differ.

  >>> pi = jnp.array([0.5, 0.25, 0.25])
  >>> from covrl import token_stats_from_logits
  >>> stats, moments = token_stats_from_logits(
  ...   jnp.log(pi)[None, None], jnp.zeros((1, 1), int), moments=True)
  >>> bonus = TokenStats(logprobs=jnp.zeros((1, 1)), entropy=-jnp.ones((1, 1)))
  >>> f = jnp.log(pi) + stats.entropy[0, 0]
  >>> bool(jnp.allclose(entropy_change(bonus, stats, moments), pi**2 @ f**2))
  True
  """
  check_stats('stats', stats, 'entropy_change')
  shape = stats.logprobs.shape
  check_stats('signal', signal, 'entropy_change', shape)
  check_moments('moments', moments, shape)
  change = raw_entropy_change(signal, stats, moments)
  return jnp.where(jnp.isfinite(change), change, 0)


def raw_entropy_change(
  signal: TokenStats, stats: TokenStats, moments: TokenMoments
) -> Float[Array, 'B T']:
  """`entropy_change`, with NaN and infinities where they occur."""
  entropy = stats.entropy
  pi_f = jnp.exp(stats.logprobs) * (stats.logprobs + entropy)
  kappa = moments.square_log + entropy * moments.square
  # Σπ² f².
  sum_square_f = moments.square_log_square + entropy * (
    moments.square_log + kappa
  )
  return signal.logprobs * (pi_f - kappa) - signal.entropy * sum_square_f


def predict_effect(
  edit: Callable[[float], TokenStats],
  stats: TokenStats,
  context: Mapping[str, Any],
) -> EntropyPrediction:
  """Entropy change by a unit of a coefficient, and by the signal without it.

  Decided once for the optimiser batch, the same bits in every layout.

  Args:
    edit: coefficient to signal, affine.
    stats: statistics of the policy.
    context: see `TokenContext`.

  Returns:
    The prediction, `NO_PREDICTION` without `moments` in the context.
  """
  moments = context.get('moments')
  if moments is None:
    return NO_PREDICTION
  stats = jax.lax.stop_gradient(stats)

  def change(coefficient: float) -> Scalar:
    return token_sum(entropy_change(edit(coefficient), stats, moments))

  def predict() -> EntropyPrediction:
    drift = change(0.0)
    return EntropyPrediction.of_arrays(drift=drift, effect=change(1.0) - drift)

  return DecisionCache.of(context).decide('prediction', predict)


def token_sum(values: Float[Array, 'B T']) -> Scalar:
  """The sum over all tokens, the same bits in every layout."""
  return exact_sum(values, jnp.ones_like(values, bool))
