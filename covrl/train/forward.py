# SPDX-License-Identifier: Apache-2.0
"""What a forward of the policy reads of rows, and the programs that only read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from covrl.entropy.exact import count, exact_sum
from covrl.models import Policy, Routing
from covrl.objectives import token_weights
from covrl.statistics import token_stats
from covrl.train.microbatch import in_parts
from covrl.types import (
  Scalar,
  TokenBatch,
  TokenContext,
  TokenMoments,
  TokenStats,
)

Metrics = dict[str, Scalar]
PolicyStats = tuple[TokenStats, TokenMoments]


class Outputs(NamedTuple):
  """What a forward gives.

  Attributes:
    stats: of the policy at each token.
    moments: of the same.
    routing: of tokens to experts, if there are any.
  """

  stats: TokenStats
  moments: TokenMoments
  routing: Routing | None


def weigh(batch: TokenBatch, mode: str) -> TokenBatch:
  """The batch with each token's weight in the objective; see `token_weights`."""
  weights = token_weights(batch.loss_mask, mode, segment_ids=batch.segment_ids)
  return dataclasses.replace(batch, weights=batch.weights * weights)


def policy_stats(
  policy: Policy, params: PyTree, rows: TokenBatch, temperature: float
) -> PolicyStats:
  """Tokens to per-token statistics and moments of the policy."""
  return outputs(policy, params, rows, temperature)[:2]


def outputs(
  policy: Policy, params: PyTree, rows: TokenBatch, temperature: float
) -> Outputs:
  """The forward: tokens to all that an update reads of the policy."""
  hidden, routing = policy.hidden_and_routing(
    params,
    rows.tokens,
    positions=rows.positions,
    segment_ids=rows.segment_ids,
  )
  stats, moments = token_stats(
    hidden,
    policy.unembedding(params),
    rows.targets,
    temperature=temperature,
    soft_cap=policy.config.logit_soft_cap,
    moments=True,
  )
  return Outputs(stats, moments, routing)


def row_context(
  rows: TokenBatch,
  stats: TokenStats,
  moments: TokenMoments,
  first: Bool[Array, ''],
) -> TokenContext:
  """Context entries of some rows, `stats` standing in for the old if first."""
  own = jax.lax.stop_gradient(stats.logprobs)
  context = TokenContext(
    advantages=rows.advantages,
    old_logprobs=jnp.where(first, own, rows.old_logprobs),
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
  """The mean by the objective's weights, the same bits in every layout."""
  weighted = jnp.where(batch.loss_mask, batch.weights * entropy, 0)
  weights = exact_sum(batch.weights, batch.loss_mask)
  total = jnp.maximum(weights, jnp.finfo(jnp.float32).tiny)
  return exact_sum(weighted, batch.loss_mask) / total


def make_score_step(
  policy: Policy, temperature: float, parts: int
) -> Callable[[PyTree, TokenBatch], PolicyStats]:
  """Statistics of an iteration's tokens before its first update.

  Args:
    policy: whose.
    temperature: at which they are taken.
    parts: how many times the rows of an optimiser micro-batch fit.
  """

  def score(params: PyTree, batch: TokenBatch) -> PolicyStats:
    def part(rows: TokenBatch) -> tuple[tuple[()], PolicyStats]:
      return (), policy_stats(policy, params, rows, temperature)

    return in_parts(part, batch, parts)[1]

  return score


def make_entropy_change(
  policy: Policy, temperature: float, micro_batches: int
) -> Callable[[PyTree, PyTree, PyTree, TokenBatch], Metrics]:
  """What an update did to the entropy of its own tokens.

  Args:
    policy: whose.
    temperature: at which its entropy is taken.
    micro_batches: parts of an update's rows.

  Returns:
    `(trainable before, trainable after, frozen, the update's rows) ->
    readings`, in nats: the realised change of the mean entropy, and its
    first-order prediction from the step that the optimiser made, ⟨∇H̄, Δθ⟩.
  """

  def change(
    before: PyTree, after: PyTree, frozen: PyTree, batch: TokenBatch
  ) -> Metrics:
    def entropies(trainable: PyTree, rows: TokenBatch) -> Array:
      params = policy.join(trainable, frozen)
      stats, _ = policy_stats(policy, params, rows, temperature)
      return jnp.where(rows.loss_mask, stats.entropy, 0)

    def part(rows: TokenBatch) -> tuple[tuple[Scalar, PyTree], tuple[()]]:
      now, pull_back = jax.vjp(lambda trained: entropies(trained, rows), before)
      (gradient,) = pull_back(jnp.ones_like(now))
      return (jnp.sum(entropies(after, rows) - now), gradient), ()

    (realised, gradient), _ = in_parts(part, batch, micro_batches)
    predicted = optax.tree.vdot(gradient, optax.tree.sub(after, before))
    tokens = jnp.maximum(count(batch.loss_mask), 1)
    return {
      'realised_entropy_change': realised / tokens,
      'predicted_entropy_change/jvp': jnp.asarray(predicted) / tokens,
    }

  return change
