# SPDX-License-Identifier: Apache-2.0
"""Base of all token transforms: argument checks, schedules, the context.

A token transform is an optax transformation whose `params` are `TokenStats`
and whose `updates` are the loss's cotangent of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree

from covrl.array_checks import check_array, concrete_number
from covrl.chain_checks import check_pair, check_state
from covrl.context_checks import check_context, check_stats
from covrl.entropy.decisions import DecisionCache
from covrl.entropy.prediction import (
  NO_PREDICTION,
  EntropyPrediction,
  predict_effect,
)
from covrl.types import TokenContext, TokenStats

# A number, a schedule of the update count, or a stateful schedule that also
# reads the context (a controller).
Coefficient = ArrayLike | optax.Schedule | optax.schedules.StatefulSchedule
Fraction = ArrayLike | optax.Schedule

# Largest fraction of tokens that methods accept without `allow_large=True`.
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


def check_token_chain(token_tx: object, function_name: str) -> None:
  """Refuses anything but a transformation that may edit per-token signals.

  A token chain keeps scalars only: a state with an array per token would belong
  to one batch. Optimisers keep such arrays (Adam's moments), and are refused.

  Args:
    token_tx: a token chain.
    function_name: name of the function that was called, for the error.

  Raises:
    TypeError: it is not an optax transformation, or it is an optimiser.

  >>> check_token_chain(optax.adam(1e-3), 'as_loss')
  Traceback (most recent call last):
    ...
  TypeError: the token chain of as_loss must have a state of scalars only, got a \
transformation that keeps statistics of every parameter, like optax.adam; \
parameter transforms belong in the optimiser
  """
  if not isinstance(token_tx, optax.GradientTransformation):
    raise TypeError(
      f'the token chain of {function_name} must be an optax.GradientTransformation such as '
      f'covrl.kl_cov(), got {token_tx!r}'
    )
  _check_token_state(token_tx.init(TokenStats.template()), function_name)


def _check_token_state(token_state: PyTree, function_name: str) -> None:
  """Refuses a state that has the structure of per-token statistics in it."""

  def is_stats(node: object) -> bool:
    return isinstance(node, TokenStats)

  if any(map(is_stats, jax.tree.leaves(token_state, is_leaf=is_stats))):
    raise TypeError(
      f'the token chain of {function_name} must have a state of scalars only, got a '
      'transformation that keeps statistics of every parameter, like '
      'optax.adam; parameter transforms belong in the optimiser'
    )


def require_entry(context: TokenContext, entry: str, transform: str) -> Any:
  """Returns an entry of the context; the error names the entry and its reader."""
  value = context.get(entry)
  if value is None:
    raise TypeError(
      f'{entry} must be in the context of {transform}, got None; pass {entry}=… to'
      " the token chain's update"
    )
  return value


def check_fraction(value: Fraction, *, allow_large: bool = False) -> None:
  """Refuses a fraction outside its range, such as a percentage by mistake."""
  if isinstance(value, optax.schedules.StatefulSchedule):
    raise TypeError(
      f'fraction must be a number or a schedule of the step, got {value!r}'
    )
  number = concrete_number(value, 'fraction')
  # `inject_hyperparams` passes arrays: float32, in which 0.05 is a little more,
  # and 0 if a schedule begins or ends there.
  largest = np.float32(1 if allow_large else MAX_FRACTION)
  is_scheduled = isinstance(value, jax.Array) and number == 0
  if number is None or is_scheduled or 0 < number <= largest:
    return
  hint = (
    ''
    if allow_large or not 0 < number <= 1
    else f'; pass allow_large=True if you mean {number:.3g} of all tokens'
  )
  raise ValueError(
    f'fraction must lie in (0, {largest:g}], got {number:g}{hint}'
  )


def check_minimum(value: ArrayLike) -> None:
  """Refuses a minimum that is negative or not a whole number of tokens."""
  number = concrete_number(value, 'minimum', allow_schedule=False)
  if number is not None and not (number >= 0 and number.is_integer()):
    raise ValueError(
      f'minimum must be a whole number of tokens, at least 0, got {number:g}'
    )


def check_coefficient(value: Coefficient, name: str = 'coefficient') -> None:
  """Refuses a negative or non-finite coefficient; schedules are checked at step 0."""
  number = concrete_number(value, name)
  if is_step_schedule(value):
    number = concrete_number(value(jnp.zeros((), jnp.int32)), name)
  if number is not None and not 0 <= number < float('inf'):
    raise ValueError(f'{name} must be finite and at least 0, got {number:g}')


def is_step_schedule(value: Coefficient) -> TypeGuard[optax.Schedule]:
  """Whether a coefficient is a schedule of the update count alone."""
  return callable(value) and not isinstance(
    value, optax.schedules.StatefulSchedule
  )


class _Constant(NamedTuple):
  """A constant, wrapped as a stateful schedule."""

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
  """Wraps a number or a schedule as a stateful schedule, like a controller."""
  if isinstance(value, optax.schedules.StatefulSchedule):
    return value
  if callable(value):
    return optax.schedules.WrappedSchedule(value)
  return cast(optax.schedules.StatefulSchedule, _Constant(value))


class ScheduledState(NamedTuple):
  """State of a transform with one coefficient.

  Attributes:
    schedule: state of the schedule.
    coefficient: the last value used, a scalar.
  """

  schedule: PyTree
  coefficient: jax.Array


def token_transform(
  name: str,
  init: Callable[[Any], PyTree],
  update: Callable[..., tuple[TokenStats, PyTree]],
) -> optax.GradientTransformationExtraArgs:
  """An optax transformation of cotangents of per-token statistics.

  Args:
    name: name of the transform, for errors and as part of its decisions' keys.
    init: as in optax.
    update: `(updates, state, stats, context) -> (updates, state)`, with the
      extra arguments as one dictionary, which always has `decisions`.

  Returns:
    A transformation that refuses `params` other than `TokenStats` and unknown
    context entries.
  """

  def checked_update(
    updates: PyTree,
    state: PyTree,
    params: PyTree | None = None,
    **context: Any,
  ) -> tuple[PyTree, PyTree]:
    stats = require_stats(params, name)
    check_stats('stats', stats, name)
    check_stats('updates', updates, name, stats.logprobs.shape)
    check_context(context, name, stats)
    decisions = DecisionCache.of(context)
    with decisions.transform(name):
      return update(updates, state, stats, context | {'decisions': decisions})

  # optax types params and updates as arrays; here they are statistics.
  return optax.GradientTransformationExtraArgs(
    cast(optax.TransformInitFn, init),
    cast(optax.TransformUpdateExtraArgsFn, checked_update),
  )


def update_signal(
  token_tx: optax.GradientTransformation,
  signal: TokenStats,
  token_state: PyTree,
  stats: TokenStats,
  **context: Unpack[TokenContext],
) -> tuple[TokenStats, PyTree]:
  """Runs a token chain on a cotangent of per-token statistics.

  Args:
    token_tx: the token chain.
    signal: the loss's cotangent of `stats`.
    token_state: the chain's state, at first `token_tx.init(stats.template())`.
    stats: statistics of the policy.
    **context: see `TokenContext`.

  Returns:
    The edited cotangent and the chain's next state.

  Raises:
    TypeError: if the context has an unknown entry, an argument has another type
      than its annotation, the transformation is an optimiser such as
      `optax.adam`, the state is not one of the chain, or the chain returns a
      signal or a state of another structure, shape or dtype.
    ValueError: if an array is of another shape than the statistics.
  """
  function_name = 'update_signal'
  check_stats('stats', stats, function_name)
  check_stats('signal', signal, function_name, stats.logprobs.shape)
  check_context(context, function_name, stats)
  _check_token_state(token_state, function_name)
  expected = jax.tree.structure(token_tx.init(TokenStats.template()))
  if jax.tree.structure(token_state) != expected:
    raise TypeError(
      f'token_state must be a state of the token chain, {expected}, got'
      f' {jax.tree.structure(token_state)}'
    )
  update = cast(Any, optax.with_extra_args_support(token_tx).update)
  edited, next_state = check_pair(
    'a token chain', update(signal, token_state, stats, **context)
  )
  check_form('a token chain', edited, signal)
  check_state('a token chain', next_state, token_state)
  return edited, next_state


def check_form(name: str, edited: PyTree, signal: TokenStats) -> None:
  """Refuses a signal of another structure, shape or dtype than the one before.

  Args:
    name: name of the transform that returned it, for the error.
    edited: the signal that it returned.
    signal: the signal that it was given.

  Raises:
    TypeError: they differ.
  """
  has_same_structure = jax.tree.structure(edited) == jax.tree.structure(signal)
  if not has_same_structure or _form(edited) != _form(signal):
    raise TypeError(
      f'{name} must return a signal of the form that it gets,'
      f' {_form(signal)}, got {_form(edited)}'
    )


def _form(signal: PyTree) -> str:
  """Returns the type of a signal, and dtypes and shapes of its arrays."""
  arrays = [
    f'{jnp.result_type(leaf)}{list(jnp.shape(leaf))}'
    for leaf in jax.tree.leaves(signal)
  ]
  return f'{type(signal).__name__} of {", ".join(arrays) or "nothing"}'


def where_selected(
  selected: Bool[Array, 'B T'] | None, edited: TokenStats, others: TokenStats
) -> TokenStats:
  """One signal on the selected tokens (all if `None`), another elsewhere."""
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
  edit: Callable[[TokenStats, TokenStats, ArrayLike, TokenContext], TokenStats],
  state_type: Callable[..., Any] = ScheduledState,
  *,
  is_predictable: bool = True,
  is_signed: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """A token transform with one coefficient, scheduled or controlled.

  Args:
    name: name of the transform, for its errors.
    coefficient: number, schedule or controller.
    edit: `(updates, stats, coefficient, context) -> updates`.
    state_type: type of its state, made of the schedule's state and the value.
    is_predictable: whether a controller may predict the coefficient's effect;
      the edit must then be affine in the coefficient.
    is_signed: whether the coefficient may be negative.
  """
  schedule = as_schedule(coefficient)

  def init(params: PyTree) -> PyTree:
    del params
    return state_type(schedule.init(), jnp.zeros((), jnp.float32))

  def update(
    updates: TokenStats,
    state: PyTree,
    stats: TokenStats,
    context: TokenContext,
  ) -> tuple[TokenStats, PyTree]:
    def edited(value: ArrayLike) -> TokenStats:
      return edit(updates, stats, value, context)

    def signal(value: float) -> TokenStats:
      return where_selected(context.get('selected'), edited(value), updates)

    def prediction() -> EntropyPrediction:
      if not is_predictable:
        return NO_PREDICTION
      return predict_effect(signal, stats, context)

    schedule_context = {**context, 'entropy_prediction': prediction}
    value = schedule(state.schedule, **schedule_context)
    check_array(f'the coefficient of {name}', value, 'real', '')
    if is_step_schedule(coefficient) and not is_signed:
      DecisionCache.of(context).record_scheduled('coefficient', value)
    new_state = state_type(
      schedule.update(state.schedule, **schedule_context),
      jnp.asarray(value, jnp.float32),
    )
    return edited(value), new_state

  return token_transform(name, init, update)
