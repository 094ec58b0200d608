# SPDX-License-Identifier: Apache-2.0
"""Methods that read the policy truncated to its likely tokens.

A method records the truncation that it needs in the `DecisionCache`, and the
trainer computes its statistics; see `covrl.statistics.Truncation` for custom
training loops.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from covrl.array_checks import check_number
from covrl.entropy.base import (
  Coefficient,
  Fraction,
  check_coefficient,
  check_fraction,
  check_minimum,
  require_entry,
  with_coefficient,
)
from covrl.entropy.decisions import DecisionCache
from covrl.entropy.methods.covariance import TokenTransformation
from covrl.entropy.selectors import rarest_negative
from covrl.entropy.transforms import token_masked
from covrl.objectives import divergence, divergence_gradient
from covrl.statistics import Truncation
from covrl.types import (
  Scope,
  SelectionSource,
  TokenContext,
  TokenMoments,
  TokenStats,
)

# The published penalty is cut off at this value, where its gradient becomes 0.
LARGEST_PENALTY = 10.0


def lp_reg(
  fraction: Fraction = 0.01,
  coefficient: Coefficient = 1.0,
  *,
  min_p: float = 0.02,
  scope: Scope = 'batch',
  selection_source: SelectionSource = 'old',
  proxy: SelectionSource = 'old',
  minimum: ArrayLike = 0,
  allow_large: bool = False,
) -> TokenTransformation:
  """Lp-Reg: penalises the loss of probability of plausible rare tokens.

    g += coefficient · weights · (1 − exp(q − log π))   where log π < q

  on the rarest ⌊fraction · N⌋ of the N tokens with a negative advantage, with q
  the log-probability of the token in a proxy, the policy filtered by min-p and
  renormalised: π̃ ∝ π_old on tokens with π_old ≥ min_p · max π_old. Tokens that the
  filter removes count as noise and get no penalty, nor do those for which
  exp(q − log π) − (q − log π) − 1 exceeds 10.

  As published the loss is PPO's with a clip range of [0, 10] and token means,
  min_p is 0.02, and the fraction 0.01 (14B) or 0.005 (32B).

  Args:
    fraction: share of the optimiser batch's tokens of negative advantage, in
      (0, 0.05].
    coefficient: weight of the penalty; a number, schedule or controller.
    min_p: least probability of a token of the proxy, relative to the likeliest.
    scope: see `token_masked`; published per micro-batch.
    selection_source: whether `'old'` or `'current'` probabilities, as
      published, rank the tokens.
    proxy: the policy that is filtered, `'old'` as published, or `'current'`.
    minimum: smallest number selected.
    allow_large: accept fractions above 0.05.

  Raises:
    ValueError: if a number is outside its range or an option is unknown.

  References:
    Huang et al., `Low-probability Tokens Sustain Exploration in Reinforcement
    Learning with Verifiable Reward <https://arxiv.org/abs/2510.03222>`_, 2025;
    numbers of the scripts in CarlanLark/Lp-Reg-dev.

  >>> from covrl import TokenMoments
  >>> tx = lp_reg(0.5, allow_large=True)
  >>> zero = jnp.zeros((1, 2))
  >>> stats = TokenStats(
  ...     logprobs=jnp.log(jnp.array([[0.1, 0.4]])), entropy=zero)
  >>> moments = TokenMoments(
  ...     square=zero, square_log=zero, square_log_square=zero,
  ...     filtered_logprobs=jnp.log(jnp.array([[0.2, 0.5]])))
  >>> signal, _ = tx.update(
  ...     TokenStats(logprobs=zero, entropy=zero), tx.init(stats.template()),
  ...     stats, advantages=-jnp.ones((1, 2)), weights=jnp.ones((1, 2)),
  ...     mask=jnp.ones((1, 2), bool), old_logprobs=stats.logprobs,
  ...     old_moments=moments)
  >>> signal.logprobs.round(3)
  Array([[-1.,  0.]], dtype=float32)
  """
  check_fraction(fraction, allow_large=allow_large)
  check_minimum(minimum)
  check_coefficient(coefficient)
  if proxy not in ('old', 'current'):
    raise ValueError(f"proxy must be 'old' or 'current', got {proxy!r}")
  check_number('min_p', min_p, 0, 1, is_open=True)
  truncation = Truncation(min_p=min_p)
  entry = 'old_moments' if proxy == 'old' else 'moments'

  def edit(
    updates: TokenStats,
    stats: TokenStats,
    value: ArrayLike,
    context: TokenContext,
  ) -> TokenStats:
    DecisionCache.of(context).truncations.add(truncation)
    weights = require_entry(context, 'weights', 'lp_reg')
    moments: TokenMoments = require_entry(context, entry, 'lp_reg')
    proxy_logprobs = moments.filtered_logprobs
    if proxy_logprobs is None:
      raise TypeError(
        f'filtered_logprobs of {entry} must be given to lp_reg, got None; use '
        f'token_stats(…, moments=True, truncation=Truncation(min_p={min_p:g}))'
      )
    log_ratio = jax.lax.stop_gradient(stats.logprobs) - proxy_logprobs
    log_ratio = jnp.where(weights != 0, log_ratio, 0)
    # 0 for tokens above the proxy and (+∞) those that the filter removes; NaN stays.
    log_ratio = jnp.where(log_ratio >= 0, 0, log_ratio)
    gradient = divergence_gradient(log_ratio, 'k3')
    gradient = jnp.where(
      divergence(log_ratio, 'k3') > LARGEST_PENALTY, 0, gradient
    )
    change = jnp.asarray(value) * weights * gradient
    signal = updates.logprobs
    return dataclasses.replace(
      updates, logprobs=(signal + change).astype(signal.dtype)
    )

  return token_masked(
    with_coefficient('lp_reg', coefficient, edit),
    rarest_negative(
      fraction,
      minimum=minimum,
      selection_source=selection_source,
      allow_large=allow_large,
    ),
    scope=scope,
  )


def aent(
  coefficient: Coefficient = 2e-4, *, removed: float = 0.3
) -> TokenTransformation:
  """AEnt: an entropy bonus on the likely part of the vocabulary.

    loss − coefficient · Σ weights · H̃,   H̃ = −Σ π̃ log π̃,
    π̃ ∝ π on all but the ⌊removed · V⌋ least likely tokens

  Mass moves between likely tokens, and none to the rest of the vocabulary. As
  published the coefficient is controlled by H̃, with the rule of
  `covrl.controllers.adaptive_band`. That controller reads the entropy of the whole
  policy, which exceeds H̃ by about the entropy of the tokens left out.

  Args:
    coefficient: in advantage units per nat; a number, schedule or controller.
      The authors' recipe has 2e-4, AReaL's default is 1e-3.
    removed: share of the vocabulary that is left out; 0.3 in the authors'
      recipe, 0.2 by default in AReaL.

  Raises:
    ValueError: if a number is outside its range.

  References:
    Shen, `On Entropy Control in LLM-RL Algorithms
    <https://arxiv.org/abs/2509.03493>`_, 2025; numbers of antgroup/AEnt.

  >>> tx = aent(0.5)
  >>> stats = TokenStats(
  ...     logprobs=jnp.zeros((1, 2)), entropy=jnp.ones((1, 2)),
  ...     top_entropy=jnp.ones((1, 2)))
  >>> signal, _ = tx.update(
  ...     stats, tx.init(stats.template()), stats, weights=jnp.ones((1, 2)))
  >>> signal.top_entropy
  Array([[0.5, 0.5]], dtype=float32)
  """
  check_coefficient(coefficient)
  check_number('removed', removed, 0, 1, is_open=True)
  truncation = Truncation(removed=removed).check()

  def edit(
    updates: TokenStats,
    stats: TokenStats,
    value: ArrayLike,
    context: TokenContext,
  ) -> TokenStats:
    DecisionCache.of(context).truncations.add(truncation)
    weights = require_entry(context, 'weights', 'aent')
    signal = updates.top_entropy
    if stats.top_entropy is None or signal is None:
      raise TypeError(
        'top_entropy of the statistics must be given to aent, got None; use '
        f'token_stats(…, truncation=Truncation(removed={removed:g}))'
      )
    change = -jnp.asarray(value) * weights
    return dataclasses.replace(
      updates, top_entropy=(signal + change).astype(signal.dtype)
    )

  # The moments predict changes of the entropy of the whole policy only.
  return with_coefficient('aent', coefficient, edit, is_predictable=False)
