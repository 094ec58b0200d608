# SPDX-License-Identifier: Apache-2.0
"""Per-update metrics, computed on the device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from covrl.entropy import (
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
from covrl.models import RoutingStats, load_balancing_loss
from covrl.statistics.exact import count_true
from covrl.types import Scalar, TokenBatch, TokenMoments, TokenStats

# Top shares of tokens by covariance whose mean covariance is logged, as in the
# paper that introduced covariance methods.
TOP_FRACTIONS = (0.0002, 0.002, 0.02, 0.2, 0.5)
QUANTILES = (0.01, 0.5, 0.99)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PerTokenValues:
  """Per-token values of an update, all `[B, T]`.

  Attributes:
    stats: statistics of the policy at the update.
    moments: moments of the same policy; NaN if not computed.
    log_ratio: log π − log π_old.
    score_weight: A · ratio · 1{not clipped}.
    clipped: tokens whose gradient the loss clipped away.
    signal: the loss's cotangent of `stats`.
    edited: `signal` after the token chain.
  """

  stats: TokenStats
  moments: TokenMoments
  log_ratio: Float[Array, 'B T']
  score_weight: Float[Array, 'B T']
  clipped: Bool[Array, 'B T']
  signal: TokenStats
  edited: TokenStats


def update_metrics(
  batch: TokenBatch,
  tokens: PerTokenValues,
  decisions: Mapping[str, Any],
  token_state: PyTree,
) -> dict[str, Scalar]:
  """Metrics of an optimiser update, over the tokens of its loss.

  Values that do not exist are NaN: means and quantiles of no tokens, the threshold of
  an empty selection, the change of a signal of 0. Counts are 0.

  Entropy is in nats at the sampling temperature; `covariance` is the batch
  covariance of log-probability and advantage.

  Args:
    batch: rows of the optimiser batch.
    tokens: per-token values of the update.
    decisions: decisions of the token chain, in its order.
    token_state: state of the token chain after the update.
  """
  mask, has_tokens = batch.loss_mask, jnp.any(batch.loss_mask)
  covariance = token_covariance(tokens.stats.logprobs, batch.advantages, mask)
  metrics = {
    'entropy': exact_mean(tokens.stats.entropy, mask),
    'covariance': exact_mean(covariance, mask),
    'log_ratio': exact_mean(tokens.log_ratio, mask),
    'log_ratio_abs': exact_mean(jnp.abs(tokens.log_ratio), mask),
    'log_ratio_max': jnp.where(
      has_tokens,
      jnp.max(jnp.where(mask, jnp.abs(tokens.log_ratio), 0)),
      jnp.nan,
    ),
    'clip_fraction': _share(tokens.clipped, mask),
    'tokens': count_true(mask).astype(jnp.float32),
    'penalty_share': _penalty_share(tokens),
  }
  return (
    metrics | _selection_metrics(mask, decisions) | _coefficients(token_state)
  )


def diagnostics(
  batch: TokenBatch, tokens: PerTokenValues, is_due: bool | Bool[Array, '']
) -> dict[str, Scalar]:
  """Distribution of the covariances, and predicted changes of the entropy.

  Predictions are in nats per unit of step size: `signal` for the cotangents after
  the token chain, the others for the loss alone. Values that do not exist are NaN.

  Args:
    batch: rows of the optimiser batch.
    tokens: per-token values of the update, with moments where `is_due`.
    is_due: whether to compute them. If false the result is empty, and NaN if traced.
  """
  if isinstance(is_due, bool):
    return _diagnostics(batch, tokens) if is_due else {}
  compute = functools.partial(_diagnostics, batch, tokens)
  absent = dict.fromkeys(jax.eval_shape(compute), jnp.asarray(jnp.nan))
  return jax.lax.cond(is_due, compute, lambda: absent)


def without_diagnostics(metrics: Mapping[str, float]) -> dict[str, float]:
  """Returns the metrics of an update at which no diagnostics are due."""
  prefixes = (
    'predicted_entropy_change/',
    'covariance_top/',
    'covariance_quantile/',
  )
  return {
    name: value
    for name, value in metrics.items()
    if not name.startswith(prefixes)
  }


def _diagnostics(
  batch: TokenBatch, tokens: PerTokenValues
) -> dict[str, Scalar]:
  """Computes `diagnostics`."""
  mask, has_tokens = batch.loss_mask, jnp.any(batch.loss_mask)
  covariance = token_covariance(tokens.stats.logprobs, batch.advantages, mask)
  state_scores = state_score(tokens.stats, batch.advantages)
  definition_scores = definition_score(tokens.stats, batch.advantages, mask)
  exact_scores = exact_score(tokens.stats, tokens.moments, tokens.score_weight)
  signal_effects = entropy_change(tokens.edited, tokens.stats, tokens.moments)
  metrics = {
    'predicted_entropy_change/batch': -exact_mean(covariance, mask),
    'predicted_entropy_change/state': -exact_mean(state_scores, mask),
    'predicted_entropy_change/definition': -exact_mean(definition_scores, mask),
    'predicted_entropy_change/exact': -exact_mean(exact_scores, mask),
    'predicted_entropy_change/signal': jnp.where(
      has_tokens, exact_sum(signal_effects, mask), jnp.nan
    ),
  }
  for fraction, mean in zip(
    TOP_FRACTIONS, _top_means(covariance, batch), strict=True
  ):
    metrics[f'covariance_top/{fraction:g}'] = mean
  quantiles = jax.vmap(lambda q: exact_quantile(covariance, mask, q))(
    jnp.asarray(QUANTILES)
  )
  for quantile, value in zip(QUANTILES, quantiles, strict=True):
    metrics[f'covariance_quantile/{quantile:g}'] = value
  return metrics


def sampler_metrics(batch: TokenBatch) -> dict[str, Scalar]:
  """Differences between the sampler and the trainer before an update.

  In nats, over the tokens of the loss; NaN without any. The quantiles are those
  of π_trainer / π_sampler.

  Args:
    batch: rows with the trainer's statistics.
  """
  mask = batch.loss_mask
  log_ratio = batch.old_logprobs - batch.sampler_logprobs
  gap = jnp.where(mask, jnp.abs(log_ratio), 0)
  quantiles = jax.vmap(lambda q: exact_quantile(log_ratio, mask, q))(
    jnp.asarray(QUANTILES)
  )
  return {
    'sampler_gap': exact_mean(gap, mask),
    'sampler_gap_max': jnp.where(jnp.any(mask), jnp.max(gap), jnp.nan),
    'rollout_entropy': exact_mean(batch.old_entropy, mask),
  } | {
    f'importance_weight/{quantile:g}': jnp.exp(value)
    for quantile, value in zip(QUANTILES, quantiles, strict=True)
  }


def routing_metrics(routing: RoutingStats) -> dict[str, Scalar]:
  """Metrics of the routing of an update's tokens to experts, over all layers.

  `router/balance` is the load-balancing loss, 1 if all experts are used equally;
  it is not included in `loss`. `router/entropy` is the entropy of the router's
  probabilities, in nats; `router/busiest` the load of the busiest expert
  relative to its layer's mean; `router/idle` the share of experts without
  tokens.
  """
  counts = routing.counts.astype(jnp.float32)
  mean = jnp.maximum(jnp.mean(counts, axis=-1, keepdims=True), 1)
  tokens = jnp.maximum(routing.tokens, 1)
  return {
    'router/balance': load_balancing_loss(routing.mass, routing),
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

  # One vmapped search compiles several times faster than one per fraction.
  return jax.vmap(mean)(jnp.asarray(TOP_FRACTIONS))


def _coefficients(token_state: PyTree) -> dict[str, Scalar]:
  """All coefficients of the chain at this update, in the chain's order."""

  def has_coefficient(node: Any) -> bool:
    return hasattr(node, 'coefficient') and hasattr(node, 'schedule')

  nodes = jax.tree.leaves(token_state, is_leaf=has_coefficient)
  values = [node.coefficient for node in nodes if has_coefficient(node)]
  if len(values) == 1:
    return {'coefficient': values[0]}
  return {f'coefficient/{i}': value for i, value in enumerate(values)}


def _selection_metrics(
  mask: Bool[Array, 'B T'], decisions: Mapping[str, Any]
) -> dict[str, Scalar]:
  """Metrics of the chain's first selection, and all clamped fractions."""
  summaries = [
    decision
    for decision in decisions.values()
    if isinstance(decision, SelectionSummary)
  ]
  total = count_true(mask).astype(jnp.float32)
  if not summaries:
    return {'selected_fraction': jnp.where(total > 0, 0.0, jnp.nan)}
  summary = summaries[0]
  clamped = sum(summary.clamped for summary in summaries)
  metrics = {
    name: getattr(summary, name).astype(jnp.float32)
    for name in ('threshold', 'quota', 'eligible', 'selected', 'nonfinite')
  }
  for name in (
    'positive_likely',
    'positive_rare',
    'negative_likely',
    'negative_rare',
  ):
    metrics[f'quadrant/{name}'] = getattr(summary, name).astype(jnp.float32)
  metrics['clamped'] = jnp.asarray(clamped, jnp.float32)
  metrics['selected_fraction'] = metrics['selected'] / total
  metrics['threshold'] = jnp.where(
    metrics['selected'] > 0, metrics['threshold'], jnp.nan
  )
  return metrics


def _penalty_share(tokens: PerTokenValues) -> Scalar:
  """Norm of the chain's change of the signal, over that of the edited signal."""
  change = jax.tree.map(jnp.subtract, tokens.edited, tokens.signal)
  total = _norm(tokens.edited)
  share = _norm(change) / jnp.where(total > 0, total, 1)
  return jnp.where(total > 0, share, jnp.nan)


def _norm(tree: PyTree) -> Scalar:
  return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def _share(part: Bool[Array, 'B T'], mask: Bool[Array, 'B T']) -> Scalar:
  return count_true(part & mask) / count_true(mask)
