# SPDX-License-Identifier: Apache-2.0
"""Advantages that depend on how often the responses to a prompt succeed."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from covrl.array_checks import check_number
from covrl.objectives.advantages import (
  centre,
  same_group,
  standard_deviation,
  widen,
)
from covrl.objectives.base import Number

# Tolerance of `quantile · group size`, in responses, for rounding.
_ROUNDING = 1e-3


def max_likelihood(
  rewards: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  *,
  order: Number = 1.0,
) -> Float[Array, ' S']:
  """Reward minus the group's mean, over a power of that mean (MaxRL, GARL).

    A_i = (r_i − p) / p^order,    p the group's mean reward; 0 if p is 0

  The policy gradient of the expected reward (`order=0`), of the logarithm of the
  success probability (`order=1`, MaxRL), or of a Tsallis logarithm between them
  (GARL; the paper's setting for a start without successes is 0.75). With
  `order=1` and n responses it is, in expectation, the gradient of the first
  n − 1 terms of log P = −Σ_k (1 − P)^k / k, where P is the success probability.

  Args:
    rewards: one per response, at least 0.
    group_ids: responses to the same prompt share an id.
    order: q, in [0, 1].

  Returns:
    One advantage per response; NaN in groups with a negative reward, such as −1
    for a wrong answer.

  Raises:
    ValueError: if the order is not in [0, 1].

  >>> rewards = jnp.array([1.0, 0.0, 0.0, 0.0])
  >>> max_likelihood(rewards, jnp.zeros(4, int)).tolist()
  [3.0, -1.0, -1.0, -1.0]

  References:
    Tajwar et al., Maximum Likelihood Reinforcement Learning, arXiv:2602.02710.
    Lin and Ie, How Fast Should a Model Commit to Supervision?,
    arXiv:2604.25907 (GARL).
  """
  check_number('order', order, 0, 1)
  same, size = same_group(rewards, group_ids)
  rewards = widen(rewards)
  centred = centre(rewards, group_ids, singleton='zero')
  total = jnp.sum(jnp.where(same, rewards[None, :], 0), axis=1)
  mean = total / size.astype(rewards.dtype)
  scaled = centred / jnp.where(mean > 0, mean, 1) ** order
  smallest_reward = jnp.min(jnp.where(same, rewards[None, :], jnp.inf), axis=1)
  is_known = (smallest_reward >= 0) & jnp.isfinite(mean)
  return jnp.where(is_known, jnp.where(mean > 0, scaled, 0), jnp.nan)


def quantile_relative(
  rewards: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  *,
  quantile: Number = 0.4,
  eps: Number = 1e-6,
) -> Float[Array, ' S']:
  """Reward minus a quantile of the group, over its standard deviation (QAE).

    A_i = (r_i − Q) / (std + eps),    Q the smallest reward that at least
                                      `quantile` of the group do not exceed

  With rewards of 0 and 1, a prompt that is solved by at most 1 − quantile of its
  responses reinforces its successes and leaves failures alone, and any other
  prompt only penalises failures: most advantages are 0, and the change of
  entropy is bounded on both sides.

  Args:
    rewards: one per response.
    group_ids: responses to the same prompt share an id.
    quantile: K, in [0, 1].
    eps: added to the standard deviation.

  Returns:
    One advantage per response; 0 for one that is alone in its group.

  Raises:
    ValueError: if the quantile is not in [0, 1], or `eps` is negative.

  >>> rewards = jnp.array([1.0, 0.0, 0.0, 0.0])
  >>> quantile_relative(rewards, jnp.zeros(4, int)).round(3).tolist()
  [2.0, 0.0, 0.0, 0.0]

  References:
    Wu et al., Quantile Advantage Estimation for Entropy-Safe Reasoning,
    arXiv:2509.22611.
  """
  check_number('quantile', quantile, 0, 1)
  check_number('eps', eps, 0)
  same, size = same_group(rewards, group_ids)
  rewards = widen(rewards)
  not_above = same & (rewards[None, :] <= rewards[:, None])
  ranks = jnp.sum(not_above, axis=1, dtype=jnp.int32)
  required_rank = quantile * size.astype(rewards.dtype) - _ROUNDING
  reaches_quantile = ranks.astype(rewards.dtype) >= required_rank
  candidates = jnp.where(
    same & reaches_quantile[None, :], rewards[None, :], jnp.inf
  )
  baseline = jnp.min(candidates, axis=1)
  unknown = jnp.any(same & jnp.isnan(rewards)[None, :], axis=1)
  centred = centre(rewards, group_ids, singleton='zero')
  advantages = (rewards - baseline) / (
    standard_deviation(centred, group_ids) + eps
  )
  return jnp.where(unknown, jnp.nan, advantages)
