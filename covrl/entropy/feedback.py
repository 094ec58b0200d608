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
  outlook_of,
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
  minimum: float = 0.0,
  maximum: float = 1.0,
) -> Controller:
  """Steers entropy to a target by the first-order formula, learning its scale.

  An update is taken to change the entropy by

    ΔH = d + s · (D + c · E)

  where c is the coefficient, E what a unit of it does to the entropy at step
  size 1 and D what the rest of the signal does, both to first order and from the
  context's `moments` (see `covrl.entropy.outlook`); s is the step that the
  optimiser really makes (under Adam the learning rate does not tell) and d what
  the formula leaves out. So that the entropy is at the target `horizon` updates
  from now,

    c = (((target − H) / horizon − d) / s − D) / E,   within [minimum, maximum].

  Where nothing can be foreseen (no moments, or `optax.inject_hyperparams`, which
  asks before there is a signal) D is 0 and E is 1.

  s and d are learnt online, from the change e that they leave unexplained: with
  z = D + c · E of the update before the last, which the noise of the reading it
  is compared with cannot have reached, and ẑ its deviation from its running mean,

    e = ΔH − d − s·z,     d ← d + e / horizon,
    log s ← log s + 0.2 · e·s·ẑ / (noise + (s·ẑ)²)

  where `noise` is the running mean of e². d is an integral of the error, so the
  target is met without offset, and never winds up, because it integrates what the
  applied coefficient left unexplained.

  H is the context's `entropy`. A trainer that also measures by how much its
  updates change it on unchanged tokens passes `entropy_change`: the entropy is
  then followed by its changes, and readings, which vary with the prompts that were
  drawn, correct it by a share of 1/horizon.

  Args:
    target: entropy to reach, in nats.
    horizon: updates in which the distance to the target shrinks by 1/e.
    slope: guess of s, right within a factor of 1000. What is foreseen cancels
      it out at the target; elsewhere a large guess is cautious.
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
  check_bounds(minimum, maximum, minimum)
  return _TargetEntropy(target, horizon, slope, minimum, maximum)


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
    entropy: the last estimate of H, in nats.
    foreseen: z of the last update.
    earlier_foreseen: of the one before.
    mean_foreseen: running mean of z.
    drift: estimate of d, nats per update.
    slope: estimate of s, nats per update and unit of z.
    noise: running mean of the squared error e.
  """

  readings: Int[Array, '']
  entropy: Scalar
  foreseen: Scalar
  earlier_foreseen: Scalar
  mean_foreseen: Scalar
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
  minimum: float
  maximum: float

  def init(self) -> TargetEntropyState:
    zero = scalar(0.0)
    return TargetEntropyState(
      readings=jnp.zeros((), jnp.int32),
      entropy=zero,
      foreseen=zero,
      earlier_foreseen=zero,
      mean_foreseen=zero,
      drift=zero,
      slope=scalar(self.slope),
      noise=scalar(_FIRST_NOISE),
    )

  def update(
    self, state: TargetEntropyState, **context: Any
  ) -> TargetEntropyState:
    change, entropy = self._observe(state, context)
    learnt = self._learn(state, change)
    # There is no change to learn from before the second reading.
    first = state.readings == 0
    kept = jax.tree.map(
      lambda new, old: jnp.where(first, old, new), learnt, state
    )
    outlook = outlook_of(context)
    return kept._replace(
      readings=state.readings + 1,
      entropy=entropy,
      foreseen=outlook.drift + self(state, **context) * outlook.effect,
      earlier_foreseen=state.foreseen,
    )

  def __call__(self, state: TargetEntropyState, **context: Any) -> Scalar:
    if is_init(context):
      return scalar(self.minimum)
    outlook = outlook_of(context)
    _, entropy = self._observe(state, context)
    ahead = at(self.target, context, later=self.horizon)
    rise = ((ahead - entropy) / self.horizon - state.drift) / state.slope
    effect = jnp.asarray(outlook.effect)
    able = effect > 0
    needed = (rise - outlook.drift) / jnp.where(able, effect, 1)
    # What has no effect, or the wrong one, is left at its least.
    needed = jnp.where(able, needed, self.minimum)
    limit = jnp.clip(outlook.limit, self.minimum, self.maximum)
    return jnp.clip(needed, self.minimum, limit)

  def _observe(
    self, state: TargetEntropyState, context: dict[str, Any]
  ) -> tuple[Scalar, Scalar]:
    """By how much the entropy has changed, and what it is."""
    shown = reading(context)
    if 'entropy_change' not in context:
      return shown - state.entropy, shown
    measured = jnp.asarray(context['entropy_change'], shown.dtype)
    expected = state.drift + state.slope * state.earlier_foreseen
    change = jnp.where(jnp.isnan(measured), expected, measured)
    followed = state.entropy + change
    followed += (shown - followed) / self.horizon
    return change, jnp.where(state.readings == 0, shown, followed)

  def _learn(
    self, state: TargetEntropyState, change: Scalar
  ) -> TargetEntropyState:
    """Drift and slope after one more change of the entropy was seen."""
    rate = 1 / self.horizon
    past = state.earlier_foreseen
    surprise = change - state.drift - state.slope * past
    noise = state.noise + rate * (surprise**2 - state.noise)
    effect = state.slope * (past - state.mean_foreseen)
    step = _ADAPTATION * surprise * effect / (noise + effect**2)
    slope = jnp.clip(
      state.slope * jnp.exp(step),
      self.slope / _SLOPE_RANGE,
      self.slope * _SLOPE_RANGE,
    )
    return state._replace(
      mean_foreseen=state.mean_foreseen + rate * (past - state.mean_foreseen),
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
