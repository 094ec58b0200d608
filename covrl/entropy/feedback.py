# SPDX-License-Identifier: Apache-2.0
"""Controllers with feedback: one that learns its plant, one of fixed gains.

As those of `controllers`, they stand wherever a coefficient does.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from covrl.entropy.controllers import (
  Controller,
  Setpoint,
  at,
  check_bounds,
  check_positive,
  check_target,
  is_init,
  outlook_of,
  reading,
  scalar,
)
from covrl.types import Scalar

# Of `target_entropy`: how far the slope may get from the guess; variances of the
# drift, in squared nats, and of the slope's logarithm, before anything is seen;
# by how much the latter may grow with every update. In squared nats, what changes
# are taken to vary by before any is seen, and what they always may.
_SLOPE_RANGE = 1e3
_FIRST_VARIANCES = (1e-4, 1.0)
_SLOPE_WANDER = 1e-4
_FIRST_NOISE = 1e-4
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
  """Steers entropy to a target by the first-order formula, learning its scale.

  The t-th update is taken to change the entropy by

    ΔH = d + s · z̄,    z̄ ← z̄ + (1 − β) (z − z̄) / (1 − βᵗ),    z = D + c · E

  where c is the coefficient, E what a unit of it does to the entropy at step
  size 1 and D what the rest of the signal does, both to first order and from the
  context's `moments` (see `covrl.entropy.prediction`); β is the optimiser's
  momentum, by which it goes on doing what it did; s is the step that it really
  makes (under Adam the learning rate does not tell) and d what the formula leaves
  out. So that the entropy is at the target `horizon` updates h from now, if z
  stayed what it is,

    c = (z − D) / E within [minimum, maximum],    z = (w − λ z̄) / (1 − λ),
    w = ((target − H) / h − d) / s,   λ = (1 − βᵗ⁻¹) (β + … + βʰ) / h,

  with z̄ of the last update, w what z̄ has to be in the mean and λ the share of it
  that is on its way.
  Where nothing can be foreseen (no moments, or `optax.inject_hyperparams`, which
  asks before there is a signal) D is 0 and E is 1.

  d and log s are learnt online from the changes that are seen, by an extended
  Kalman filter. With z̄ of the update, e = ΔH − d − s·z̄, r the running mean of e²
  (at least 1e-6) and P the covariance of (d, log s),

    P ← P + diag(r / h², 1e-4),   v = P (1, s·z̄),   k = v / ((1, s·z̄)·v + r)
    (d, log s) ← (d, log s) + k·e,      P ← P − k vᵀ

  with steps of log s of at most 1.
  d is an integral of the error, so the target is met without offset, and never
  winds up, because it integrates what the applied coefficient left unexplained.

  H is the context's `entropy`, ΔH its change since the last reading, and z̄ that of
  the update before the last, which the noise of that reading cannot have reached.
  A trainer that also measures by how much its updates change the entropy of
  unchanged tokens passes that as `entropy_change`, NaN where it did not. ΔH is
  then this change, less noisy than a difference of readings, which vary with the
  prompts that were drawn; but an update may change the entropy of the tokens that
  it is measured on by more or less than that of others, by some u. So Ĥ follows
  the entropy by ΔH + u, with u learnt from the readings (an observer with a bias,
  critically damped): with ν = H − (Ĥ + ΔH + u),

    Ĥ ← Ĥ + ΔH + u + ν / min(t, h),     u ← u + ν / (2h)²,

  and in w stands Ĥ for H and d + u for d.

  Args:
    target: entropy to reach, in nats.
    horizon: updates in which the distance to the target shrinks by 1/e.
    momentum: β of the optimiser, Adam's `b1`; 0 if it has none.
    slope: guess of s, right within a factor of 1000. What is foreseen cancels
      it out at the target; elsewhere a large guess is cautious, and one that is
      far too small swings until it is learnt.
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
  if not 1 <= horizon < math.inf:
    raise ValueError(f'horizon must be finite and at least 1, got {horizon:g}')
  if not 0 <= momentum < 1:
    raise ValueError(f'momentum must lie in [0, 1), got {momentum:g}')
  check_bounds(minimum, maximum, minimum)
  return _TargetEntropy(target, horizon, momentum, slope, minimum, maximum)


def proportional_integral(
  target: Setpoint,
  *,
  proportional: float = 1.0,
  integral: float = 0.01,
  offset: float = 0.0,
  minimum: float = -math.inf,
  maximum: float = math.inf,
) -> Controller:
  """The textbook controller, with fixed gains.

    coefficient = clip(offset + proportional · e + integral · Σe),
    e = target − H,   the sum including the present error

  The sum stops growing while the coefficient is at the bound that it pushes
  against.

  Args:
    target: entropy to keep, in nats.
    proportional: gain on the error; negative for what lowers entropy.
    integral: gain on the sum of errors.
    offset: coefficient without error.
    minimum: least coefficient.
    maximum: greatest coefficient.

  Raises:
    ValueError: if a number is outside its range.

  References:
    Yang et al., `EntroPIC: Towards Stable Long-Term Training of LLMs via
    Entropy Stabilization with Proportional-Integral Control
    <https://arxiv.org/abs/2511.15248>`_, 2025.

  >>> controller = proportional_integral(0.5, offset=1.0)
  >>> float(controller(controller.init(), entropy=jnp.array(0.25)))
  1.252500057220459
  """
  check_target(target, 'target')
  for name, gain in (('proportional', proportional), ('integral', integral)):
    if not math.isfinite(gain):
      raise ValueError(f'{name} must be finite, got {gain:g}')
  check_bounds(minimum, maximum, offset, 'offset')
  return _ProportionalIntegral(
    target, proportional, integral, offset, minimum, maximum
  )


class TargetEntropyState(NamedTuple):
  """State of `target_entropy`.

  Attributes:
    readings: how many there have been, int32.
    entropy: the last estimate Ĥ of H, in nats.
    unseen: estimate of u, nats per update.
    foreseen: z̄ of the last update.
    earlier_foreseen: of the one before.
    drift: estimate of d, nats per update.
    slope: estimate of s, nats per update and unit of z̄.
    drift_variance: of d, an element of P like the next two.
    slope_variance: of log s.
    covariance: of both.
    noise: running mean of the squared error e.
  """

  readings: Int[Array, '']
  entropy: Scalar
  unseen: Scalar
  foreseen: Scalar
  earlier_foreseen: Scalar
  drift: Scalar
  slope: Scalar
  drift_variance: Scalar
  slope_variance: Scalar
  covariance: Scalar
  noise: Scalar


class _Observed(NamedTuple):
  """What a context shows: ΔH, if it is known; Ĥ and u."""

  known: Bool[Array, '']
  change: Scalar
  entropy: Scalar
  unseen: Scalar


class ProportionalIntegralState(NamedTuple):
  """State of `proportional_integral`: the sum of errors, in nats."""

  total: Scalar


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
      unseen=zero,
      foreseen=zero,
      earlier_foreseen=zero,
      drift=zero,
      slope=scalar(self.slope),
      drift_variance=scalar(_FIRST_VARIANCES[0]),
      slope_variance=scalar(_FIRST_VARIANCES[1]),
      covariance=zero,
      noise=scalar(_FIRST_NOISE),
    )

  def update(
    self, state: TargetEntropyState, **context: Any
  ) -> TargetEntropyState:
    observed = self._observe(state, context)
    learnt = jax.tree.map(
      lambda new, old: jnp.where(observed.known, new, old),
      self._learn(state, observed.change),
      state,
    )
    outlook = outlook_of(context)
    foreseen = outlook.drift + self(state, **context) * outlook.effect
    pace = (1 - self.momentum) / (1 - self.momentum ** (state.readings + 1))
    return learnt._replace(
      readings=state.readings + 1,
      entropy=observed.entropy,
      unseen=observed.unseen,
      foreseen=state.foreseen + pace * (foreseen - state.foreseen),
      earlier_foreseen=state.foreseen,
    )

  def __call__(self, state: TargetEntropyState, **context: Any) -> Scalar:
    if is_init(context):
      return scalar(self.minimum)
    outlook = outlook_of(context)
    observed = self._observe(state, context)
    ahead = at(self.target, context, later=self.horizon)
    wanted = (ahead - observed.entropy) / self.horizon
    mean = (wanted - state.drift - observed.unseen) / state.slope
    under_way = self._under_way(state)
    rise = (mean - under_way * state.foreseen) / (1 - under_way)
    effect = jnp.asarray(outlook.effect)
    able = effect > 0
    needed = (rise - outlook.drift) / jnp.where(able, effect, 1)
    # What has no effect, or the wrong one, is left at its least.
    needed = jnp.where(able, needed, self.minimum)
    limit = jnp.clip(outlook.limit, self.minimum, self.maximum)
    return jnp.clip(needed, self.minimum, limit)

  def _observe(
    self, state: TargetEntropyState, context: dict[str, Any]
  ) -> _Observed:
    shown, first = reading(context), state.readings == 0
    # Before the third reading no update is before the last.
    paired = state.readings > 1
    if 'entropy_change' not in context:
      return _Observed(
        known=paired,
        change=shown - state.entropy,
        entropy=shown,
        unseen=state.unseen,
      )
    measured = jnp.asarray(context['entropy_change'], shown.dtype)
    known = jnp.isfinite(measured)
    expected = state.drift + state.slope * state.earlier_foreseen
    change = jnp.where(known, measured, expected)
    moved = jnp.where(first, shown, state.entropy + change + state.unseen)
    error = shown - moved
    memory = jnp.minimum(state.readings + 1, self.horizon)
    return _Observed(
      known=known & paired,
      change=change,
      entropy=moved + error / memory,
      unseen=state.unseen + error / (2 * self.horizon) ** 2,
    )

  def _under_way(self, state: TargetEntropyState) -> Scalar:
    """λ, the share of the horizon's mean of z̄ that past updates make."""
    momentum = self.momentum
    lag = momentum * (1 - momentum**self.horizon) / (1 - momentum)
    return (1 - momentum**state.readings) * lag / self.horizon

  def _learn(
    self, state: TargetEntropyState, change: Scalar
  ) -> TargetEntropyState:
    """Drift and slope after one more change of the entropy was seen."""
    effect = state.slope * state.earlier_foreseen
    surprise = change - state.drift - effect
    noise = jnp.maximum(state.noise, _LEAST_NOISE)
    drift_variance = state.drift_variance + noise / self.horizon**2
    slope_variance = state.slope_variance + _SLOPE_WANDER
    # v, shared by each of them with the change.
    of_drift = drift_variance + state.covariance * effect
    of_slope = state.covariance + slope_variance * effect
    total = of_drift + of_slope * effect + noise
    log_slope = of_slope / total * surprise
    slope = jnp.clip(
      state.slope * jnp.exp(jnp.clip(log_slope, -1, 1)),
      self.slope / _SLOPE_RANGE,
      self.slope * _SLOPE_RANGE,
    )
    return state._replace(
      drift=state.drift + of_drift / total * surprise,
      slope=slope,
      drift_variance=drift_variance - of_drift**2 / total,
      slope_variance=slope_variance - of_slope**2 / total,
      covariance=state.covariance - of_drift * of_slope / total,
      noise=state.noise + (surprise**2 - state.noise) / self.horizon,
    )


@dataclasses.dataclass(frozen=True)
class _ProportionalIntegral:
  target: Setpoint
  proportional: float
  integral: float
  offset: float
  minimum: float
  maximum: float

  def init(self) -> ProportionalIntegralState:
    return ProportionalIntegralState(total=scalar(0.0))

  def update(
    self, state: ProportionalIntegralState, **context: Any
  ) -> ProportionalIntegralState:
    error = at(self.target, context) - reading(context)
    wanted = self._wanted(state.total, error)
    push = self.integral * error
    stuck = ((wanted > self.maximum) & (push > 0)) | (
      (wanted < self.minimum) & (push < 0)
    )
    return ProportionalIntegralState(
      total=state.total + jnp.where(stuck, 0, error)
    )

  def __call__(
    self, state: ProportionalIntegralState, **context: Any
  ) -> Scalar:
    error = scalar(0.0)
    if not is_init(context):
      error = at(self.target, context) - reading(context)
    wanted = self._wanted(state.total, error)
    return jnp.clip(wanted, self.minimum, self.maximum)

  def _wanted(self, total: Scalar, error: Scalar) -> Scalar:
    proportional = self.proportional * error
    return self.offset + proportional + self.integral * (total + error)
