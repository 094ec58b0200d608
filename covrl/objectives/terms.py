# SPDX-License-Identifier: Apache-2.0
"""What every policy loss starts from, and what it reports beside its value."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from covrl.types import Scalar, TokenStats

# A number in a config, or one that a schedule or controller computes.
Number: TypeAlias = int | float | Scalar


class LossAux(NamedTuple):
  """What a policy loss says of each token; constants to autodiff.

  A named tuple, so that `jax.tree` utilities may rebuild it around leaves that
  are no `[B, T]` arrays.

  Attributes:
    ratio: the importance ratio that the loss used, clamped but not clipped
      (of the sequence, in sequence-level losses); 1 where the weight is 0.
    log_ratio: log π(a) − log π_old(a) of the token, in nats, neither clamped
      nor clipped; 0 where the weight is 0.
    score_weight: w = A · ratio · 1{not clipped}: minus the derivative of the
      token's loss with respect to log π(a), before weights.
    clipped: tokens whose gradient the loss has clipped away.
  """

  ratio: Float[Array, 'B T']
  log_ratio: Float[Array, 'B T']
  score_weight: Float[Array, 'B T']
  clipped: Bool[Array, 'B T']

  @property
  def for_selection(self) -> dict[str, Array]:
    """The entries of a `TokenContext` that the loss provides."""
    return {'score_weight': self.score_weight, 'clipped': self.clipped}


class Terms(NamedTuple):
  """Inputs of a loss, widened, with nothing but zeros where the weight is 0.

  Attributes:
    active: tokens of the objective, those of non-zero weight.
    weights: each token's weight.
    advantages: A.
    logprobs: log π(a).
    log_ratio: log π(a) − log π_old(a).
  """

  active: Bool[Array, 'B T']
  weights: Float[Array, 'B T']
  advantages: Float[Array, 'B T']
  logprobs: Float[Array, 'B T']
  log_ratio: Float[Array, 'B T']


def prepare(
  stats: TokenStats,
  advantages: Float[Array, 'B T'],
  old_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
) -> Terms:
  """Masks what has no weight before anything is computed of it.

  A NaN or an infinity off the mask then reaches neither value nor gradient,
  which masking a product afterwards could not promise (0 · ∞).
  """
  active = weights != 0
  dtype = jnp.result_type(
    stats.logprobs, advantages, old_logprobs, weights, jnp.float32
  )

  def keep(x: Float[Array, 'B T']) -> Float[Array, 'B T']:
    return jnp.where(active, x.astype(dtype), 0)

  logprobs = keep(stats.logprobs)
  return Terms(
    active=active,
    weights=weights.astype(dtype),
    advantages=jax.lax.stop_gradient(keep(advantages)),
    logprobs=logprobs,
    log_ratio=logprobs - jax.lax.stop_gradient(keep(old_logprobs)),
  )


def conclude(
  terms: Terms,
  losses: Float[Array, 'B T'],
  *,
  ratio: Float[Array, 'B T'],
  score_weight: Float[Array, 'B T'],
  clipped: Bool[Array, 'B T'],
) -> tuple[Scalar, LossAux]:
  """Σ weights · losses, and the token-level report."""
  aux = LossAux(
    ratio=jnp.where(terms.active, ratio, 1),
    log_ratio=terms.log_ratio,
    score_weight=jnp.where(terms.active & ~clipped, score_weight, 0),
    clipped=terms.active & clipped,
  )
  value = jnp.sum(terms.weights * jnp.where(terms.active, losses, 0))
  return value, jax.lax.stop_gradient(aux)


def clamped_ratio(
  log_ratio: Float[Array, 'B T'], max_log_ratio: Number | None
) -> tuple[Float[Array, 'B T'], Bool[Array, 'B T']]:
  """exp(log_ratio) within exp(±max_log_ratio), and where that took the gradient."""
  if max_log_ratio is None:
    return jnp.exp(log_ratio), jnp.zeros(log_ratio.shape, bool)
  clamped = bounded(log_ratio, -max_log_ratio, max_log_ratio)
  return jnp.exp(clamped), jnp.abs(log_ratio) > max_log_ratio


def bounded(
  x: Float[Array, '*shape'], low: Number, high: Number
) -> Float[Array, '*shape']:
  """x within [low, high], with derivative 1 on the bounds as inside them.

  `jnp.clip` has derivative 1/2 on a bound, and `lax.clamp` 0.
  """
  inside = (x >= low) & (x <= high)
  return jnp.where(inside, x, jnp.clip(jax.lax.stop_gradient(x), low, high))


def check_range(name: str, value: Number, low: Number, high: Number) -> None:
  """Refuses a concrete number outside [low, high]; traced ones pass."""
  if isinstance(value, int | float) and not low <= value <= high:
    raise ValueError(f'{name} must lie in [{low:g}, {high:g}], got {value:g}')
