# SPDX-License-Identifier: Apache-2.0
"""Methods that drop tokens and sequences too far from another policy.

The other policy is the sampler's, or the policy before the rollout's updates.
Dropped tokens have no gradient and stay in the denominator: the formulas edit
the cotangents (g, h) of log π(a) and H. The methods belong in front of penalties
and bonuses, which they would drop too.
"""

from typing import Literal, Unpack, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from covrl.array_checks import check_number
from covrl.entropy.base import require_entry
from covrl.entropy.methods.covariance import TokenTransformation
from covrl.entropy.methods.off_policy import Level, truncated_importance_weights
from covrl.entropy.transforms import DEAD_ZONE, scale_by_token
from covrl.objectives import divergence
from covrl.objectives.segments import sequence_sums
from covrl.types import TokenContext, TokenStats

Estimator = Literal['k1', 'k2', 'k3']
Reduction = Literal['mean', 'max', 'sum']

ESTIMATORS = get_args(Estimator)
REDUCTIONS = get_args(Reduction)


def icepop(
  floor: float = 0.5, cap: float = 5.0, *, level: Level = 'token'
) -> TokenTransformation:
  """IcePop: importance weights of the sampler, tokens outside a range dropped.

    g, h × ρ where floor ≤ ρ ≤ cap, else 0,   ρ = π_old(a) / π_sampler(a)

  Args:
    floor: smallest weight.
    cap: largest weight.
    level: `'token'`, or `'sequence'`: ρ is the product over the response.

  References:
    Ling team, `Every Step Evolves <https://arxiv.org/abs/2510.18855>`_, 2025.

  >>> tx = icepop()
  >>> ones = TokenStats(logprobs=jnp.ones((1, 2)), entropy=jnp.zeros((1, 2)))
  >>> signal, _ = tx.update(
  ...     ones, tx.init(ones.template()), ones, mask=jnp.ones((1, 2), bool),
  ...     old_logprobs=jnp.log(jnp.array([[0.5, 0.1]])),
  ...     sampler_logprobs=jnp.log(jnp.array([[0.25, 0.4]])))
  >>> signal.logprobs
  Array([[2., 0.]], dtype=float32)
  """
  return truncated_importance_weights(
    cap, floor, level=level, out_of_range='mask'
  )


def decoupled_ppo(cap: float = 5.0) -> TokenTransformation:
  """Decoupled PPO: clips around a policy newer than the one that sampled.

    loss = π_prox/π_sampler · max(−A · ratio, −A · clip(ratio)),
    ratio = π/π_prox

  The proximal policy π_prox is the trainer's at the start of the rollout's
  updates, whose log-probabilities are `old_logprobs`: the clip of the loss is
  around it, and this transform multiplies by the weight, for rollouts that an
  older policy has sampled. Tokens with a weight above `cap` are dropped, as in
  the authors' code.

  Args:
    cap: largest weight.

  References:
    Hilton et al., `Batch Size-Invariance for Policy Optimization
    <https://arxiv.org/abs/2110.00641>`_, 2021. Fu et al., `AReaL
    <https://arxiv.org/abs/2505.24298>`_, 2025.

  >>> tx = decoupled_ppo()
  """
  return truncated_importance_weights(cap, out_of_range='mask')


def reject_sequences(
  limit: float = 0.01,
  *,
  kind: Estimator = 'k3',
  reduction: Reduction = 'mean',
) -> TokenTransformation:
  """Drops sequences whose divergence between sampler and trainer is too large.

    g, h → 0 where |reduction over the sequence of D| > limit,

  with x = log π_sampler − log π_old and D one of

    'k1'  x, whose mean is the logarithm of the geometric mean of ratios
    'k2'  x²/2
    'k3'  exp(−x) + x − 1

  `limit=0.01` with the mean of k3 is a preset of verl; `reject_sequences(1e-3,
  kind='k1')` keeps geometric means of ratios within [0.999, 1.001].

  Args:
    limit: largest divergence of a sequence that is kept, in nats.
    kind: the estimator D.
    reduction: `'mean'` does not depend on the length, `'sum'` grows with it,
      `'max'` is that of |D|.

  Raises:
    ValueError: if the limit is negative or an option is unknown.

  References:
    verl, rollout correction (`seq_mean_k3` and its other options). Liu et al.,
    `When Speed Kills Stability <https://richardli.xyz/rl-collapse>`_, 2025.

  >>> tx = reject_sequences(0.1)
  >>> ones = TokenStats(logprobs=jnp.ones((2, 2)), entropy=jnp.zeros((2, 2)))
  >>> signal, _ = tx.update(
  ...     ones, tx.init(ones.template()), ones, mask=jnp.ones((2, 2), bool),
  ...     old_logprobs=jnp.array([[-1.0, -1.0], [-1.0, -3.0]]),
  ...     sampler_logprobs=jnp.array([[-1.1, -1.0], [-1.0, -1.0]]))
  >>> signal.logprobs
  Array([[1., 1.],
         [0., 0.]], dtype=float32)
  """
  check_number('limit', limit, 0)
  if kind not in ESTIMATORS:
    raise ValueError(f'kind must be one of {ESTIMATORS}, got {kind!r}')
  if reduction not in REDUCTIONS:
    raise ValueError(
      f'reduction must be one of {REDUCTIONS}, got {reduction!r}'
    )
  name = 'reject_sequences'

  def factor(
    stats: TokenStats, **context: Unpack[TokenContext]
  ) -> Float[Array, 'B T']:
    del stats
    mask = require_entry(context, 'mask', name)
    old = require_entry(context, 'old_logprobs', name)
    sampler = require_entry(context, 'sampler_logprobs', name)
    divergences = divergence(jnp.where(mask, sampler - old, 0), kind)
    ids = context.get('segment_ids')

    def sum_over_sequence(values: Array) -> Array:
      return sequence_sums(jnp.where(mask, values, 0), ids)

    if reduction == 'max':
      kept = (
        sum_over_sequence((jnp.abs(divergences) > limit).astype(jnp.int32)) == 0
      )
    else:
      tokens = sum_over_sequence(mask.astype(jnp.int32))
      scale = jnp.maximum(tokens, 1) if reduction == 'mean' else 1
      kept = jnp.abs(sum_over_sequence(divergences)) <= limit * scale
    unknown = sum_over_sequence(jnp.isnan(divergences).astype(jnp.int32)) > 0
    return _kept_or_nan(kept | ~mask, unknown & mask)

  return scale_by_token(name, factor)


def entropy_ratio_clip(
  low: float = 0.05, high: float = 0.05
) -> TokenTransformation:
  """ERC: drops tokens at which an update has changed the entropy too much.

    g, h → 0 where H/H_old < 1 − low or H/H_old > 1 + high

  H is the policy's entropy at the token and H_old that before the rollout's
  updates. Changes of at most 1e-6 nats are rounding and never dropped. It bounds
  the policy's drift at tokens that it did not sample, which a clip of ratios
  leaves free.

  Args:
    low: how far the ratio of entropies may fall below 1.
    high: how far it may rise above 1.

  Raises:
    ValueError: if a bound is outside its range.

  References:
    Su et al., `Entropy Ratio Clipping as a Soft Global Constraint for Stable
    Reinforcement Learning <https://arxiv.org/abs/2512.05591>`_, 2025.

  >>> tx = entropy_ratio_clip()
  >>> stats = TokenStats(
  ...     logprobs=jnp.ones((1, 3)), entropy=jnp.array([[1.0, 1.1, 0.9]]))
  >>> signal, _ = tx.update(
  ...     stats, tx.init(stats.template()), stats,
  ...     mask=jnp.ones((1, 3), bool), old_entropy=jnp.ones((1, 3)))
  >>> signal.logprobs
  Array([[1., 0., 0.]], dtype=float32)
  """
  check_number('low', low, 0, 1)
  check_number('high', high, 0)
  name = 'entropy_ratio_clip'

  def factor(
    stats: TokenStats, **context: Unpack[TokenContext]
  ) -> Float[Array, 'B T']:
    mask = require_entry(context, 'mask', name)
    old = require_entry(context, 'old_entropy', name)
    change = stats.entropy - old
    kept = (change >= -low * old - DEAD_ZONE) & (
      change <= high * old + DEAD_ZONE
    )
    return _kept_or_nan(kept | ~mask, ~jnp.isfinite(change) & mask)

  return scale_by_token(name, factor)


def _kept_or_nan(
  kept: Bool[Array, 'B T'], unknown: Bool[Array, 'B T']
) -> Float[Array, 'B T']:
  """1 for tokens that are kept, 0 for others, NaN where that is unknown."""
  return jnp.where(unknown, jnp.nan, kept.astype(jnp.float32))
