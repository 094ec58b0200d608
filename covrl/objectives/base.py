# SPDX-License-Identifier: Apache-2.0
"""Base of all policy losses: masked inputs, the weighted sum, `LossAux`.

A loss is `loss(stats, *, <options>, **context) -> (value, LossAux)`. It takes
`LossInputs` from `loss_inputs`, computes a loss per token, and returns
`weighted_loss` of it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, concrete_array, concrete_number
from covrl.context_checks import check_context, check_stats
from covrl.types import Scalar, TokenContext, TokenStats

# A number of a config, or one computed by a schedule or a controller.
Number: TypeAlias = int | float | Scalar


class LossAux(NamedTuple):
  """Per-token results of a policy loss; constants to autodiff.

  A named tuple and not a dataclass, so that `jax.tree` utilities may rebuild it
  around leaves that are not `[B, T]` arrays.

  Attributes:
    ratio: the importance ratio that the loss used, clamped but not clipped
      (of the sequence, in sequence-level losses); 1 where the weight is 0.
    log_ratio: log π(a) − log π_old(a) of the token, in nats, neither clamped
      nor clipped; 0 where the weight is 0.
    score_weight: w = A · ratio · 1{not clipped}: minus the derivative of the
      token's loss with respect to log π(a), before weights.
    clipped: tokens whose gradient the loss has clipped away.
  """

  ratio: Float[Array, 'B T']
  log_ratio: Float[Array, 'B T']
  score_weight: Float[Array, 'B T']
  clipped: Bool[Array, 'B T']

  @property
  def for_selection(self) -> dict[str, Array]:
    """The entries of a `TokenContext` that the loss provides."""
    return {'score_weight': self.score_weight, 'clipped': self.clipped}


def check_aux(aux: object, where: str, stats: TokenStats) -> LossAux:
  """Refuses anything but a `LossAux` with an entry per token.

  Args:
    aux: what a loss has returned beside its value.
    where: the loss, for the error.
    stats: the statistics that it was given.

  Raises:
    TypeError: it is not a `LossAux`, or an entry has another dtype.
    ValueError: an entry has another shape.
  """
  if not isinstance(aux, LossAux):
    raise TypeError(
      f'{where} must return a value and a LossAux, got'
      f' {type(aux).__name__} beside the value'
    )
  shape = jnp.shape(stats.logprobs)
  for name in ('ratio', 'log_ratio', 'score_weight'):
    value = getattr(aux, name)
    check_array(f'LossAux.{name} of {where}', value, 'real', 'B T', shape)
  check_array(f'LossAux.clipped of {where}', aux.clipped, 'bool', 'B T', shape)
  return aux


class LossInputs(NamedTuple):
  """Inputs of a loss in at least float32, 0 where the weight is 0.

  Attributes:
    active: true for tokens of non-zero weight.
    weights: each token's weight in the objective.
    advantages: A, a constant to autodiff.
    logprobs: log π(a), in nats.
    log_ratio: log π(a) − log π_old(a), in nats.
    segment_ids: index of the sequence within its row; `None` where a row is
      one sequence.
  """

  active: Bool[Array, 'B T']
  weights: Float[Array, 'B T']
  advantages: Float[Array, 'B T']
  logprobs: Float[Array, 'B T']
  log_ratio: Float[Array, 'B T']
  segment_ids: Int[Array, 'B T'] | None


def loss_inputs(
  stats: TokenStats, context: TokenContext, loss_name: str
) -> LossInputs:
  """Reads a loss's inputs from the context and masks them.

  Args:
    stats: statistics of the policy.
    context: keyword arguments of the loss.
    loss_name: name of the loss, for errors.

  Raises:
    TypeError: if an entry is missing, unknown, or of another dtype.
    ValueError: if an entry is of another shape than the statistics, or a weight
      off the mask is not 0; in a compiled program that is NaN.
  """
  check_stats('stats', stats, loss_name)
  check_context(context, loss_name, stats)
  return _masked_inputs(
    stats,
    _required(context, 'advantages', loss_name),
    _required(context, 'old_logprobs', loss_name),
    _consistent_weights(
      _required(context, 'weights', loss_name), context.get('mask')
    ),
    context.get('segment_ids'),
  )


def _consistent_weights(
  weights: Float[Array, 'B T'], mask: Bool[Array, 'B T'] | None
) -> Float[Array, 'B T']:
  """Weights, NaN where they are not 0 off the mask: prompts would be trained on."""
  if mask is None:
    return weights
  contradicts_mask = (weights != 0) & ~mask
  values = concrete_array(contradicts_mask)
  if values is not None and values.any():
    raise ValueError(
      f'weights must be 0 off the mask, got others at {values.sum()} tokens'
    )
  weights = weights.astype(jnp.result_type(weights, jnp.float32))
  return jnp.where(contradicts_mask, jnp.nan, weights)


def _required(context: TokenContext, entry: str, loss_name: str) -> Any:
  """Returns an entry of the context, or raises an error that names it."""
  value = context.get(entry)
  if value is None:
    raise TypeError(
      f'{entry} must be in the context of {loss_name}, got None; pass {entry}=… to it'
    )
  return value


def _masked_inputs(
  stats: TokenStats,
  advantages: Float[Array, 'B T'],
  old_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  segment_ids: Int[Array, 'B T'] | None,
) -> LossInputs:
  """Replaces inputs by 0 where the weight is 0, before any arithmetic.

  A NaN or an infinity there then reaches neither value nor gradient; masking a
  product afterwards could not guarantee that (0 · ∞ is NaN).
  """
  active = weights != 0
  dtype = jnp.result_type(
    stats.logprobs, advantages, old_logprobs, weights, jnp.float32
  )

  def masked(x: Float[Array, 'B T']) -> Float[Array, 'B T']:
    return jnp.where(active, x.astype(dtype), 0)

  logprobs = masked(stats.logprobs)
  return LossInputs(
    active=active,
    weights=weights.astype(dtype),
    advantages=jax.lax.stop_gradient(masked(advantages)),
    logprobs=logprobs,
    log_ratio=logprobs - jax.lax.stop_gradient(masked(old_logprobs)),
    segment_ids=segment_ids,
  )


def weighted_loss(
  inputs: LossInputs,
  losses: Float[Array, 'B T'],
  *,
  ratio: Float[Array, 'B T'],
  score_weight: Float[Array, 'B T'],
  clipped: Bool[Array, 'B T'],
) -> tuple[Scalar, LossAux]:
  """Returns Σ weights · losses and the auxiliary output.

  Args:
    inputs: from `loss_inputs`.
    losses: loss of each token.
    ratio: see `LossAux`.
    score_weight: A · ratio, before clipped tokens are set to 0.
    clipped: see `LossAux`.
  """
  aux = LossAux(
    ratio=jnp.where(inputs.active, ratio, 1),
    log_ratio=inputs.log_ratio,
    score_weight=jnp.where(inputs.active & ~clipped, score_weight, 0),
    clipped=inputs.active & clipped,
  )
  value = jnp.sum(inputs.weights * jnp.where(inputs.active, losses, 0))
  return value, jax.lax.stop_gradient(aux)


def clamped_ratio(
  log_ratio: Float[Array, 'B T'], max_log_ratio: Number | None
) -> tuple[Float[Array, 'B T'], Bool[Array, 'B T']]:
  """Returns exp(log_ratio) within exp(±max_log_ratio), and which were clamped.

  Clamped ratios are constants to autodiff.
  """
  if max_log_ratio is None:
    return jnp.exp(log_ratio), jnp.zeros(log_ratio.shape, bool)
  check_range('max_log_ratio', max_log_ratio, 0, math.inf)
  clamped = bounded(log_ratio, -max_log_ratio, max_log_ratio)
  return jnp.exp(clamped), jnp.abs(log_ratio) > max_log_ratio


def bounded(
  x: Float[Array, '*shape'], low: Number, high: Number
) -> Float[Array, '*shape']:
  """Clips x to [low, high], with derivative 1 on the bounds as inside them.

  `jnp.clip` has derivative 1/2 on a bound, and `lax.clamp` 0.
  """
  inside = (x >= low) & (x <= high)
  return jnp.where(inside, x, jnp.clip(jax.lax.stop_gradient(x), low, high))


def check_range(name: str, value: Number, low: Number, high: Number) -> None:
  """Refuses a concrete number outside [low, high]; traced ones pass."""
  number = concrete_number(value, name, allow_schedule=False)
  if number is not None and not low <= number <= high:
    raise ValueError(f'{name} must lie in [{low:g}, {high:g}], got {number:g}')
