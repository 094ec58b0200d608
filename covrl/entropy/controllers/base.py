# SPDX-License-Identifier: Apache-2.0
"""Base of all controllers: measured entropy, targets that follow a schedule, checks."""

import math
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from covrl.array_checks import check_array, concrete_number
from covrl.entropy.base import require_entry
from covrl.entropy.prediction import NO_PREDICTION, EntropyPrediction
from covrl.types import Scalar, TokenContext

Setpoint = ArrayLike | optax.Schedule
Controller = optax.schedules.StatefulSchedule
State = TypeVar('State')


def scalar(value: float) -> Scalar:
  """A number as a scalar of the states' dtype."""
  return jnp.asarray(value, jnp.result_type(float))


def context_entropy(context: dict[str, Any]) -> Scalar:
  """The context's `entropy`, in the states' dtype."""
  entropy = require_entry(
    cast(TokenContext, context), 'entropy', 'a controller'
  )
  check_array('entropy', entropy, 'real', '')
  return jnp.asarray(entropy, jnp.result_type(float))


def is_measured(context: dict[str, Any]) -> Bool[Array, '']:
  """Whether the context's `entropy` could be measured: it is finite."""
  return jnp.isfinite(context_entropy(context))


def keep_if_unmeasured(
  next_state: State, state: State, context: dict[str, Any]
) -> State:
  """The next state, or the present one if the entropy could not be measured."""
  measured = is_measured(context)
  return jax.tree.map(
    lambda new, old: jnp.where(measured, new, old), next_state, state
  )


def setpoint(
  value: Setpoint, context: dict[str, Any], *, updates_ahead: float = 0.0
) -> Scalar:
  """A set point at the current step, or `updates_ahead` steps later."""
  if callable(value):
    step = require_entry(cast(TokenContext, context), 'step', 'a schedule')
    value = value(step + round(updates_ahead))
    check_array('the value of a schedule', value, 'real', '')
  return jnp.asarray(value, jnp.result_type(float))


def context_prediction(context: dict[str, Any]) -> EntropyPrediction:
  """The context's prediction of the coefficient's effect."""
  predict = context.get('entropy_prediction')
  return NO_PREDICTION if predict is None else predict()


def is_initializing(context: dict[str, Any]) -> bool:
  """Whether the call is `optax.inject_hyperparams`' first, without a context."""
  return not context


def check_target(value: Setpoint, name: str) -> None:
  """Refuses a target entropy that is negative or not finite."""
  number = concrete_number(value, name)
  if number is not None and not 0 <= number < math.inf:
    raise ValueError(
      f'{name} is an entropy and must be finite and at least 0, got {number:g}'
    )


def check_positive(value: float, name: str) -> None:
  """Refuses a number that is not finite and above 0."""
  concrete_number(value, name, allow_schedule=False)
  if not 0 < value < math.inf:
    raise ValueError(f'{name} must be finite and above 0, got {value:g}')


def check_bounds(
  minimum: float, maximum: float, initial: float, name: str = 'initial'
) -> None:
  """Refuses bounds out of order and a start value outside them."""
  for argument, value in (
    ('minimum', minimum),
    ('maximum', maximum),
    (name, initial),
  ):
    concrete_number(value, argument, allow_schedule=False)
  if not minimum < maximum:
    raise ValueError(
      f'minimum must be below maximum, got {minimum:g} and {maximum:g}'
    )
  if not minimum <= initial <= maximum:
    raise ValueError(
      f'{name} must lie in [{minimum:g}, {maximum:g}], got {initial:g}'
    )
