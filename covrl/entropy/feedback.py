# SPDX-License-Identifier: Apache-2.0
"""Controllers with feedback: one that learns its plant, one of fixed gains.

As those of `controllers`, they stand wherever a coefficient does.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from covrl.entropy.controllers import (
  Controller,
  Setpoint,
  at,
  check_bounds,
  check_positive,
  check_target,
  is_init,
  reading,
  scalar,
)
from covrl.types import Scalar

# How fast `target_entropy` learns its slope; how far from the guess it may get;
# and the squared nats that readings are taken to vary by before any is seen.
_ADAPTATION = 0.2
_SLOPE_RANGE = 1e3
_FIRST_NOISE = 1e-4


def target_entropy(
  target: Setpoint,
  *,
  horizon: float = 20.0,
  slope: float = 1.0,
  initial: float = 0.0,
  minimum: float = 0.0,
  maximum: float = 0.05,
) -> Controller:
  """Steers entropy to a target at a chosen pace, learning what it steers.

  It takes entropy to follow H ← H + d + s · coefficient, with a drift d (what
  the policy gradient does to it) and a slope s (under Adam the learning rate
  does not tell), and sets

    coefficient = clip(((target − H) / horizon − d) / s, minimum, maximum).

  Drift and slope are estimated online: with z the coefficient of two updates
  before, which the noise of the readings it is compared with cannot have
  reached, ẑ its deviation from its running mean, and e = ΔH − d − s·z,

    d ← d + e / horizon        log s ← log s + 0.2 · e·s·ẑ / (noise + (s·ẑ)²)

  where `noise` is the running mean of e². The drift term is an integral of the
  error, so the target is met without offset, and it never winds up, because
  it integrates what the applied coefficient left unexplained.

  Args:
    target: entropy to reach, in nats.
    horizon: updates in which the distance to the target shrinks by 1/e; make it
      several iterations, since within one the reading does not change.
    slope: guess of s, nats per unit of the coefficient and update; right within
      a factor of 1000, and better too large, which is cautious, than too small.
    initial: coefficient that is expected to hold the entropy where it is, until
      that is learnt: the drift starts at −s · initial.
    minimum: least coefficient.
    maximum: greatest coefficient.

  Raises:
    ValueError: if a number is outside its range.

  >>> controller = target_entropy(0.5, horizon=10.0, maximum=0.1)
  >>> float(controller(controller.init(), entropy=jnp.array(0.3)))
  0.019999999552965164
  """
  check_target(target, 'target')
  check_positive(slope, 'slope')
  if not 1 <= horizon < math.inf:
    raise ValueError(f'horizon must be finite and at least 1, got {horizon:g}')
  check_bounds(minimum, maximum, max(initial, minimum), 'initial')
  return _TargetEntropy(target, horizon, slope, initial, minimum, maximum)


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
    entropy: the last, in nats.
    control: the coefficient applied at the last.
    earlier_control: the one before.
    mean_control: running mean of the coefficient.
    drift: estimate of d, nats per update.
    slope: estimate of s, nats per unit of the coefficient and update.
    noise: running mean of the squared prediction error.
  """

  readings: Int[Array, '']
  entropy: Scalar
  control: Scalar
  earlier_control: Scalar
  mean_control: Scalar
  drift: Scalar
  slope: Scalar
  noise: Scalar


class ProportionalIntegralState(NamedTuple):
  """State of `proportional_integral`: the sum of errors, in nats."""

  total: Scalar


@dataclasses.dataclass(frozen=True)
class _TargetEntropy:
  target: Setpoint
  horizon: float
  slope: float
  initial: float
  minimum: float
  maximum: float

  def init(self) -> TargetEntropyState:
    zero = scalar(0.0)
    return TargetEntropyState(
      readings=jnp.zeros((), jnp.int32),
      entropy=zero,
      control=zero,
      earlier_control=zero,
      mean_control=zero,
      drift=scalar(-self.slope * self.initial),
      slope=scalar(self.slope),
      noise=scalar(_FIRST_NOISE),
    )

  def update(
    self, state: TargetEntropyState, **context: Any
  ) -> TargetEntropyState:
    entropy = reading(context)
    learnt = self._learn(state, entropy - state.entropy)
    # There is no change to learn from before the second reading.
    first = state.readings == 0
    kept = jax.tree.map(
      lambda new, old: jnp.where(first, old, new), learnt, state
    )
    return kept._replace(
      readings=state.readings + 1,
      entropy=entropy,
      control=self(state, **context),
      earlier_control=state.control,
    )

  def __call__(self, state: TargetEntropyState, **context: Any) -> Scalar:
    if is_init(context):
      return scalar(self.minimum)
    error = at(self.target, context) - reading(context)
    needed = (error / self.horizon - state.drift) / state.slope
    return jnp.clip(needed, self.minimum, self.maximum)

  def _learn(
    self, state: TargetEntropyState, change: Scalar
  ) -> TargetEntropyState:
    """Drift and slope after one more change of the entropy was seen."""
    rate = 1 / self.horizon
    past = state.earlier_control
    surprise = change - state.drift - state.slope * past
    noise = state.noise + rate * (surprise**2 - state.noise)
    effect = state.slope * (past - state.mean_control)
    step = _ADAPTATION * surprise * effect / (noise + effect**2)
    slope = jnp.clip(
      state.slope * jnp.exp(step),
      self.slope / _SLOPE_RANGE,
      self.slope * _SLOPE_RANGE,
    )
    return state._replace(
      mean_control=state.mean_control + rate * (past - state.mean_control),
      drift=state.drift + rate * surprise,
      slope=slope,
      noise=noise,
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
