# SPDX-License-Identifier: Apache-2.0
"""Adaptive controller: follows a target with a model of the entropy's change.

Like those of `covrl.entropy.controllers`, it may be passed wherever a coefficient
is accepted.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from covrl.array_checks import concrete_number
from covrl.entropy.controller_base import (
  Controller,
  Setpoint,
  check_bounds,
  check_positive,
  check_target,
  entropy_in,
  has_reading,
  is_initializing,
  keep_without_reading,
  prediction_in,
  scalar,
  setpoint,
)
from covrl.types import Scalar

# The estimated slope stays within this factor of the initial guess.
_SLOPE_RANGE = 1e3
# Prior variances of the drift (squared nats) and of the slope's logarithm.
_PRIOR_VARIANCES = (1e-4, 1.0)
# Process noise of the slope's logarithm per update.
_SLOPE_PROCESS_NOISE = 1e-4
# Observation noise of entropy changes (squared nats): prior and lower bound.
_PRIOR_NOISE = 1e-4
_LEAST_NOISE = 1e-6


def target_entropy(
  target: Setpoint,
  *,
  horizon: float = 10.0,
  momentum: float = 0.9,
  slope: float = 1.0,
  minimum: float = 0.0,
  maximum: float = 1.0,
) -> Controller:
  """Controls entropy to a target by a first-order model with a learnt scale.

  The model of the entropy change by the t-th update is

    ΔH = d + s · z̄,    z̄ ← z̄ + (1 − β) (z − z̄) / (1 − βᵗ),    z = D + c · E

  where c is the coefficient, E the change of the entropy by one unit of it at
  step size 1 and D the change by the rest of the signal, both to first order and
  from the context's `moments` (see `covrl.entropy.prediction`); β is the
  optimiser's momentum, s the effective step size (under Adam it is not the
  learning rate) and d the change that the formula does not explain. For the
  entropy to be at the target `horizon` updates h from now, if z stays constant,

    c = (z − D) / E within [minimum, maximum],    z = (w − λ z̄) / (1 − λ),
    w = ((target − H) / h − d) / s,   λ = (1 − βᵗ⁻¹) (β + … + βʰ) / h,

  with z̄ of the last update, w the required mean of z̄ and λ the share of that
  mean that past updates contribute through momentum.
  Without a prediction (no moments, or `optax.inject_hyperparams`, which evaluates
  the coefficient before there is a signal) D is 0 and E is 1.

  d and log s are learnt online from the observed changes, by an extended Kalman
  filter. With z̄ of the update, e = ΔH − d − s·z̄, r the running mean of e²
  (at least 1e-6) and P the covariance of (d, log s),

    P ← P + diag(r / h², 1e-4),   v = P (1, s·z̄),   k = v / ((1, s·z̄)·v + r)
    (d, log s) ← (d, log s) + k·e,      P ← P − k vᵀ

  with steps of log s of at most 1.
  d integrates the error, so the target is reached without offset. It does not
  wind up, because it integrates only the change that the applied coefficient left
  unexplained.

  H is the context's `entropy`, ΔH its change since the last update, and z̄ that of
  the update before the last, which is independent of the noise of that reading.
  A trainer that also measures how its updates change the entropy of fixed tokens
  passes that change as `entropy_change`, NaN if it was not measured. ΔH is then
  this change, less noisy than a difference of readings, which vary with the
  sampled prompts; but an update may change the entropy of the measured tokens by
  more or less than that of others, by a bias u. So the estimate Ĥ of the entropy
  changes by ΔH + u, with u learnt from the readings (an observer with a bias,
  critically damped): with ν = H − (Ĥ + ΔH + u),

    Ĥ ← Ĥ + ΔH + u + ν / min(t, h),     u ← u + ν / (2h)²,

  and w has Ĥ in place of H and d + u in place of d.

  Args:
    target: entropy to reach, in nats.
    horizon: updates in which the distance to the target shrinks by 1/e.
    momentum: β of the optimiser, Adam's `b1`; 0 if it has none.
    slope: initial guess of s, right within a factor of 1000. At the target the
      coefficient does not depend on it; elsewhere a large guess is cautious, and
      one that is far too small oscillates until it is learnt.
    minimum: least coefficient.
    maximum: greatest coefficient.

  Raises:
    ValueError: if a number is outside its range.

  References:
    The formula is `exact_score`'s, summed and solved for the coefficient; the
    controller is this project's.

  >>> controller = target_entropy(0.5, horizon=10.0, slope=2.0)
  >>> float(controller(controller.init(), entropy=jnp.array(0.3)))
  0.009999999776482582
  """
  check_target(target, 'target')
  check_positive(slope, 'slope')
  for name, value in (('horizon', horizon), ('momentum', momentum)):
    concrete_number(value, name, allow_schedule=False)
  if not 1 <= horizon < math.inf:
    raise ValueError(f'horizon must be finite and at least 1, got {horizon:g}')
  if not 0 <= momentum < 1:
    raise ValueError(f'momentum must lie in [0, 1), got {momentum:g}')
  check_bounds(minimum, maximum, minimum)
  return _TargetEntropy(target, horizon, momentum, slope, minimum, maximum)


class TargetEntropyState(NamedTuple):
  """State of `target_entropy`.

  Attributes:
    readings: number of entropy readings so far, int32.
    entropy: the last estimate Ĥ of H, in nats.
    bias: estimate of u, nats per update.
    predicted: z̄ of the last update.
    previous_predicted: z̄ of the update before.
    drift: estimate of d, nats per update.
    slope: estimate of s, nats per update and unit of z̄.
    drift_variance: variance of d, an element of P.
    slope_variance: variance of log s, an element of P.
    covariance: covariance of d and log s, an element of P.
    noise: running mean of the squared error e.
  """

  readings: Int[Array, '']
  entropy: Scalar
  bias: Scalar
  predicted: Scalar
  previous_predicted: Scalar
  drift: Scalar
  slope: Scalar
  drift_variance: Scalar
  slope_variance: Scalar
  covariance: Scalar
  noise: Scalar


class _Observation(NamedTuple):
  """Observation of an update: ΔH (valid if `is_known`), Ĥ and u."""

  is_known: Bool[Array, '']
  change: Scalar
  entropy: Scalar
  bias: Scalar


@dataclasses.dataclass(frozen=True)
class _TargetEntropy:
  target: Setpoint
  horizon: float
  momentum: float
  slope: float
  minimum: float
  maximum: float

  def init(self) -> TargetEntropyState:
    zero = scalar(0.0)
    return TargetEntropyState(
      readings=jnp.zeros((), jnp.int32),
      entropy=zero,
      bias=zero,
      predicted=zero,
      previous_predicted=zero,
      drift=zero,
      slope=scalar(self.slope),
      drift_variance=scalar(_PRIOR_VARIANCES[0]),
      slope_variance=scalar(_PRIOR_VARIANCES[1]),
      covariance=zero,
      noise=scalar(_PRIOR_NOISE),
    )

  def update(
    self, state: TargetEntropyState, **context: Any
  ) -> TargetEntropyState:
    observed = self._observe(state, context)
    learnt = jax.tree.map(
      lambda new, old: jnp.where(observed.is_known, new, old),
      self._learn(state, observed.change),
      state,
    )
    prediction = prediction_in(context)
    predicted = prediction.drift + self(state, **context) * prediction.effect
    rate = (1 - self.momentum) / (1 - self.momentum ** (state.readings + 1))
    moved = learnt._replace(
      readings=state.readings + 1,
      entropy=observed.entropy,
      bias=observed.bias,
      predicted=state.predicted + rate * (predicted - state.predicted),
      previous_predicted=state.predicted,
    )
    return keep_without_reading(moved, state, context)

  def __call__(self, state: TargetEntropyState, **context: Any) -> Scalar:
    if is_initializing(context):
      return scalar(self.minimum)
    prediction = prediction_in(context)
    observed = self._observe(state, context)
    is_estimated = has_reading(context) | (state.readings > 0)
    ahead = setpoint(self.target, context, later=self.horizon)
    required = (ahead - observed.entropy) / self.horizon
    mean = (required - state.drift - observed.bias) / state.slope
    carried = self._carried_share(state)
    rise = (mean - carried * state.predicted) / (1 - carried)
    effect = jnp.asarray(prediction.effect)
    raises = effect > 0
    needed = (rise - prediction.drift) / jnp.where(raises, effect, 1)
    # A coefficient without effect, or with the opposite one, is at its minimum.
    needed = jnp.where(raises, needed, self.minimum)
    limit = jnp.clip(prediction.limit, self.minimum, self.maximum)
    # Before the first reading there is no estimate of the entropy.
    needed = jnp.where(is_estimated, needed, self.minimum)
    return jnp.clip(needed, self.minimum, limit)

  def _observe(
    self, state: TargetEntropyState, context: dict[str, Any]
  ) -> _Observation:
    is_first = state.readings == 0
    # Without a reading, the last estimate.
    entropy = jnp.where(
      has_reading(context), entropy_in(context), state.entropy
    )
    # Before the third reading there is no update before the last.
    has_two = state.readings > 1
    if 'entropy_change' not in context:
      return _Observation(
        is_known=has_two,
        change=entropy - state.entropy,
        entropy=entropy,
        bias=state.bias,
      )
    measured = jnp.asarray(context['entropy_change'], entropy.dtype)
    is_known = jnp.isfinite(measured)
    expected = state.drift + state.slope * state.previous_predicted
    change = jnp.where(is_known, measured, expected)
    moved = jnp.where(is_first, entropy, state.entropy + change + state.bias)
    error = entropy - moved
    memory = jnp.minimum(state.readings + 1, self.horizon)
    return _Observation(
      is_known=is_known & has_two,
      change=change,
      entropy=moved + error / memory,
      bias=state.bias + error / (2 * self.horizon) ** 2,
    )

  def _carried_share(self, state: TargetEntropyState) -> Scalar:
    """λ, the share of the horizon's mean of z̄ that is due to past updates."""
    momentum = self.momentum
    lag = momentum * (1 - momentum**self.horizon) / (1 - momentum)
    return (1 - momentum**state.readings) * lag / self.horizon

  def _learn(
    self, state: TargetEntropyState, change: Scalar
  ) -> TargetEntropyState:
    """Kalman update of drift and slope by one observed entropy change."""
    effect = state.slope * state.previous_predicted
    innovation = change - state.drift - effect
    noise = jnp.maximum(state.noise, _LEAST_NOISE)
    drift_variance = state.drift_variance + noise / self.horizon**2
    slope_variance = state.slope_variance + _SLOPE_PROCESS_NOISE
    # v, the covariances of drift and log slope with the change.
    of_drift = drift_variance + state.covariance * effect
    of_slope = state.covariance + slope_variance * effect
    total = of_drift + of_slope * effect + noise
    log_slope = of_slope / total * innovation
    slope = jnp.clip(
      state.slope * jnp.exp(jnp.clip(log_slope, -1, 1)),
      self.slope / _SLOPE_RANGE,
      self.slope * _SLOPE_RANGE,
    )
    return state._replace(
      drift=state.drift + of_drift / total * innovation,
      slope=slope,
      drift_variance=drift_variance - of_drift**2 / total,
      slope_variance=slope_variance - of_slope**2 / total,
      covariance=state.covariance - of_drift * of_slope / total,
      noise=state.noise + (innovation**2 - state.noise) / self.horizon,
    )
