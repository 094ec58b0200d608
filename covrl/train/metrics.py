# SPDX-License-Identifier: Apache-2.0
"""What an update says of itself, as scalars computed on the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from covrl.entropy import (
  Plan,
  SelectionSummary,
  definition_score,
  entropy_change,
  exact_mean,
  exact_quantile,
  exact_score,
  exact_sum,
  select_top,
  state_score,
  token_covariance,
)
from covrl.entropy.exact import count
from covrl.models import Routing, load_balance
from covrl.types import Scalar, TokenBatch, TokenMoments, TokenStats

# Shares of the tokens of highest covariance whose mean is logged (the table
# by which covariance methods were introduced).
TOP_FRACTIONS = (0.0002, 0.002, 0.02, 0.2, 0.5)
QUANTILES = (0.01, 0.5, 0.99)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenReadings:
  """Per-token readings of an update, all `[B, T]`.

  Attributes:
    stats: of the policy at the update.
    moments: of the same.
    log_ratio: log π − log π_old.
    score_weight: A · ratio · 1{not clipped}.
    clipped: tokens whose gradient the loss clipped away.
    signal: the loss's cotangent.
    edited: the same after the token chain.
  """

  stats: TokenStats
  moments: TokenMoments
  log_ratio: Float[Array, 'B T']
  score_weight: Float[Array, 'B T']
  clipped: Bool[Array, 'B T']
  signal: TokenStats
  edited: TokenStats


def of_update(
  batch: TokenBatch, tokens: TokenReadings, plan: Plan, token_state: PyTree
) -> dict[str, Scalar]:
  """Metrics of an optimiser update, over its loss's tokens.

  Entropy is in nats at the sampling temperature; `covariance` is the batch
  covariance of log-probability and advantage. Predictions of the entropy change
  are per unit of step size: `signal` of what the chain made of the loss's
  cotangents, the others of the loss alone.
  """
  mask = batch.loss_mask
  covariance = token_covariance(tokens.stats.logprobs, batch.advantages, mask)
  state = state_score(tokens.stats, batch.advantages)
  definition = definition_score(tokens.stats, batch.advantages, mask)
  exact = exact_score(tokens.stats, tokens.moments, tokens.score_weight)
  signal = entropy_change(tokens.edited, tokens.stats, tokens.moments)
  readings = {
    'entropy': exact_mean(tokens.stats.entropy, mask),
    'covariance': exact_mean(covariance, mask),
    'log_ratio': exact_mean(tokens.log_ratio, mask),
    'log_ratio_abs': exact_mean(jnp.abs(tokens.log_ratio), mask),
    'log_ratio_max': jnp.max(jnp.abs(tokens.log_ratio)),
    'clip_fraction': _share(tokens.clipped, mask),
    'tokens': count(mask).astype(jnp.float32),
    'penalty_share': _penalty_share(tokens),
    'predicted_entropy_change/batch': -exact_mean(covariance, mask),
    'predicted_entropy_change/state': -exact_mean(state, mask),
    'predicted_entropy_change/definition': -exact_mean(definition, mask),
    'predicted_entropy_change/exact': -exact_mean(exact, mask),
    'predicted_entropy_change/signal': exact_sum(signal, mask),
  }
  for fraction, mean in zip(
    TOP_FRACTIONS, _top_means(covariance, batch), strict=True
  ):
    readings[f'covariance_top/{fraction:g}'] = mean
  quantiles = jax.vmap(lambda q: exact_quantile(covariance, mask, q))(
    jnp.asarray(QUANTILES)
  )
  for quantile, value in zip(QUANTILES, quantiles, strict=True):
    readings[f'covariance_quantile/{quantile:g}'] = value
  return readings | _of_selection(mask, plan) | _coefficients(token_state)


def of_routing(routing: Routing) -> dict[str, Scalar]:
  """Metrics of how an update's tokens were sent to experts, over all layers.

  `router/balance` is the load-balancing loss, 1 if all are used alike and not
  part of `loss`, whatever its coefficient; `router/entropy` is of the router's probabilities, in nats; the busiest
  expert's load is relative to the mean of its layer's; experts that no token
  chose are idle.
  """
  counts = routing.counts.astype(jnp.float32)
  mean = jnp.maximum(jnp.mean(counts, axis=-1, keepdims=True), 1)
  tokens = jnp.maximum(routing.tokens, 1)
  return {
    'router/balance': load_balance(routing.mass, routing),
    'router/entropy': jnp.mean(routing.entropy / tokens),
    'router/busiest': jnp.max(counts / mean),
    'router/idle': jnp.mean(routing.counts == 0),
  }


def _top_means(
  covariance: Float[Array, 'B T'], batch: TokenBatch
) -> Float[Array, ' n']:
  """Means over the tokens of highest covariance, for each top fraction."""

  def mean(fraction: Scalar) -> Scalar:
    top = select_top(
      covariance,
      batch.loss_mask,
      fraction=fraction,
      sequence_ids=batch.sequence_ids,
      positions=batch.positions,
    )
    return exact_mean(covariance, top)

  # One search for all of them compiles several times faster than one for each.
  return jax.vmap(mean)(jnp.asarray(TOP_FRACTIONS))


def _coefficients(token_state: PyTree) -> dict[str, Scalar]:
  """Every coefficient of the chain at this update, in the chain's order."""

  def has_one(node: Any) -> bool:
    return hasattr(node, 'coefficient') and hasattr(node, 'schedule')

  nodes = jax.tree.leaves(token_state, is_leaf=has_one)
  values = [node.coefficient for node in nodes if has_one(node)]
  if len(values) == 1:
    return {'coefficient': values[0]}
  return {f'coefficient/{i}': value for i, value in enumerate(values)}


def _of_selection(mask: Bool[Array, 'B T'], plan: Plan) -> dict[str, Scalar]:
  """What the chain selected; with several selectors the first is told of."""
  summaries = [d for d in plan.decisions if isinstance(d, SelectionSummary)]
  if not summaries:
    return {'selected_fraction': jnp.zeros(())}
  summary = summaries[0]
  readings = {
    name: getattr(summary, name).astype(jnp.float32)
    for name in ('threshold', 'quota', 'eligible', 'selected', 'nonfinite')
  }
  for name in (
    'positive_likely',
    'positive_rare',
    'negative_likely',
    'negative_rare',
  ):
    readings[f'quadrant/{name}'] = getattr(summary, name).astype(jnp.float32)
  total = jnp.maximum(count(mask), 1).astype(jnp.float32)
  readings['selected_fraction'] = readings['selected'] / total
  return readings


def _penalty_share(tokens: TokenReadings) -> Scalar:
  """Norm of what the chain changed, over the norm of the edited signal."""
  change = jax.tree.map(jnp.subtract, tokens.edited, tokens.signal)
  total = _norm(tokens.edited)
  return jnp.where(total > 0, _norm(change) / jnp.where(total > 0, total, 1), 0)


def _norm(tree: PyTree) -> Scalar:
  return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def _share(part: Bool[Array, 'B T'], mask: Bool[Array, 'B T']) -> Scalar:
  return count(part & mask) / jnp.maximum(count(mask), 1)
