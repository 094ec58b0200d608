# SPDX-License-Identifier: Apache-2.0
"""Off-policy methods, for tokens sampled by another policy than the trained one.

Importance weights for the sampler's policy, gradients beyond PPO's clip for the
old policy, and a KL penalty to the reference policy.
"""

import dataclasses
import math
from typing import Literal, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from covrl.array_checks import check_number
from covrl.entropy.base import (
  Coefficient,
  require_entry,
  token_transform,
)
from covrl.entropy.methods.covariance import TokenTransformation
from covrl.entropy.transforms import add_divergence_penalty, scale_by_token
from covrl.objectives.base import check_range
from covrl.objectives.segments import segment_sums, spread_segments
from covrl.types import Divergence, TokenContext, TokenStats

Level = Literal['token', 'sequence']
OutOfRange = Literal['truncate', 'mask']

LEVELS = get_args(Level)
OUT_OF_RANGE = get_args(OutOfRange)


class ImportanceWeightState(NamedTuple):
  """State of importance weights: empty; its type marks a chain that has them."""


def truncated_importance_weights(
  cap: float = 2.0,
  floor: float = 0.0,
  *,
  level: Level = 'token',
  out_of_range: OutOfRange = 'truncate',
) -> TokenTransformation:
  """Corrects for differences between sampler and trainer probabilities.

    g, h × clip(ρ, floor, cap),   ρ = π_old(a) / π_sampler(a)

  The weight belongs to the policy gradient: put this first in the chain, or it
  scales penalties too. Tokens of weight 0 stay in the denominator. `cap=2` truncates
  as published; see also `icepop` and `decoupled_ppo`.

  Args:
    cap: largest weight.
    floor: smallest weight.
    level: `'token'`, or `'sequence'`: ρ is the product over the response.
    out_of_range: `'truncate'` clips weights outside [floor, cap] to the bound;
      `'mask'` sets them to 0.

  Raises:
    ValueError: if an option is outside its range.

  References:
    Yao et al., `Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training <https://fengyao.notion.site/off-policy-rl>`_, 2025. Ling team,
    `Every Step Evolves <https://arxiv.org/abs/2510.18855>`_, 2025 (IcePop).

  >>> tx = truncated_importance_weights(cap=2.0)
  >>> ones = TokenStats(logprobs=jnp.ones((1, 2)), entropy=jnp.zeros((1, 2)))
  >>> signal, _ = tx.update(
  ...     ones, tx.init(ones.template()), ones, mask=jnp.ones((1, 2), bool),
  ...     old_logprobs=jnp.log(jnp.array([[0.5, 0.5]])),
  ...     sampler_logprobs=jnp.log(jnp.array([[1.0, 0.1]])))
  >>> signal.logprobs
  Array([[0.5, 2. ]], dtype=float32)
  """
  if level not in LEVELS:
    raise ValueError(f'level must be one of {LEVELS}, got {level!r}')
  if out_of_range not in OUT_OF_RANGE:
    raise ValueError(
      f'out_of_range must be one of {OUT_OF_RANGE}, got {out_of_range!r}'
    )
  check_range('floor', floor, 0, math.inf)
  check_range('cap', cap, 0, math.inf)
  if not floor < cap:
    raise ValueError(
      f'floor must lie in [0, cap), got floor={floor:g} and cap={cap:g}'
    )

  name = 'truncated_importance_weights'

  def factor(
    stats: TokenStats, **context: Unpack[TokenContext]
  ) -> Float[Array, 'B T']:
    del stats
    mask = require_entry(context, 'mask', name)
    old = require_entry(context, 'old_logprobs', name)
    sampler = require_entry(context, 'sampler_logprobs', name)
    log_ratio = jnp.where(mask, old - sampler, 0)
    if level == 'sequence':
      ids = context.get('segment_ids')
      sums = segment_sums(log_ratio, ids)
      log_ratio = spread_segments(sums, ids, mask.shape[1])
    ratio = jnp.exp(log_ratio)
    weight = jnp.clip(ratio, floor, cap)
    if out_of_range == 'mask':
      weight = jnp.where((ratio < floor) | (ratio > cap), 0, weight)
    return jnp.where(mask, weight, 1)

  return scale_by_token(name, factor, lambda _: ImportanceWeightState())


def ce_gppo(
  negative: float = 0.75,
  positive: float = 1.0,
  *,
  low: float = 0.2,
  high: float = 0.2,
) -> TokenTransformation:
  """CE-GPPO: a bounded gradient for the tokens that PPO clips.

    A < 0, ratio < 1 − low:   g = −weights · A · negative · (1 − low)
    A > 0, ratio > 1 + high:  g = −weights · A · positive · (1 + high)

  It replaces the loss's cotangents of these tokens, clipped or not, and belongs
  first in the chain. Published with 0.75 and 1 (7B), 0.5 and 1 (1.5B), and a
  clip range of 0.2; both 1 is GPPO. A smaller `negative` keeps entropy higher.

  Args:
    negative: share of the gradient that tokens below the range keep.
    positive: share of the gradient that tokens above the range keep.
    low: clip range below 1.
    high: clip range above 1.

  Raises:
    ValueError: if a number is outside its range.

  References:
    Su et al., `CE-GPPO: Coordinating Entropy via Gradient-Preserving Clipping
    Policy Optimization in Reinforcement Learning
    <https://arxiv.org/abs/2509.20712>`_, 2025.

  >>> tx = ce_gppo()
  >>> stats = TokenStats(
  ...     logprobs=jnp.log(jnp.array([[0.1, 0.5]])), entropy=jnp.zeros((1, 2)))
  >>> zeros = TokenStats(logprobs=jnp.zeros((1, 2)), entropy=jnp.zeros((1, 2)))
  >>> signal, _ = tx.update(
  ...     zeros, tx.init(stats.template()), stats, weights=jnp.ones((1, 2)),
  ...     advantages=jnp.array([[-1.0, 1.0]]),
  ...     old_logprobs=jnp.log(jnp.array([[0.4, 0.4]])))
  >>> signal.logprobs
  Array([[ 0.6, -1.2]], dtype=float32)
  """
  for name, share in (('negative', negative), ('positive', positive)):
    check_number(name, share, 0)
  check_number('low', low, 0, 1)
  check_number('high', high, 0)

  def update(
    updates: TokenStats,
    state: PyTree,
    stats: TokenStats,
    context: TokenContext,
  ) -> tuple[TokenStats, PyTree]:
    weights = require_entry(context, 'weights', 'ce_gppo')
    old = require_entry(context, 'old_logprobs', 'ce_gppo')
    advantages = require_entry(context, 'advantages', 'ce_gppo')
    ratio = jnp.exp(jnp.where(weights != 0, stats.logprobs - old, 0))
    below_range = (advantages < 0) & (ratio < 1 - low)
    above_range = (advantages > 0) & (ratio > 1 + high)
    bounded_ratio = jnp.where(
      below_range, negative * (1 - low), positive * (1 + high)
    )
    signal = updates.logprobs
    edited = jnp.where(
      below_range | above_range, -weights * advantages * bounded_ratio, signal
    )
    return dataclasses.replace(
      updates, logprobs=jax.lax.stop_gradient(edited).astype(signal.dtype)
    ), state

  return token_transform('ce_gppo', optax.init_empty_state, update)


def kl_to_reference(
  coefficient: Coefficient = 1e-3, divergence: Divergence = 'k3'
) -> TokenTransformation:
  """KL penalty to a reference policy.

    g += coefficient · weights · ∂D/∂log π,   D of log π − log π_ref

  Published with D = k3 and a coefficient of 0.04 (GRPO); public trainers ship
  0.001. The gradient of k3 is not that of the KL, which on samples of π is
  k2's. ProRL keeps a small penalty and resets the reference to the current
  policy whenever validation stalls.

  Args:
    coefficient: a number, schedule or controller.
    divergence: `'k3'`, `'k2'`, `'k1'` or `'abs'`; see `add_divergence_penalty`.

  Raises:
    ValueError: if the divergence is `'full'`, which is to the old policy.

  References:
    Shao et al., `DeepSeekMath <https://arxiv.org/abs/2402.03300>`_, 2024,
    equation 4. Liu et al., `ProRL <https://arxiv.org/abs/2505.24864>`_, 2025.

  >>> tx = kl_to_reference(0.5, 'k2')
  >>> stats = TokenStats(
  ...     logprobs=jnp.array([[-1.0]]), entropy=jnp.zeros((1, 1)))
  >>> zeros = TokenStats(logprobs=jnp.zeros((1, 1)), entropy=jnp.zeros((1, 1)))
  >>> signal, _ = tx.update(
  ...     zeros, tx.init(stats.template()), stats, weights=jnp.ones((1, 1)),
  ...     ref_logprobs=jnp.array([[-2.0]]))
  >>> signal.logprobs
  Array([[0.5]], dtype=float32)
  """
  if divergence == 'full':
    raise ValueError(
      "divergence must be 'k3', 'k2', 'k1' or 'abs' for the reference policy, got"
      " 'full', which is the KL to the old policy"
    )
  return add_divergence_penalty(
    coefficient, divergence, reference='ref_logprobs'
  )
