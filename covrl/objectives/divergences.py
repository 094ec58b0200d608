# SPDX-License-Identifier: Apache-2.0
"""Per-token estimators of KL(π ‖ π_ref), and their derivatives.

All are functions of log_ratio = log π(a) − log π_ref(a), computed in at least
float32.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from covrl.array_checks import check_array, check_number
from covrl.objectives.base import Number, bounded

DivergenceEstimator = Literal['k1', 'abs', 'k2', 'k3', 'k1+', 'k3+']
DIVERGENCES: tuple[DivergenceEstimator, ...] = get_args(DivergenceEstimator)

# k3's exponent is clamped to ± this, so that it stays finite in float32.
MAX_LOG_RATIO = 20.0


def divergence(
  log_ratio: Float[Array, '*shape'],
  kind: DivergenceEstimator,
  *,
  dead_zone: Number = 0.0,
) -> Float[Array, '*shape']:
  """Divergence of π from π_ref, estimated at the sampled token, in nats.

    'k1'   log_ratio
    'abs'  |log_ratio|
    'k2'   log_ratio² / 2
    'k3'   exp(−log_ratio) + log_ratio − 1
    'k1+'  value of k1, gradient of k2
    'k3+'  value of k3, gradient of k2

  On samples of π the mean of k1 and of k3 is the KL, and the mean of k2's
  gradient is the KL's gradient, which the straight-through estimators 'k1+' and
  'k3+' use. KL-Cov was published with 'abs', which does not estimate the KL.

  Args:
    log_ratio: log π − log π_ref of the sampled token, in nats.
    kind: the estimator, one of the above. 'k3' is constant beyond
      |log_ratio| = 20.
    dead_zone: nats. Under 'abs', a token with |log_ratio| ≤ dead_zone has value
      and gradient 0, because the sign of rounding noise would otherwise give a
      gradient of full size. The other estimators are smooth at 0 and ignore it.

  Returns:
    The divergence of each token, in nats.

  Raises:
    ValueError: if the kind is unknown.

  >>> divergence(jnp.array([-0.5, 0.0, 0.5]), 'k2').tolist()
  [0.125, 0.0, 0.125]

  References:
    Schulman, Approximating KL Divergence, 2020, joschu.net/blog/kl-approx.html.
    Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning
    Language Models, arXiv:2505.22617 ('abs').
  """
  x = _checked(log_ratio, kind)
  if kind == 'abs':
    return jnp.where(_in_dead_zone(x, dead_zone), 0, x * _sign(x))
  if kind == 'k2':
    return x * x / 2
  if kind in ('k1', 'k1+'):
    value = x
  else:
    clamped = bounded(x, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    value = jnp.expm1(-clamped) + clamped
  if kind in ('k1', 'k3'):
    return value
  # The value of one estimator with the gradient of another.
  k2 = x * x / 2
  return jax.lax.stop_gradient(value) + (k2 - jax.lax.stop_gradient(k2))


def divergence_gradient(
  log_ratio: Float[Array, '*shape'],
  kind: DivergenceEstimator,
  *,
  dead_zone: Number = 0.0,
) -> Float[Array, '*shape']:
  """Derivative of `divergence` with respect to log π, in closed form.

    'k1'                1
    'abs'               sign(log_ratio), 0 at 0
    'k2', 'k1+', 'k3+'  log_ratio
    'k3'                1 − exp(−log_ratio)

  Args:
    log_ratio: log π − log π_ref of the sampled token, in nats.
    kind: the estimator, see `divergence`.
    dead_zone: nats, see `divergence`.

  Raises:
    ValueError: if the kind is unknown.

  >>> divergence_gradient(jnp.array([-2.0, 0.0, 0.1]), 'abs').tolist()
  [-1.0, 0.0, 1.0]
  """
  x = _checked(log_ratio, kind)
  if kind == 'k1':
    return jnp.ones_like(x)
  if kind == 'abs':
    return jnp.where(_in_dead_zone(x, dead_zone), 0, _sign(x))
  if kind == 'k3':
    clamped = bounded(x, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # So that NaN stays NaN, and does not count as clamped.
    return jnp.where(jnp.abs(x) > MAX_LOG_RATIO, 0, -jnp.expm1(-clamped))
  return x


def _checked(
  log_ratio: Float[Array, '*shape'], kind: DivergenceEstimator
) -> Float[Array, '*shape']:
  """Refuses unknown estimators; widens narrow floats to float32."""
  if kind not in DIVERGENCES:
    raise ValueError(f'kind must be one of {DIVERGENCES}, got {kind!r}')
  check_array('log_ratio', log_ratio, 'real', '...')
  return jnp.asarray(log_ratio, jnp.result_type(log_ratio, jnp.float32))


def _sign(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """sign(x), a constant to autodiff: jnp.abs has derivative 1 at 0."""
  return jax.lax.stop_gradient(jnp.sign(x))


def _in_dead_zone(
  x: Float[Array, '*shape'], dead_zone: Number
) -> Bool[Array, '*shape']:
  """Tokens whose log ratio is at most rounding noise."""
  check_number('dead_zone', dead_zone, 0)
  return jnp.abs(jax.lax.stop_gradient(x)) <= dead_zone
