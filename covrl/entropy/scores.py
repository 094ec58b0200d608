# SPDX-License-Identifier: Apache-2.0
"""Scores of tokens: how much each token's update lowers the entropy.

The published methods rank by `token_covariance`. The others are the per-token
first-order decrease of the entropy under successively fewer assumptions; for
logits that are free parameters `exact_score` is exact:

  ΔH = −(η/N) Σ c*.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from covrl.array_checks import check_array
from covrl.context_checks import check_context, check_stats
from covrl.statistics.exact import exact_mean
from covrl.types import TokenMoments, TokenStats


def token_covariance(
  logprobs: Float[Array, 'B T'],
  advantages: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
) -> Float[Array, 'B T']:
  """Each token's contribution to the covariance that lowers the entropy.

  With means over the tokens under `mask` of the whole batch,

    c = (log π(a) − mean log π) · (A − mean A).

  The means are exact, so the bits do not depend on mesh, packing or order.

  Args:
    logprobs: log-probabilities of the sampled tokens, in nats.
    advantages: advantages of the same tokens.
    mask: response tokens; others get 0. Tokens whose log-probability or
      advantage is not finite are left out of the means and get 0 too.

  Returns:
    Covariance per token; its mean over `mask` is the batch covariance.

  References:
    Cui et al., `The Entropy Mechanism of Reinforcement Learning for Reasoning
    Language Models <https://arxiv.org/abs/2505.22617>`_, 2025.

  >>> logprobs, advantages = jnp.array([[-1.0, -3.0]]), jnp.array([[1.0, -1.0]])
  >>> token_covariance(logprobs, advantages, jnp.array([[True, True]]))
  Array([[1., 1.]], dtype=float32)
  """
  shape = check_array('logprobs', logprobs, 'real', 'B T')
  check_array('advantages', advantages, 'real', 'B T', shape)
  check_array('mask', mask, 'bool', 'B T', shape)
  logprobs = _at_least_float32(logprobs)
  advantages = _at_least_float32(advantages)
  mask = mask & jnp.isfinite(logprobs) & jnp.isfinite(advantages)
  logprobs = jnp.where(mask, logprobs, 0)
  advantages = jnp.where(mask, advantages, 0)
  product = (logprobs - exact_mean(logprobs, mask)) * (
    advantages - exact_mean(advantages, mask)
  )
  return jnp.where(mask, product, 0)


def state_score(
  stats: TokenStats, advantages: Float[Array, 'B T']
) -> Float[Array, 'B T']:
  """The covariance centred per state: (log π(a) + H) · A.

  The decrease of the entropy under a natural policy gradient; it needs no moments.
  """
  _check_per_token(stats, 'state_score', advantages=advantages)
  return (stats.logprobs + stats.entropy) * advantages


def exact_score(
  stats: TokenStats,
  moments: TokenMoments,
  score_weight: Float[Array, 'B T'],
) -> Float[Array, 'B T']:
  """First-order decrease of the entropy by each sampled token's gradient.

    c* = w [π(a) (log π(a) + H) − κ],   κ = Σπ² log π + H Σπ²,

  and ΔH = −(η/N) c* where logits are free parameters. Its expectation over
  a ~ π is Cov(log π, π A).

  Args:
    stats: statistics of the policy.
    moments: moments of the same policy.
    score_weight: w = A · ratio · 1{not clipped}.
  """
  _check_per_token(
    stats, 'exact_score', score_weight=score_weight, moments=moments
  )
  token_term = jnp.exp(stats.logprobs) * (stats.logprobs + stats.entropy)
  kappa = moments.square_log + stats.entropy * moments.square
  return score_weight * (token_term - kappa)


def definition_score(
  stats: TokenStats,
  advantages: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
) -> Float[Array, 'B T']:
  """The paper's token covariance with the tabular update Δz = π A.

    C = (log π(a) + H) · (π(a) A − μ),   μ = mean over the batch of π(a) A.

  A sample shows one action's advantage, so the paper's state-wise mean of Δz
  is estimated by the mean over the batch's tokens (a ~ π in each state).

  References:
    `A Comparative Theoretical Analysis of Entropy Control Methods in
    Reinforcement Learning <https://arxiv.org/abs/2604.09676>`_, 2026,
    equation (17).
  """
  _check_per_token(stats, 'definition_score', advantages=advantages, mask=mask)
  update = jnp.where(mask, jnp.exp(stats.logprobs) * advantages, 0)
  return (stats.logprobs + stats.entropy) * (update - exact_mean(update, mask))


def _check_per_token(
  stats: TokenStats, function_name: str, **entries: object
) -> None:
  """Refuses arrays that are not one entry per token of the statistics."""
  check_stats('stats', stats, function_name)
  check_context(entries, function_name, stats)


def _at_least_float32(values: Float[Array, '...']) -> Float[Array, '...']:
  """Casts to float32 if narrower."""
  return values.astype(jnp.promote_types(values.dtype, jnp.float32))
