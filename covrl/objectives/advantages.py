# SPDX-License-Identifier: Apache-2.0
"""Response-level advantages: rewards compared within the group of a prompt.

Groups are given by ids, any integers in any order, so the functions do not
depend on the batch's layout. They compare all pairs of responses: O(S²)
additions, which `jax.jit` fuses without storing them, and negligible beside a
rollout. A group whose rewards are all equal gets exactly 0.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, check_number
from covrl.objectives.base import Number

# Advantage of a response that is alone in its group: its reward, or 0.
Singleton = Literal['reward', 'zero']


def group_relative(
  rewards: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  *,
  scale: Literal['std'] | None = 'std',
  eps: Number = 1e-6,
  singleton: Singleton = 'reward',
) -> Float[Array, ' S']:
  """Reward minus the group's mean (Dr. GRPO), over its standard deviation (GRPO).

    A_i = (r_i − mean) / (std + eps)        scale='std', GRPO
    A_i =  r_i − mean                       scale=None, Dr. GRPO

  Args:
    rewards: one per response.
    group_ids: responses to the same prompt share an id.
    scale: 'std' divides by the group's unbiased standard deviation; `None`
      does not, so that the weight of a prompt does not depend on its difficulty.
    eps: added to the standard deviation.
    singleton: advantage of a response alone in its group: 'reward' assumes mean
      0 and standard deviation 1, as published code does; 'zero' gives 0.

  Returns:
    One advantage per response.

  Raises:
    TypeError: if an argument has another type than its annotation.
    ValueError: if an option is unknown, `eps` is negative, or shapes differ.

  >>> rewards = jnp.array([1.0, 0.0, 5.0, 5.0])
  >>> group_relative(rewards, jnp.array([7, 7, 3, 3]), scale=None).tolist()
  [0.5, -0.5, 0.0, 0.0]

  References:
    Shao et al., DeepSeekMath, arXiv:2402.03300, section 4.1.2 (GRPO).
    Liu et al., Understanding R1-Zero-Like Training, arXiv:2503.20783 (Dr.
    GRPO).
  """
  if scale not in ('std', None):
    raise ValueError(f"scale must be 'std' or None, got {scale!r}")
  check_number('eps', eps, 0)
  centred = centre(rewards, group_ids, singleton=singleton)
  if scale is None:
    return centred
  return centred / (standard_deviation(centred, group_ids) + eps)


def leave_one_out(
  rewards: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  *,
  singleton: Singleton = 'reward',
) -> Float[Array, ' S']:
  """Reward minus the mean reward of the other responses of the group (RLOO).

    A_i = r_i − mean of r_j over j ≠ i

  Unlike the group's own mean, this baseline does not depend on the response,
  so the policy gradient stays unbiased.

  Args:
    rewards: one per response.
    group_ids: responses to the same prompt share an id.
    singleton: advantage of a response alone in its group: its reward, or 0.

  Returns:
    One advantage per response.

  >>> rewards = jnp.array([3.0, 0.0, 0.0])
  >>> leave_one_out(rewards, jnp.array([0, 0, 0])).tolist()
  [3.0, -1.5, -1.5]

  References:
    Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for
    Learning from Human Feedback in LLMs, arXiv:2402.14740, eq. 6.
  """
  _, size = same_group(rewards, group_ids)
  centred = centre(rewards, group_ids, singleton=singleton)
  num_others = jnp.maximum(size - 1, 1).astype(centred.dtype)
  return centred * (size.astype(centred.dtype) / num_others)


def opo(
  rewards: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  lengths: Int[Array, ' S'],
) -> Float[Array, ' S']:
  """Reward minus the length-weighted mean reward of the group (OPO).

    A_i = r_i − Σ_j l_j r_j / Σ_j l_j

  The baseline has the least variance if the squared gradient of a response is
  proportional to its length.

  Args:
    rewards: one per response.
    group_ids: responses to the same prompt share an id.
    lengths: number of tokens of each response.

  Returns:
    One advantage per response; its reward if it is alone in its group, or if
    the group has no tokens; NaN in a group with a negative length.

  References:
    Hao et al., On-Policy RL with Optimal Reward Baseline, arXiv:2505.23585,
    section 3.
  """
  same, size = same_group(rewards, group_ids)
  check_array('lengths', lengths, 'int', 'S', rewards.shape)
  rewards = widen(rewards)
  lengths = lengths.astype(rewards.dtype)
  total = jnp.sum(jnp.where(same, lengths[None, :], 0), axis=1)
  gaps = rewards[:, None] - rewards[None, :]
  centred = jnp.sum(jnp.where(same, gaps * lengths[None, :], 0), axis=1)
  has_baseline = (size > 1) & (total > 0)
  advantages = jnp.where(
    has_baseline, centred / jnp.where(has_baseline, total, 1), rewards
  )
  has_negative_length = jnp.any(same & (lengths < 0)[None, :], axis=1)
  return jnp.where(has_negative_length, jnp.nan, advantages)


def pass_at_k(
  rewards: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  *,
  k: int,
  threshold: Number = 0.5,
) -> Float[Array, ' S']:
  """Contribution of a response to pass@k: k samples containing a success.

  In a group of n responses, m of them failures, every subset of size k scores 1
  if it contains a success and 0 otherwise. The advantage of a response is the
  mean whitened score of the subsets that contain it:

    R = 1 − C(m, k)/C(n, k),    σ = √(R (1 − R))
    A = (1 − R)/σ                              for a success
    A = (1 − R − C(m−1, k−1)/C(n−1, k−1))/σ    for a failure

  Args:
    rewards: one per response.
    group_ids: responses to the same prompt share an id.
    k: number of samples of pass@k, at least 1.
    threshold: a response is a success if its reward exceeds this.

  Returns:
    One advantage per response; 0 where all subsets score the same, and in
    groups of fewer than k.

  Raises:
    ValueError: if k is less than 1.

  >>> rewards = jnp.array([1.0, 0.0, 0.0, 0.0])
  >>> advantages = pass_at_k(rewards, jnp.zeros(4, int), k=2)
  >>> [f'{advantage:.2f}' for advantage in advantages]
  ['1.00', '-0.33', '-0.33', '-0.33']

  References:
    Chen et al., Pass@k Training for Adaptively Balancing Exploration and
    Exploitation of Large Reasoning Models, arXiv:2508.10751, eqs. 10 to 15.
  """
  if isinstance(k, bool) or not isinstance(k, int):
    raise TypeError(f'k must be an integer, got {k!r}')
  if k < 1:
    raise ValueError(f'k must be at least 1, got {k}')
  check_number('threshold', threshold, -math.inf)
  same, size = same_group(rewards, group_ids)
  dtype = widen(rewards).dtype
  # A reward that is not finite is neither a success nor a failure.
  unknown = jnp.any(same & ~jnp.isfinite(rewards)[None, :], axis=1)
  success = rewards > threshold
  failures = jnp.sum(same & ~success[None, :], axis=1, dtype=jnp.int32)
  miss = _choose_ratio(failures, size, k, dtype)
  others_miss = _choose_ratio(failures - 1, size - 1, k - 1, dtype)
  score_deviation = jnp.sqrt(miss * (1 - miss))
  gain = miss - jnp.where(success, 0, others_miss)
  defined = (score_deviation > 0) & (size >= k)
  advantages = jnp.where(
    defined, gain / jnp.where(defined, score_deviation, 1), 0
  )
  return jnp.where(unknown, jnp.nan, advantages)


def unlikeliness(
  rewards: Float[Array, ' S'],
  logprobs: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  *,
  coefficient: Number = 0.25,
) -> Float[Array, ' S']:
  """Rewards scaled down for the likelier responses of a group.

    r_i (1 − coefficient · rank_i / n)

  where n is the group's size and rank_i the number of its responses that are
  less likely. Apply it to rewards before computing advantages.

  Args:
    rewards: one per response; a reward of 0 stays 0.
    logprobs: log-probability of each response, in nats: the mean over its
      tokens as in the authors' code, or the sum.
    group_ids: responses to the same prompt share an id.
    coefficient: largest fraction of its reward that a response loses.

  Returns:
    One reward per response.

  >>> rewards, ids = jnp.array([1.0, 1.0]), jnp.array([0, 0])
  >>> unlikeliness(rewards, jnp.array([-1.0, -9.0]), ids).tolist()
  [0.875, 1.0]

  References:
    He et al., Rewarding the Unlikely, arXiv:2506.02355, section 4.
  """
  check_number('coefficient', coefficient, 0, 1)
  same, size = same_group(rewards, group_ids)
  check_array('logprobs', logprobs, 'real', 'S', rewards.shape)
  rewards = widen(rewards)
  rarer = same & (logprobs[None, :] < logprobs[:, None])
  rank = jnp.sum(rarer, axis=1, dtype=jnp.int32).astype(rewards.dtype)
  # With a NaN, the ranks in its group are not known.
  unknown = jnp.any(same & jnp.isnan(logprobs)[None, :], axis=1)
  rank = jnp.where(unknown, jnp.nan, rank)
  return rewards * (1 - coefficient * rank / size.astype(rewards.dtype))


def centre(
  rewards: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  *,
  singleton: Singleton = 'reward',
) -> Float[Array, ' S']:
  """Rewards minus their group's mean, as the mean of differences.

    r_i − mean = mean of (r_i − r_j)

  which is exactly 0 if all rewards are equal. A mean that is off by rounding
  would be divided by a standard deviation that is as small.

  Args:
    rewards: one per response.
    group_ids: responses to the same prompt share an id.
    singleton: value of a response alone in its group: its reward, or 0.
  """
  if singleton not in ('reward', 'zero'):
    raise ValueError(f"singleton must be 'reward' or 'zero', got {singleton!r}")
  same, size = same_group(rewards, group_ids)
  rewards = widen(rewards)
  gaps = jnp.where(same, rewards[:, None] - rewards[None, :], 0)
  centred = jnp.sum(gaps, axis=1) / size.astype(rewards.dtype)
  if singleton == 'zero':
    return centred
  return jnp.where(size > 1, centred, rewards)


def standard_deviation(
  centred: Float[Array, ' S'], group_ids: Int[Array, ' S']
) -> Float[Array, ' S']:
  """Unbiased standard deviation of each response's group; 1 if it is alone.

  NaN where a square overflows: divided by infinity, advantages would be 0.

  Args:
    centred: rewards minus their group's mean.
    group_ids: responses to the same prompt share an id.
  """
  same, size = same_group(centred, group_ids)
  squares = jnp.sum(jnp.where(same, centred[None, :] ** 2, 0), axis=1)
  squares = jnp.where(jnp.isfinite(squares), squares, jnp.nan)
  variance = squares / jnp.maximum(size - 1, 1).astype(centred.dtype)
  return jnp.where(size > 1, jnp.sqrt(variance), 1)


def same_group(
  rewards: Any, group_ids: Any
) -> tuple[Bool[Array, 'S S'], Int[Array, ' S']]:
  """Pairs of responses that share a group, and the size of each's group.

  Raises:
    TypeError: if the rewards are not numbers, or the ids not integers.
    ValueError: if they are not one per response.
  """
  shape = check_array('rewards', rewards, 'real', 'S')
  check_array('group_ids', group_ids, 'int', 'S', shape)
  same = group_ids[:, None] == group_ids[None, :]
  return same, jnp.sum(same, axis=1, dtype=jnp.int32)


def widen(x: Float[Array, ' S']) -> Float[Array, ' S']:
  """Casts to float32 if narrower."""
  return x.astype(jnp.result_type(x, jnp.float32))


def _choose_ratio(
  m: Int[Array, ' S'], n: Int[Array, ' S'], k: int, dtype: jnp.dtype
) -> Float[Array, ' S']:
  """C(m, k) / C(n, k) = Π_{i<k} (m − i)/(n − i), 0 where m < k."""
  ratio = jnp.ones(m.shape, dtype)
  for i in range(min(k, m.size + 1)):
    numerator = jnp.maximum(m - i, 0).astype(dtype)
    ratio *= numerator / jnp.maximum(n - i, 1).astype(dtype)
  return ratio
