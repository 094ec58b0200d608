# SPDX-License-Identifier: Apache-2.0
"""Controllers with fixed rules: coefficients that respond to the entropy.

Each is an `optax.schedules.StatefulSchedule` and may be passed wherever a
coefficient is accepted. It reads `entropy` from the context, the token-weighted
mean over the whole optimiser batch in nats, advances once per update, and keeps
only scalars, so that it is saved and restored with the chain. A coefficient that
has reached 0 can rise again. An entropy of NaN was not measured (a batch without
a loss token): the controller keeps its state, and its coefficient is that of an
error of 0.

Targets and bounds may be schedules of the context's `step`. A controller that
predicts the change of the entropy is in `covrl.entropy.controllers.target_entropy`;
controllers with a band of entropies are in `covrl.entropy.controllers.bands`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_number
from covrl.entropy.controllers.base import (
  Controller,
  Setpoint,
  check_bounds,
  check_positive,
  check_target,
  context_entropy,
  is_initializing,
  is_measured,
  keep_if_unmeasured,
  scalar,
  setpoint,
)
from covrl.types import Scalar


def adaptive_bonus(
  target: Setpoint = 0.2,
  increment: float = 1e-4,
  *,
  minimum: float = 0.0,
  maximum: float = 5e-3,
  initial: float = 0.0,
) -> Controller:
  """Raises a coefficient in steps while entropy is below a target, then lowers it.

    c ← clip(c + increment · sign(target − H), minimum, maximum)

  and the coefficient is c where H ≤ target, else 0. The defaults are those of
  the published 7B and 32B runs.

  Args:
    target: entropy to keep, in nats.
    increment: change of the coefficient per update.
    minimum: least coefficient.
    maximum: greatest coefficient.
    initial: coefficient at the start.

  Raises:
    ValueError: if a number is outside its range.

  References:
    He et al., `Skywork Open Reasoner 1 Technical Report
    <https://arxiv.org/abs/2505.22312>`_, 2025, section 3.2.5.

  >>> controller = adaptive_bonus(target=0.2, increment=1e-3)
  >>> state = controller.update(controller.init(), entropy=jnp.array(0.1))
  >>> float(controller(state, entropy=jnp.array(0.1)))
  0.0010000000474974513
  >>> float(controller(state, entropy=jnp.array(0.3)))
  0.0
  """
  check_target(target, 'target')
  check_positive(increment, 'increment')
  check_bounds(minimum, maximum, initial)
  return _AdaptiveBonus(target, increment, minimum, maximum, initial)


def doubling_scale(
  target: Setpoint,
  *,
  initial: float = 0.01,
  minimum: float = 1e-4,
  maximum: float = 1.0,
  every: int = 1,
) -> Controller:
  """Doubles or halves a scale of either sign: REPO's controller.

  Below the target a positive scale is doubled, up to `maximum`, and a negative
  one halved; one that would fall below `minimum` in magnitude changes sign
  there. Above the target the other way round.

  Args:
    target: entropy to keep, in nats.
    initial: scale at the start.
    minimum: least magnitude.
    maximum: greatest magnitude.
    every: updates between changes; published: once per iteration.

  Raises:
    ValueError: if a number is outside its range.

  References:
    Petrenko et al., `Entropy-Preserving Reinforcement Learning
    <https://arxiv.org/abs/2603.11682>`_, 2026, appendix D.2.

  >>> controller = doubling_scale(0.5, initial=0.01)
  >>> state = controller.update(controller.init(), entropy=jnp.array(0.4))
  >>> float(controller(state))
  0.019999999552965164
  """
  check_target(target, 'target')
  check_positive(minimum, 'minimum')
  check_bounds(minimum, maximum, abs(initial))
  if isinstance(every, bool) or not isinstance(every, int):
    raise TypeError(f'every must be an integer, got {every!r}')
  if every < 1:
    raise ValueError(f'every must be at least 1, got {every}')
  return _DoublingScale(target, initial, minimum, maximum, every)


def proportional_integral(
  target: Setpoint,
  *,
  proportional: float = 1.0,
  integral: float = 0.01,
  offset: float = 0.0,
  minimum: float = -math.inf,
  maximum: float = math.inf,
) -> Controller:
  """Proportional-integral controller with fixed gains.

    coefficient = clip(offset + proportional · e + integral · Σe),
    e = target − H,   the sum including the present error

  The sum does not grow while the coefficient is at the bound that the error
  would push it beyond.

  Args:
    target: entropy to keep, in nats.
    proportional: gain on the error; negative for a coefficient that lowers
      entropy.
    integral: gain on the sum of errors.
    offset: coefficient at zero error.
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
    check_number(name, gain, -math.inf)
  check_bounds(minimum, maximum, offset, 'offset')
  return _ProportionalIntegral(
    target, proportional, integral, offset, minimum, maximum
  )


class AdaptiveBonusState(NamedTuple):
  """State of `adaptive_bonus`.

  Attributes:
    coefficient: c, also while it is not applied.
  """

  coefficient: Scalar


class DoublingScaleState(NamedTuple):
  """State of `doubling_scale`.

  Attributes:
    scale: current scale, of either sign.
    updates: number of updates so far, int32.
  """

  scale: Scalar
  updates: Int[Array, '']


class ProportionalIntegralState(NamedTuple):
  """State of `proportional_integral`.

  Attributes:
    total: sum of errors, in nats.
  """

  total: Scalar


@dataclasses.dataclass(frozen=True)
class _AdaptiveBonus:
  """The schedule that `adaptive_bonus` returns; see its arguments."""

  target: Setpoint
  increment: float
  minimum: float
  maximum: float
  initial: float

  def init(self) -> AdaptiveBonusState:
    return AdaptiveBonusState(coefficient=scalar(self.initial))

  def update(
    self, state: AdaptiveBonusState, **context: Any
  ) -> AdaptiveBonusState:
    error = setpoint(self.target, context) - context_entropy(context)
    coefficient = state.coefficient + self.increment * jnp.sign(error)
    coefficient = jnp.clip(coefficient, self.minimum, self.maximum)
    return keep_if_unmeasured(AdaptiveBonusState(coefficient), state, context)

  def __call__(self, state: AdaptiveBonusState, **context: Any) -> Scalar:
    if is_initializing(context):
      return state.coefficient
    is_high = context_entropy(context) > setpoint(self.target, context)
    return jnp.where(is_high, 0, state.coefficient)


@dataclasses.dataclass(frozen=True)
class _DoublingScale:
  """The schedule that `doubling_scale` returns; see its arguments."""

  target: Setpoint
  initial: float
  minimum: float
  maximum: float
  every: int

  def init(self) -> DoublingScaleState:
    return DoublingScaleState(
      scale=scalar(self.initial), updates=jnp.zeros((), jnp.int32)
    )

  def update(
    self, state: DoublingScaleState, **context: Any
  ) -> DoublingScaleState:
    updates = state.updates + 1
    direction = jnp.sign(
      setpoint(self.target, context) - context_entropy(context)
    )
    is_due = (updates % self.every == 0) & (direction != 0)
    changed_scale = self._changed_scale(state.scale, direction)
    scale = jnp.where(is_due, changed_scale, state.scale)
    scale = jnp.where(jnp.isnan(direction), jnp.nan, scale)
    return keep_if_unmeasured(
      DoublingScaleState(scale, updates), state, context
    )

  def __call__(self, state: DoublingScaleState, **context: Any) -> Scalar:
    del context
    return state.scale

  def _changed_scale(
    self, scale: Scalar, direction: Float[Array, '']
  ) -> Float[Array, '']:
    """Returns the scale after a step: doubled, halved, or of the other sign."""
    doubled = jnp.clip(2 * scale, -self.maximum, self.maximum)
    halved = scale / 2
    changes_sign = jnp.abs(halved) < self.minimum
    halved = jnp.where(changes_sign, direction * self.minimum, halved)
    has_right_sign: Bool[Array, ''] = scale * direction > 0
    return jnp.where(has_right_sign, doubled, halved)


@dataclasses.dataclass(frozen=True)
class _ProportionalIntegral:
  """The schedule that `proportional_integral` returns; see its arguments."""

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
    error = setpoint(self.target, context) - context_entropy(context)
    unclipped = self._unclipped(state.total, error)
    integral_change = self.integral * error
    is_saturated = ((unclipped > self.maximum) & (integral_change > 0)) | (
      (unclipped < self.minimum) & (integral_change < 0)
    )
    total = state.total + jnp.where(is_saturated, 0, error)
    return keep_if_unmeasured(ProportionalIntegralState(total), state, context)

  def __call__(
    self, state: ProportionalIntegralState, **context: Any
  ) -> Scalar:
    error = scalar(0.0)
    if not is_initializing(context):
      error = setpoint(self.target, context) - context_entropy(context)
      error = jnp.where(is_measured(context), error, 0)
    unclipped = self._unclipped(state.total, error)
    return jnp.clip(unclipped, self.minimum, self.maximum)

  def _unclipped(self, total: Scalar, error: Scalar) -> Scalar:
    """Returns the coefficient before it is clipped to the bounds."""
    proportional = self.proportional * error
    return self.offset + proportional + self.integral * (total + error)
