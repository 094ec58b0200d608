# SPDX-License-Identifier: Apache-2.0
"""The policy's forward pass on rows, and programs that do not update it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from covrl.models import Policy, RoutingStats
from covrl.objectives import WeightMode, token_weights
from covrl.statistics import NO_TRUNCATION, Truncation, token_stats
from covrl.statistics.exact import count_true, exact_sum
from covrl.train.microbatch import over_micro_batches
from covrl.types import (
  Scalar,
  TokenBatch,
  TokenContext,
  TokenMoments,
  TokenStats,
)

Metrics = dict[str, Scalar]
PolicyStats = tuple[TokenStats, TokenMoments]


class ForwardOutputs(NamedTuple):
  """Outputs of a forward pass.

  Attributes:
    stats: statistics of the policy at each token.
    moments: moments of the policy at each token; NaN if not computed.
    routing: routing of tokens to experts, `None` without experts.
  """

  stats: TokenStats
  moments: TokenMoments
  routing: RoutingStats | None


def apply_token_weights(
  batch: TokenBatch, mode: WeightMode, max_length: int
) -> TokenBatch:
  """Multiplies the batch's weights by those of an aggregation mode.

  Args:
    batch: rows of an optimiser batch.
    mode: see `token_weights`.
    max_length: longest response in tokens, by which 'constant-length' divides.
  """
  weights = token_weights(
    batch.loss_mask, mode, segment_ids=batch.segment_ids, length=max_length
  )
  return dataclasses.replace(batch, weights=batch.weights * weights)


def with_old_stats(batch: TokenBatch, old: PolicyStats) -> TokenBatch:
  """Replaces the statistics from before the rollout's first update.

  Args:
    batch: rows of tokens.
    old: statistics and moments of the policy at the same tokens.
  """
  stats, moments = old
  return dataclasses.replace(
    batch,
    old_logprobs=stats.logprobs,
    old_entropy=stats.entropy,
    old_moments=moments,
  )


def old_stats(batch: TokenBatch, truncation: Truncation) -> PolicyStats:
  """Statistics of the policy before the rollout's first update.

  The entropy of a truncated policy, which no decision may read, is NaN.
  """
  top_entropy = None
  if truncation.removed is not None:
    top_entropy = jnp.full_like(batch.old_entropy, jnp.nan)
  stats = TokenStats(
    logprobs=batch.old_logprobs,
    entropy=batch.old_entropy,
    top_entropy=top_entropy,
  )
  return stats, batch.old_moments


def policy_stats(
  policy: Policy,
  params: PyTree,
  rows: TokenBatch,
  temperature: float,
  first_column: int,
  truncation: Truncation = NO_TRUNCATION,
  *,
  moments: bool = True,
) -> PolicyStats:
  """Per-token statistics and moments of the policy; see `forward`."""
  outputs = forward(
    policy,
    params,
    rows,
    temperature,
    first_column,
    truncation,
    moments=moments,
  )
  return outputs.stats, outputs.moments


def forward(
  policy: Policy,
  params: PyTree,
  rows: TokenBatch,
  temperature: float,
  first_column: int,
  truncation: Truncation = NO_TRUNCATION,
  *,
  moments: bool | Bool[Array, ''] = True,
) -> ForwardOutputs:
  """Runs the policy on rows of tokens, and computes their statistics.

  Statistics of tokens off the `loss_mask` are 0, and are not computed (see
  `token_stats`).

  Tokens are routed to the rows' `experts`, if there are any.

  Args:
    policy: the policy.
    params: parameters of the policy, adapters included.
    rows: rows of tokens.
    temperature: sampling temperature of the statistics.
    first_column: statistics of the columns before it are 0 and not computed:
      they predict tokens of prompts. Ignored if tokens are split over a mesh.
      Above 0, every row must be one sequence.
    truncation: truncations whose statistics are computed as well.
    moments: whether to compute moments; otherwise they are NaN. Min-p always
      needs them. If traced, they cost another pass over the logits where true,
      and nothing is differentiated through them.
  """
  hidden, routing = policy.hidden_and_routing(
    params,
    rows.tokens,
    positions=rows.positions,
    segment_ids=rows.segment_ids,
    one_sequence=first_column > 0,
    recorded_experts=rows.experts,
  )
  mesh = jax.sharding.get_abstract_mesh()
  if dict(mesh.shape).get('context', 1) > 1:
    first_column = 0
  inputs = hidden[:, first_column:], policy.unembedding(params)
  compute = functools.partial(
    token_stats,
    targets=rows.targets[:, first_column:],
    temperature=temperature,
    soft_cap=policy.config.logit_soft_cap,
    mask=rows.loss_mask[:, first_column:],
    truncation=truncation,
  )
  if truncation.min_p is not None or moments is True:
    stats, token_moments = compute(*inputs, moments=True)
  else:
    stats = compute(*inputs)
    token_moments = _unknown_moments(stats)
    if moments is not False:
      constants = jax.lax.stop_gradient(inputs)
      token_moments = jax.lax.cond(
        moments,
        lambda: compute(*constants, moments=True)[1],
        lambda: token_moments,
      )
  padding = ((0, 0), (first_column, 0))
  stats, token_moments = jax.tree.map(
    lambda x: jnp.pad(x, padding), (stats, token_moments)
  )
  return ForwardOutputs(stats, token_moments, routing)


def _unknown_moments(stats: TokenStats) -> TokenMoments:
  """Moments that were not computed: all NaN."""
  unknown = jnp.full_like(jax.lax.stop_gradient(stats.logprobs), jnp.nan)
  return TokenMoments(
    square=unknown, square_log=unknown, square_log_square=unknown
  )


def row_context(
  rows: TokenBatch,
  stats: TokenStats,
  moments: TokenMoments,
  first: Bool[Array, ''],
) -> TokenContext:
  """Entries of the token context of some rows.

  Args:
    rows: rows of an optimiser batch.
    stats: current statistics of the policy.
    moments: current moments of the policy.
    first: whether `stats` replace `old_logprobs`, at a rollout's first update.
  """
  current_logprobs = jax.lax.stop_gradient(stats.logprobs)
  context = TokenContext(
    advantages=rows.advantages,
    # Off the mask the current log-probabilities are 0, so that log-ratios are 0.
    old_logprobs=jnp.where(
      first | ~rows.loss_mask, current_logprobs, rows.old_logprobs
    ),
    old_entropy=rows.old_entropy,
    old_moments=rows.old_moments,
    moments=moments,
    mask=rows.loss_mask,
    weights=rows.weights,
    segment_ids=rows.segment_ids,
    sequence_ids=rows.sequence_ids,
    positions=rows.positions,
    sampler_logprobs=rows.sampler_logprobs,
  )
  if rows.ref_logprobs is not None:
    context['ref_logprobs'] = rows.ref_logprobs
  return context


def mean_entropy(
  batch: TokenBatch, entropy: Float[Array, 'B T']
) -> Float[Array, '']:
  """Mean entropy under the objective's weights, the same bits in every layout.

  NaN without a token of positive weight.
  """
  weighted = jnp.where(batch.loss_mask, batch.weights * entropy, 0)
  weights = exact_sum(batch.weights, batch.loss_mask)
  return exact_sum(weighted, batch.loss_mask) / weights


def make_score_step(
  policy: Policy,
  temperature: float,
  micro_batches: int,
  first_column: int = 0,
  min_p: float | None = None,
  *,
  moments: bool = True,
) -> Callable[[PyTree, TokenBatch], PolicyStats]:
  """Builds the program that scores an iteration's tokens before its updates.

  Args:
    policy: the policy to score with.
    temperature: sampling temperature of the statistics.
    micro_batches: micro-batches of all rows of the iteration.
    first_column: see `forward`.
    min_p: filter whose log-probabilities the moments have, if any.
    moments: whether to compute moments; otherwise they are NaN.

  Returns:
    `(params, batch) -> (stats, moments)`.
  """
  truncation = Truncation(min_p=min_p)

  def score(params: PyTree, batch: TokenBatch) -> PolicyStats:
    def run(rows: TokenBatch) -> tuple[tuple[()], PolicyStats]:
      return (), policy_stats(
        policy,
        params,
        rows,
        temperature,
        first_column,
        truncation,
        moments=moments,
      )

    return over_micro_batches(run, batch, micro_batches)[1]

  return score


def make_entropy_change(
  policy: Policy, temperature: float, micro_batches: int, first_column: int = 0
) -> Callable[[PyTree, PyTree, PyTree, TokenBatch], Metrics]:
  """Builds the program that measures an update's effect on its tokens' entropy.

  Args:
    policy: the policy that was updated.
    temperature: sampling temperature of the entropy.
    micro_batches: micro-batches of the update's rows.
    first_column: see `forward`.

  Returns:
    `(trainable before, trainable after, frozen, rows) -> metrics`, in nats: the
    realised change of the mean entropy, and its first-order prediction from the
    optimiser's step, ⟨∇H̄, Δθ⟩.
  """

  def change(
    before: PyTree, after: PyTree, frozen: PyTree, batch: TokenBatch
  ) -> Metrics:
    def entropies(trainable: PyTree, rows: TokenBatch) -> Array:
      params = policy.join(trainable, frozen)
      stats, _ = policy_stats(
        policy, params, rows, temperature, first_column, moments=False
      )
      return jnp.where(rows.loss_mask, stats.entropy, 0)

    def run(rows: TokenBatch) -> tuple[tuple[Scalar, PyTree], tuple[()]]:
      entropy_before, pull_back = jax.vjp(
        lambda trained: entropies(trained, rows), before
      )
      (gradient,) = pull_back(jnp.ones_like(entropy_before))
      return (jnp.sum(entropies(after, rows) - entropy_before), gradient), ()

    (realised, gradient), _ = over_micro_batches(run, batch, micro_batches)
    predicted = optax.tree.vdot(gradient, optax.tree.sub(after, before))
    tokens = count_true(batch.loss_mask)
    return {
      'realised_entropy_change': realised / tokens,
      'predicted_entropy_change/jvp': jnp.asarray(predicted) / tokens,
    }

  return change
