# SPDX-License-Identifier: Apache-2.0
"""Controller that solves the first-order formula of the entropy's change.

Like those of `covrl.entropy.controllers.coefficients`, it may be passed wherever a coefficient
is accepted.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from covrl.array_checks import concrete_number
from covrl.entropy.controllers.base import (
  Controller,
  Setpoint,
  check_bounds,
  check_positive,
  check_target,
  context_entropy,
  context_prediction,
  is_initializing,
  is_measured,
  scalar,
  setpoint,
)
from covrl.types import Scalar


def target_entropy(
  target: Setpoint,
  *,
  horizon: float = 10.0,
  slope: float = 1.0,
  minimum: float = 0.0,
  maximum: float = 1.0,
) -> Controller:
  """Controls entropy to a target by the first-order formula of its change.

  An update changes the entropy by about s · (D + c · E), with c the coefficient,
  E the change by one unit of it at step size 1 and D the change by the rest of
  the signal, both to first order and from the context's `moments` (see
  `covrl.entropy.prediction`), and s the effective step size. For the entropy to be
  at the target `horizon` updates h from now,

    c = ((target − H) / (h · s) − D) / E   within [minimum, maximum].

  At the target c cancels D, for any s; elsewhere a larger s makes smaller
  corrections. A change of the entropy that the formula does not explain leaves an
  offset of h times that change per update.
  Without a prediction (no moments, or `optax.inject_hyperparams`, which evaluates
  the coefficient before there is a signal) D is 0 and E is 1. The controller has no
  state.

  Args:
    target: entropy to reach, in nats.
    horizon: updates in which the distance to the target shrinks to 1/e of itself.
    slope: effective step size s.
    minimum: least coefficient.
    maximum: greatest coefficient.

  Raises:
    ValueError: if a number is outside its range.

  References:
    The formula is `exact_score`'s, summed and solved for the coefficient; the
    controller is this project's. Estimates of s and of the unexplained change by
    a Kalman filter followed a target no better.

  >>> controller = target_entropy(0.5, horizon=10.0, slope=2.0)
  >>> float(controller(controller.init(), entropy=jnp.array(0.3)))
  0.009999999776482582
  """
  check_target(target, 'target')
  check_positive(slope, 'slope')
  concrete_number(horizon, 'horizon', allow_schedule=False)
  if not 1 <= horizon < math.inf:
    raise ValueError(f'horizon must be finite and at least 1, got {horizon:g}')
  check_bounds(minimum, maximum, minimum)
  return _TargetEntropy(target, horizon, slope, minimum, maximum)


@dataclasses.dataclass(frozen=True)
class _TargetEntropy:
  """The schedule that `target_entropy` returns; see its arguments."""

  target: Setpoint
  horizon: float
  slope: float
  minimum: float
  maximum: float

  def init(self) -> tuple[()]:
    return ()

  def update(self, state: tuple[()], **context: Any) -> tuple[()]:
    del context
    return state

  def __call__(self, state: tuple[()], **context: Any) -> Scalar:
    del state
    if is_initializing(context):
      return scalar(self.minimum)
    prediction = context_prediction(context)
    future_target = setpoint(self.target, context, updates_ahead=self.horizon)
    change_per_update = (future_target - context_entropy(context)) / (
      self.horizon * self.slope
    )
    effect = jnp.asarray(prediction.effect)
    has_effect = (effect > 0) & is_measured(context)
    coefficient = (change_per_update - prediction.drift) / jnp.where(
      has_effect, effect, 1
    )
    # A coefficient without effect, or with the opposite one, is at its minimum.
    coefficient = jnp.where(has_effect, coefficient, self.minimum)
    limit = jnp.clip(prediction.limit, self.minimum, self.maximum)
    return jnp.clip(coefficient, self.minimum, limit)
