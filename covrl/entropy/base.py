# SPDX-License-Identifier: Apache-2.0
"""What every token transform shares: checks, schedules and the context.

A token transform is an optax transformation whose `params` are `TokenStats`
and whose `updates` are the loss's cotangent of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree

from covrl.entropy.prediction import BLIND, Outlook, look_ahead
from covrl.types import TokenContext, TokenStats

# A number, a schedule of the update count, or a schedule with state of its own
# that also reads the context (a controller).
Coefficient = ArrayLike | optax.Schedule | optax.schedules.StatefulSchedule
Fraction = ArrayLike | optax.Schedule

MAX_FRACTION = 0.05


def require_stats(params: object, transform: str) -> TokenStats:
  """Refuses anything but token statistics as `params` of a token transform."""
  if isinstance(params, TokenStats):
    return params
  raise TypeError(
    f'{transform} edits cotangents of per-token statistics, so its params '
    f'must be TokenStats, got {type(params).__name__}; token transforms '
    'belong in the token chain, parameter transforms in the optimiser'
  )


def require(context: TokenContext, entry: str, transform: str) -> Any:
  """The context's entry, or an error that names it and who wants it."""
  value = context.get(entry)
  if value is None:
    raise TypeError(
      f'{transform} reads {entry!r} from the context; pass {entry}=… to the '
      "token chain's update"
    )
  return value


def concrete(value: object) -> float | None:
  """The number a hyperparameter is, or `None` if traced or a schedule."""
  if isinstance(value, bool) or callable(value):
    return None
  if isinstance(value, (int, float, np.number, np.ndarray)):
    return float(value)
  if isinstance(value, jax.Array) and not isinstance(value, Tracer):
    return float(value)
  return None


def check_fraction(value: Fraction, *, allow_large: bool = False) -> None:
  """Refuses a fraction that is a percentage by mistake."""
  number = concrete(value)
  # `inject_hyperparams` gives arrays: float32, in which 0.05 is a little more,
  # and 0 where a schedule begins or ends there.
  top = np.float32(1 if allow_large else MAX_FRACTION)
  is_scheduled = isinstance(value, jax.Array) and number == 0
  if number is None or is_scheduled or 0 < number <= top:
    return
  hint = (
    ''
    if allow_large or not 0 < number <= 1
    else f'; pass allow_large=True if you mean {number:.3g} of all tokens'
  )
  raise ValueError(f'fraction must lie in (0, {top:g}], got {number:g}{hint}')


def check_minimum(value: ArrayLike) -> None:
  """Refuses a smallest number of tokens that is no number of tokens."""
  number = concrete(value)
  if number is not None and (number < 0 or number != int(number)):
    raise ValueError(
      f'minimum must be a whole number of tokens, at least 0, got {number:g}'
    )


def check_coefficient(value: Coefficient, name: str = 'coefficient') -> None:
  """Refuses negative and non-finite coefficients."""
  number = concrete(value)
  if number is not None and not 0 <= number < float('inf'):
    raise ValueError(f'{name} must be finite and at least 0, got {number:g}')


class _Constant(NamedTuple):
  """A number in the clothes of a stateful schedule."""

  value: ArrayLike

  def init(self) -> tuple[()]:
    return ()

  def update(self, state: tuple[()], **context: Any) -> tuple[()]:
    del context
    return state

  def __call__(self, state: tuple[()], **context: Any) -> ArrayLike:
    del state, context
    return self.value


def as_schedule(value: Coefficient) -> optax.schedules.StatefulSchedule:
  """Numbers, schedules and controllers, all behind one interface."""
  if isinstance(value, optax.schedules.StatefulSchedule):
    return value
  if callable(value):
    return optax.schedules.WrappedSchedule(value)
  return cast(optax.schedules.StatefulSchedule, _Constant(value))


class ScheduledState(NamedTuple):
  """State of a transform with one coefficient.

  Attributes:
    schedule: the schedule's.
    coefficient: the last value used, a scalar.
  """

  schedule: PyTree
  coefficient: jax.Array


def token_transform(
  init: Callable[[Any], Any], update: Callable[..., tuple[Any, Any]]
) -> optax.GradientTransformationExtraArgs:
  """An optax transformation of statistics; optax's types speak of arrays."""
  return optax.GradientTransformationExtraArgs(
    cast(optax.TransformInitFn, init),
    cast(optax.TransformUpdateExtraArgsFn, update),
  )


def init_token_state(token_tx: optax.GradientTransformation) -> PyTree:
  """The initial state of a token chain: scalars, whatever the batch."""
  return token_tx.init(cast(optax.Params, TokenStats.template()))


def update_signal(
  token_tx: optax.GradientTransformation,
  signal: TokenStats,
  token_state: PyTree,
  stats: TokenStats,
  **context: Any,
) -> tuple[TokenStats, PyTree]:
  """Runs a token chain on a cotangent of per-token statistics.

  Args:
    token_tx: the chain.
    signal: the loss's cotangent of `stats`.
    token_state: the chain's state.
    stats: of the policy.
    **context: see `TokenContext`.

  Returns:
    The edited cotangent and the chain's next state.
  """
  update = cast(Any, optax.with_extra_args_support(token_tx).update)
  return update(signal, token_state, stats, **context)


def on_tokens(
  selected: Bool[Array, 'B T'] | None, edited: TokenStats, others: TokenStats
) -> TokenStats:
  """One signal on the selected tokens, all if `None`; another elsewhere."""
  if selected is None:
    return edited
  return jax.tree.map(
    lambda new, old: jnp.where(selected, new, old).astype(old.dtype),
    edited,
    others,
  )


def with_coefficient(
  name: str,
  coefficient: Coefficient,
  edit: Callable[..., TokenStats],
  state_type: Callable[..., Any] = ScheduledState,
  *,
  foresee: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """A token transform with one coefficient, scheduled or controlled.

  Args:
    name: of the transform, for its errors.
    coefficient: number, schedule or controller.
    edit: `(updates, stats, coefficient, context) -> updates`.
    state_type: what its state is called.
    foresee: whether a controller may ask for the coefficient's `outlook`; the
      edit must be affine in the coefficient then.
  """
  schedule = as_schedule(coefficient)

  def init(params: PyTree) -> PyTree:
    del params
    return state_type(schedule.init(), jnp.zeros((), jnp.float32))

  def update(
    updates: PyTree,
    state: PyTree,
    params: PyTree | None = None,
    **context: Any,
  ) -> tuple[PyTree, PyTree]:
    stats = require_stats(params, name)

    def edited(value: ArrayLike) -> TokenStats:
      return edit(updates, stats, value, context)

    @functools.cache
    def outlook() -> Outlook:
      def signal(value: float) -> TokenStats:
        return on_tokens(context.get('selected'), edited(value), updates)

      return look_ahead(signal, stats, context) if foresee else BLIND

    seen = {**context, 'outlook': outlook}
    value = schedule(state.schedule, **seen)
    new_state = state_type(
      schedule.update(state.schedule, **seen), jnp.asarray(value, jnp.float32)
    )
    return edited(value), new_state

  return token_transform(init, update)
