# SPDX-License-Identifier: Apache-2.0
"""Methods that rescale the policy gradient token by token.

Each multiplies the loss's cotangents by a non-negative factor. That equals
rescaling the advantages before the loss, because clipping depends on an
advantage's sign and not on its size. They belong in front of penalties and
bonuses, which they would scale too.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from covrl.array_checks import concrete_number
from covrl.entropy.base import (
  Coefficient,
  check_coefficient,
  require_entry,
  with_coefficient,
)
from covrl.entropy.controllers.bands import entropy_band
from covrl.entropy.controllers.base import Setpoint
from covrl.entropy.controllers.coefficients import proportional_integral
from covrl.entropy.methods.covariance import TokenTransformation
from covrl.types import TokenContext, TokenStats


def sample_weights(
  positive: Coefficient = 1.0, negative: Coefficient = 1.0
) -> TokenTransformation:
  """Weighs tokens of positive against tokens of negative advantage.

    g, h × positive where A > 0, × negative where A < 0

  `positive=0.1` is W-REINFORCE, `positive=0` learns from negative samples only,
  `negative=0` from positive ones. Published for rewards ±1; here the sign is
  the advantage's.

  Args:
    positive: a number, schedule or controller.
    negative: a number, schedule or controller.

  References:
    Zhu et al., `The Surprising Effectiveness of Negative Reinforcement in LLM
    Reasoning <https://arxiv.org/abs/2506.01347>`_, 2025.

  >>> tx = sample_weights(positive=0.1)
  >>> stats = TokenStats(logprobs=jnp.ones((1, 2)), entropy=jnp.zeros((1, 2)))
  >>> signal, _ = tx.update(
  ...     stats, tx.init(stats.template()), stats,
  ...     advantages=jnp.array([[2.0, -2.0]]), mask=jnp.ones((1, 2), bool))
  >>> signal.logprobs
  Array([[0.1, 1. ]], dtype=float32)
  """

  def scale_where(
    name: str, weight: Coefficient, sign: int
  ) -> TokenTransformation:
    check_coefficient(weight, name)
    return _scale_by(
      'sample_weights',
      weight,
      lambda inputs, value: jnp.where(inputs.advantages * sign > 0, value, 1),
    )

  return optax.chain(
    scale_where('positive', positive, 1), scale_where('negative', negative, -1)
  )


def entropic(
  target: Setpoint = 0.5, proportional: float = 1.0, integral: float = 0.01
) -> TokenTransformation:
  """EntroPIC: balances positive and negative samples to keep the entropy.

    g, h × (1 + α) where A > 0, × (1 − α) where A < 0,
    α = proportional · (H − target) + integral · Σ(H − target), within ±1

  Positive samples lower entropy and negative ones raise it. The default gains
  and target are those of the public re-implementation.

  Args:
    target: entropy to keep, in nats.
    proportional: gain on the error.
    integral: gain on the sum of errors.

  References:
    Yang et al., `EntroPIC: Towards Stable Long-Term Training of LLMs via
    Entropy Stabilization with Proportional-Integral Control
    <https://arxiv.org/abs/2511.15248>`_, 2025.

  >>> tx = entropic(target=0.5)
  """
  positive, negative = (
    proportional_integral(
      target,
      proportional=sign * proportional,
      integral=sign * integral,
      offset=1.0,
      minimum=0.0,
      maximum=2.0,
    )
    for sign in (-1, 1)
  )
  return sample_weights(positive=positive, negative=negative)


def entrocraft(
  low: Setpoint = 0.6, high: Setpoint = 0.7
) -> TokenTransformation:
  """Entrocraft: keeps only samples that move the entropy back into a band.

    H > high: A > 0 only      H < low: A < 0 only      else all

  Published with raw rewards outside the band and with both edges annealed
  linearly over the run, [0.6, 0.7] → [0.4, 0.5]:

    entrocraft(*(optax.linear_schedule(edge, edge - 0.2, total_updates)
                 for edge in (0.6, 0.7)))

  Args:
    low: lower edge, in nats; a number or a schedule of `step`.
    high: upper edge, in nats; a number or a schedule of `step`.

  References:
    Li et al., `Addressing Performance Saturation for LLM RL via Precise Entropy
    Curve Control <https://arxiv.org/abs/2604.26326>`_, 2026.

  >>> tx = entrocraft()
  """
  return sample_weights(
    positive=entropy_band(low, high, below=0.0, within=1.0, above=1.0),
    negative=entropy_band(low, high, below=1.0, within=1.0, above=0.0),
  )


def repo(scale: Coefficient = 0.01) -> TokenTransformation:
  """REPO-R: removes the correlation with log-probability from advantages.

    g, h × max(0, 1 − scale · sign(A) · log π)

  A positive scale weighs improbable tokens up if their advantage is positive
  and down if it is negative; a negative scale lowers entropy. Published with a
  scale that `doubling_scale(target)` moves between ±1e-4 and ±1.

  Args:
    scale: of either sign; a number, schedule or controller.

  Raises:
    ValueError: if the scale is not finite.

  References:
    Petrenko et al., `Entropy-Preserving Reinforcement Learning
    <https://arxiv.org/abs/2603.11682>`_, 2026, appendix D.2.

  >>> tx = repo(0.5)
  >>> stats = TokenStats(
  ...     logprobs=jnp.array([[-1.0, -1.0, -3.0]]), entropy=jnp.zeros((1, 3)))
  >>> ones = TokenStats(logprobs=jnp.ones((1, 3)), entropy=jnp.zeros((1, 3)))
  >>> signal, _ = tx.update(
  ...     ones, tx.init(stats.template()), stats,
  ...     advantages=jnp.array([[1.0, -1.0, -1.0]]), mask=jnp.ones((1, 3), bool))
  >>> signal.logprobs
  Array([[1.5, 0.5, 0. ]], dtype=float32)
  """
  number = concrete_number(scale, 'scale')
  if number is not None and not math.isfinite(number):
    raise ValueError(f'scale must be finite, got {number:g}')

  def factor(inputs: _FactorInputs, value: ArrayLike) -> Float[Array, 'B T']:
    reduction = (
      jnp.asarray(value) * jnp.sign(inputs.advantages) * inputs.logprobs
    )
    return jnp.maximum(1 - reduction, 0)

  return _scale_by('repo', scale, factor, is_signed=True)


def entropy_shaped(
  coefficient: Coefficient = 0.4, bound: float = 2.0
) -> TokenTransformation:
  """Raises advantages in proportion to the policy's entropy.

    A ← A + min(coefficient · H, |A| / bound)

  on the cotangents: × (1 + min(coefficient · H, |A| / bound) / A). H is a
  constant to autodiff, so entropy itself is not rewarded. Published with a
  coefficient of 0.4 for GRPO and 0.1 for PPO, and a bound of 2.

  Args:
    coefficient: in advantage units per nat; a number, schedule or controller.
    bound: above 1, so that no advantage changes sign.

  Raises:
    ValueError: if a number is outside its range.

  References:
    Cheng et al., `Reasoning with Exploration: An Entropy Perspective on
    Reinforcement Learning for LLMs <https://arxiv.org/abs/2506.14758>`_, 2025.

  >>> tx = entropy_shaped(0.5)
  >>> stats = TokenStats(
  ...     logprobs=jnp.ones((1, 2)), entropy=jnp.array([[1.0, 9.0]]))
  >>> signal, _ = tx.update(
  ...     stats, tx.init(stats.template()), stats,
  ...     advantages=jnp.array([[2.0, -2.0]]), mask=jnp.ones((1, 2), bool))
  >>> signal.logprobs
  Array([[1.25, 0.5 ]], dtype=float32)
  """
  check_coefficient(coefficient)
  concrete_number(bound, 'bound', allow_schedule=False)
  if not 1 < bound < math.inf:
    raise ValueError(f'bound must be finite and above 1, got {bound:g}')

  def factor(inputs: _FactorInputs, value: ArrayLike) -> Float[Array, 'B T']:
    magnitude = jnp.abs(inputs.advantages)
    increase = jnp.minimum(
      jnp.asarray(value) * inputs.entropy, magnitude / bound
    )
    relative_increase = increase / jnp.where(magnitude > 0, magnitude, 1)
    return 1 + jnp.sign(inputs.advantages) * relative_increase

  return _scale_by('entropy_shaped', coefficient, factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FactorInputs:
  """Inputs of a factor: zeros off the mask, constants to autodiff.

  Attributes:
    advantages: advantage of each token.
    logprobs: log-probability of each token.
    entropy: entropy of the policy at each token, in nats.
  """

  advantages: Float[Array, 'B T']
  logprobs: Float[Array, 'B T']
  entropy: Float[Array, 'B T']


def _scale_by(
  name: str,
  coefficient: Coefficient,
  factor: Callable[[_FactorInputs, ArrayLike], Float[Array, 'B T']],
  *,
  is_signed: bool = False,
) -> TokenTransformation:
  """Multiplies both cotangents by a factor with a coefficient in it."""

  def edit(
    updates: TokenStats,
    stats: TokenStats,
    value: ArrayLike,
    context: TokenContext,
  ) -> TokenStats:
    mask = require_entry(context, 'mask', name)
    advantages = require_entry(context, 'advantages', name)
    inputs = _FactorInputs(
      advantages=_masked_constant(advantages, mask),
      logprobs=_masked_constant(stats.logprobs, mask),
      entropy=_masked_constant(stats.entropy, mask),
    )
    factors = jnp.where(mask, factor(inputs, value), 1)
    return jax.tree.map(lambda u: (u * factors).astype(u.dtype), updates)

  return with_coefficient(name, coefficient, edit, is_signed=is_signed)


def _masked_constant(
  values: Float[Array, 'B T'], mask: Bool[Array, 'B T']
) -> Float[Array, 'B T']:
  """Replaces values off the mask by 0; a constant to autodiff."""
  return jax.lax.stop_gradient(jnp.where(mask, values, 0))
