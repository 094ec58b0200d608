# SPDX-License-Identifier: Apache-2.0
"""Controllers that keep the entropy within a band.

Like those of `covrl.entropy.controllers.coefficients`, they may be passed wherever a coefficient
is accepted.
"""

import dataclasses
import math
from typing import Any, NamedTuple, cast

import jax.numpy as jnp

from covrl.array_checks import check_number, concrete_number
from covrl.entropy.controllers.base import (
  Controller,
  Setpoint,
  check_bounds,
  check_positive,
  check_target,
  context_entropy,
  is_initializing,
  keep_if_unmeasured,
  scalar,
  setpoint,
)
from covrl.types import Scalar


def entropy_band(
  low: Setpoint,
  high: Setpoint,
  *,
  below: float,
  within: float = 0.0,
  above: float = 0.0,
) -> Controller:
  """Three coefficients: below, within and above a band of entropies.

  Args:
    low: lower edge, in nats.
    high: upper edge, in nats; the coefficient is NaN while a schedule has it
      below the lower one.
    below: coefficient where H < low.
    within: coefficient in the band, edges included.
    above: coefficient where H > high.

  Raises:
    ValueError: if the edges are concrete and not in order.

  References:
    Li et al., `Addressing Performance Saturation for LLM RL via Precise Entropy
    Curve Control <https://arxiv.org/abs/2604.26326>`_, 2026.

  >>> controller = entropy_band(0.2, 0.4, below=0.01)
  >>> [float(controller((), entropy=jnp.array(h))) for h in (0.1, 0.3)]
  [0.009999999776482582, 0.0]
  """
  check_target(low, 'low')
  check_target(high, 'high')
  for name, value in (
    ('below', below),
    ('within', within),
    ('above', above),
  ):
    check_number(name, value, -math.inf)
  _check_edges(low, high)
  return _EntropyBand(low, high, below, within, above)


def adaptive_band(
  low: Setpoint = 0.1,
  high: Setpoint = 0.5,
  *,
  rate: float = 1e-3,
  minimum: float = 1e-5,
  maximum: float = 1e-2,
  initial: float = 1e-3,
) -> Controller:
  """Moves a coefficient in proportion to the distance from a band of entropies.

    c ← clip(c − rate · (min(0, H − low) + max(0, H − high)), minimum, maximum)

  AEnt's rule, with the defaults of its implementation in AReaL, whose recipe for
  GSM8K has a band of [0.05, 0.23] and a maximum of 3e-3. In AReaL, H is the
  entropy over the likely part of the vocabulary; here it is that over all of it.

  Args:
    low: lower edge, in nats; below it the coefficient rises.
    high: upper edge, in nats; above it the coefficient falls. The coefficient
      becomes NaN if a schedule has it below the lower one.
    rate: change of the coefficient per update and nat.
    minimum: least coefficient.
    maximum: greatest coefficient.
    initial: coefficient at the start.

  Raises:
    ValueError: if a number is outside its range, or the edges are concrete and
      not in order.

  References:
    Shen, `On Entropy Control in LLM-RL Algorithms
    <https://arxiv.org/abs/2509.03493>`_, 2025; defaults of inclusionAI/AReaL,
    recipe/AEnt.

  >>> controller = adaptive_band(0.2, 0.4, rate=0.1, maximum=1.0)
  >>> state = controller.update(controller.init(), entropy=jnp.array(0.1))
  >>> round(float(controller(state)), 4)
  0.011
  """
  check_target(low, 'low')
  check_target(high, 'high')
  _check_edges(low, high)
  check_positive(rate, 'rate')
  check_bounds(minimum, maximum, initial)
  return _AdaptiveBand(low, high, rate, minimum, maximum, initial)


def _check_edges(low: Setpoint, high: Setpoint) -> None:
  """Refuses edges of a band that are concrete and not in order."""
  edges = concrete_number(low, 'low'), concrete_number(high, 'high')
  if None not in edges and not cast(float, edges[0]) < cast(float, edges[1]):
    raise ValueError(
      f'low must be below high, got low={edges[0]:g} and high={edges[1]:g}'
    )


def _edges(
  low: Setpoint, high: Setpoint, context: dict[str, Any]
) -> tuple[Scalar, Scalar]:
  """The edges at this step; NaN if they are not in order."""
  low_value, high_value = setpoint(low, context), setpoint(high, context)
  in_order = low_value <= high_value
  return (
    jnp.where(in_order, low_value, jnp.nan),
    jnp.where(in_order, high_value, jnp.nan),
  )


class AdaptiveBandState(NamedTuple):
  """State of `adaptive_band`.

  Attributes:
    coefficient: c.
  """

  coefficient: Scalar


@dataclasses.dataclass(frozen=True)
class _AdaptiveBand:
  """The schedule that `adaptive_band` returns; see its arguments."""

  low: Setpoint
  high: Setpoint
  rate: float
  minimum: float
  maximum: float
  initial: float

  def init(self) -> AdaptiveBandState:
    return AdaptiveBandState(coefficient=scalar(self.initial))

  def update(
    self, state: AdaptiveBandState, **context: Any
  ) -> AdaptiveBandState:
    entropy = context_entropy(context)
    low, high = _edges(self.low, self.high, context)
    below = jnp.minimum(entropy - low, 0)
    above = jnp.maximum(entropy - high, 0)
    coefficient = state.coefficient - self.rate * (below + above)
    coefficient = jnp.clip(coefficient, self.minimum, self.maximum)
    return keep_if_unmeasured(AdaptiveBandState(coefficient), state, context)

  def __call__(self, state: AdaptiveBandState, **context: Any) -> Scalar:
    del context
    return state.coefficient


@dataclasses.dataclass(frozen=True)
class _EntropyBand:
  """The schedule that `entropy_band` returns; see its arguments."""

  low: Setpoint
  high: Setpoint
  below: float
  within: float
  above: float

  def init(self) -> tuple[()]:
    return ()

  def update(self, state: tuple[()], **context: Any) -> tuple[()]:
    del context
    return state

  def __call__(self, state: tuple[()], **context: Any) -> Scalar:
    del state
    within = scalar(self.within)
    if is_initializing(context):
      return within
    entropy = context_entropy(context)
    low, high = _edges(self.low, self.high, context)
    value = jnp.where(entropy < low, self.below, within)
    value = jnp.where(entropy > high, self.above, value)
    return jnp.where(jnp.isnan(low), jnp.nan, value)
