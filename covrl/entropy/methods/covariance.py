# SPDX-License-Identifier: Apache-2.0
"""Covariance methods and the entropy bonus, as chains of primitives."""

import optax
from jax.typing import ArrayLike

from covrl.entropy.base import Coefficient, Fraction
from covrl.entropy.selectors import random_in_band, top_score
from covrl.entropy.transforms import (
  add_divergence_penalty,
  add_entropy_bonus,
  token_masked,
)
from covrl.types import Divergence, Scope, Score, SelectionSource

TokenTransformation = optax.GradientTransformationExtraArgs


def entropy_bonus(coefficient: Coefficient) -> TokenTransformation:
  """Entropy bonus on every token.

    loss − coefficient · Σ weights · H

  Its gradient vanishes quadratically as a state's policy becomes deterministic,
  so it preserves entropy but does not restore it.

  Args:
    coefficient: a number, a schedule, or a controller such as
      `adaptive_bonus()`.

  References:
    Williams and Peng, `Function Optimization using Connectionist Reinforcement
    Learning Algorithms <https://doi.org/10.1080/09540099108946587>`_, 1991.

  >>> import covrl, jax.numpy as jnp
  >>> tx = covrl.entropy_bonus(0.5)
  >>> stats = covrl.TokenStats(
  ...     logprobs=jnp.zeros((1, 2)), entropy=jnp.ones((1, 2)))
  >>> signal, _ = tx.update(
  ...     stats, tx.init(stats.template()), stats, weights=jnp.ones((1, 2)))
  >>> signal.entropy
  Array([[0.5, 0.5]], dtype=float32)
  """
  return add_entropy_bonus(coefficient)


def kl_cov(
  fraction: Fraction = 2e-3,
  coefficient: Coefficient = 1.0,
  *,
  divergence: Divergence = 'abs',
  score: Score = 'batch',
  signed: bool = True,
  scope: Scope = 'batch',
  selection_source: SelectionSource = 'old',
  minimum: ArrayLike = 0,
  dead_zone: ArrayLike | None = None,
  allow_large: bool = False,
) -> TokenTransformation:
  """KL-Cov: a divergence penalty on the few tokens of highest covariance.

    g += coefficient · weights · ∂D/∂log π   on the top ⌊fraction · N⌋ tokens

  As published D = |log π − log π_old|, the base loss has no clip, the
  coefficient is 1 and the fraction 2e-3 (7B) or 2e-4 (32B). A clip is part of
  the loss, not of this transform. The penalty has no gradient where π = π_old:
  with one update per iteration it has no effect.

  Args:
    fraction: share of the optimiser batch's response tokens, in (0, 0.05].
    coefficient: weight of the penalty; a number, schedule or controller. A
      `target_entropy` predicts the penalty's effect with
      `selection_source='current'`. At the old statistics the penalty is 0, so
      with `'old'` the effect per unit of the coefficient is taken to be 1.
    divergence: see `add_divergence_penalty`.
    score: see `top_score`.
    signed: see `top_score`.
    scope: see `token_masked`.
    selection_source: `'old'` (default) selects by the statistics that made
      `old_logprobs`, `'current'` as published.
    minimum: smallest number selected; 1 as published.
    dead_zone: see `add_divergence_penalty`.
    allow_large: accept fractions above 0.05.

  References:
    Cui et al., `The Entropy Mechanism of Reinforcement Learning for Reasoning
    Language Models <https://arxiv.org/abs/2505.22617>`_, 2025.

  >>> import covrl
  >>> covrl.kl_cov(fraction=0.2)
  Traceback (most recent call last):
    ...
  ValueError: fraction must lie in (0, 0.05], got 0.2; pass allow_large=True \
if you mean 0.2 of all tokens
  """
  return token_masked(
    add_divergence_penalty(
      coefficient,
      divergence,
      dead_zone=dead_zone,
      predict_effect=selection_source == 'current',
    ),
    top_score(
      fraction,
      score=score,
      signed=signed,
      minimum=minimum,
      selection_source=selection_source,
      allow_large=allow_large,
    ),
    scope=scope,
  )


def clip_cov(
  fraction: Fraction = 2e-4,
  low: ArrayLike = 1.0,
  high: ArrayLike = 5.0,
  *,
  score: Score = 'batch',
  scope: Scope = 'batch',
  selection_source: SelectionSource = 'old',
  minimum: ArrayLike = 0,
  allow_large: bool = False,
) -> TokenTransformation:
  """Clip-Cov: removes the gradient of a few random tokens of high covariance.

    g, h → 0   on min(⌊fraction · N⌋, eligible) random tokens, low < cov < high

  The bounds are absolute. The tokens stay in the denominator. As published the
  base loss is PPO's with clip range [0, 2].

  Args:
    fraction: share of the optimiser batch's response tokens, in (0, 0.05].
    low: covariance must be above it.
    high: covariance must be below it.
    score: see `top_score`.
    scope: see `token_masked`.
    selection_source: see `kl_cov`.
    minimum: smallest number selected; 1 as published.
    allow_large: accept fractions above 0.05.

  References:
    Cui et al., `The Entropy Mechanism of Reinforcement Learning for Reasoning
    Language Models <https://arxiv.org/abs/2505.22617>`_, 2025.

  >>> import covrl
  >>> covrl.clip_cov(low=5.0, high=1.0)
  Traceback (most recent call last):
    ...
  ValueError: low must be below high, got low=5 and high=1
  """
  return token_masked(
    optax.set_to_zero(),
    random_in_band(
      fraction,
      low,
      high,
      score=score,
      minimum=minimum,
      selection_source=selection_source,
      allow_large=allow_large,
    ),
    scope=scope,
  )
