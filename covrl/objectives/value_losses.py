# SPDX-License-Identifier: Apache-2.0
"""Losses of a critic, and how well its values predict returns."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from covrl.array_checks import check_array, check_number
from covrl.objectives.base import Number
from covrl.statistics.exact import count_true, exact_mean
from covrl.types import Scalar


class ValueAux(NamedTuple):
  """Per-token results of a value loss; constants to autodiff.

  Attributes:
    losses: loss of each token, before weights; 0 where the weight is 0.
    clipped: tokens whose gradient the loss has clipped away.
  """

  losses: Float[Array, 'B T']
  clipped: Bool[Array, 'B T']


def clipped_value_loss(
  values: Float[Array, 'B T'],
  *,
  old_values: Float[Array, 'B T'],
  returns: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  clip: Number | None = 0.5,
) -> tuple[Scalar, ValueAux]:
  """PPO's clipped value loss: changes beyond the clip range do not lower it.

    loss = ½ max((V − G)², (clip(V, V_old − c, V_old + c) − G)²)

  Args:
    values: V, the critic's estimates.
    old_values: V_old, the estimates that the returns were computed from.
    returns: G, the targets.
    weights: weight of each token in the objective; those of weight 0 are not
      part of it, even if they hold NaN.
    clip: c; `None` disables it.

  Returns:
    Σ weights · loss, and the per-token results.

  Raises:
    TypeError: an argument has another type than its annotation.
    ValueError: shapes differ, or the clip range is not positive.

  >>> value, aux = clipped_value_loss(
  ...   jnp.array([[1.0, 0.2]]), old_values=jnp.zeros((1, 2)),
  ...   returns=jnp.ones((1, 2)), weights=jnp.full((1, 2), 0.5))
  >>> aux.losses[0, 0].item(), aux.clipped.tolist()
  (0.125, [[True, False]])

  References:
    Schulman et al., Proximal Policy Optimization, arXiv:1707.06347, and its
    published code, the source of the clip; verl and OpenRLHF use c = 0.5.
  """
  shape = check_array('values', values, 'real', 'B T')
  for name, array in (
    ('old_values', old_values),
    ('returns', returns),
    ('weights', weights),
  ):
    check_array(name, array, 'real', 'B T', shape)
  active = weights != 0
  dtype = jnp.result_type(values, old_values, returns, weights, jnp.float32)

  def masked(x: Float[Array, 'B T']) -> Float[Array, 'B T']:
    return jnp.where(active, x.astype(dtype), 0)

  values = masked(values)
  targets = jax.lax.stop_gradient(masked(returns))
  losses = jnp.square(values - targets) / 2
  clipped = jnp.zeros(shape, bool)
  if clip is not None:
    check_number('clip', clip, 0, is_open=True)
    old = jax.lax.stop_gradient(masked(old_values))
    change = jax.lax.stop_gradient(values) - old
    bounded_values = old + jnp.clip(change, -clip, clip)
    # A change of NaN counts as outside the clip range and makes the loss NaN.
    clipped_values = jnp.where(jnp.abs(change) <= clip, values, bounded_values)
    clipped_losses = jnp.square(clipped_values - targets) / 2
    clipped = clipped_losses > losses
    losses = jnp.maximum(losses, clipped_losses)
  value = jnp.sum(weights.astype(dtype) * losses)
  return value, jax.lax.stop_gradient(ValueAux(losses, clipped))


def explained_variance(
  values: Float[Array, 'B T'],
  returns: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
) -> Scalar:
  """Share of the variance of returns that the values explain.

    1 − Var(G − V) / Var(G)

  over the mask: 1 for a perfect critic, 0 for a constant one, negative for one
  that is worse. Sums are exact, the same bits in every layout.

  Args:
    values: V, the critic's estimates.
    returns: G, what they estimate.
    mask: true for response tokens.

  Returns:
    The share; NaN where all returns are equal, and without any.

  >>> returns, mask = jnp.array([[0.0, 2.0]]), jnp.array([[True, True]])
  >>> explained_variance(jnp.array([[0.5, 1.5]]), returns, mask).item()
  0.75
  """
  shape = check_array('mask', mask, 'bool', 'B T')
  check_array('values', values, 'real', 'B T', shape)
  check_array('returns', returns, 'real', 'B T', shape)
  total = _variance(returns, mask)
  unexplained = _variance(returns - values, mask)
  is_defined = (total > 0) & (count_true(mask) > 0)
  return jnp.where(
    is_defined, 1 - unexplained / jnp.where(is_defined, total, 1), jnp.nan
  )


def _variance(values: Float[Array, 'B T'], mask: Bool[Array, 'B T']) -> Scalar:
  """Biased variance over a mask."""
  mean = exact_mean(values, mask)
  return exact_mean(jnp.square(jnp.where(mask, values - mean, 0)), mask)
