# SPDX-License-Identifier: Apache-2.0
"""Metrics of an iteration's rollouts, computed on the host."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from covrl.rewards import TOTAL
from covrl.rollout.score import ScoredRollouts
from covrl.train.forward import PolicyStats
from covrl.train.metrics import QUANTILES
from covrl.train.rollout_batch import shift_left
from covrl.types import Rollouts


def outcome_metrics(
  results: Sequence[ScoredRollouts], iteration: int, *, max_failures: float
) -> dict[str, float]:
  """Counts the scoring outcomes of an iteration.

  Args:
    results: scored rollouts of the iteration's draws.
    iteration: index of the iteration, for the error.
    max_failures: fraction of responses that may remain without a score.

  Raises:
    RuntimeError: more responses are without a score; the message gives the most
      frequent reason.
  """
  sizes = [len(result.rollouts.loss_mask) for result in results]
  failed = sum(result.masked for result in results) / sum(sizes)
  if failed > max_failures:
    reasons = Counter(r for result in results for r in result.failures)
    raise RuntimeError(
      f'responses without a score must be at most {max_failures:.0%} of an iteration '
      f'(rewards.max_failures), got {failed:.0%} in iteration {iteration}; the most '
      f'frequent reason: {reasons.most_common(1)[0][0]}'
    )
  counts: Counter[str] = Counter()
  for result in results:
    counts.update(result.counts)
  return {'reward_failures': failed} | {
    f'outcomes/{name}': float(count) for name, count in counts.items()
  }


def rollout_metrics(
  rollouts: Rollouts,
  policy_stats: PolicyStats | None,
  *,
  sources: Sequence[str],
  step: int,
) -> dict[str, float]:
  """Returns metrics of all sampled responses, trained on or not.

  Values that do not exist are NaN: means over responses or tokens of which there are
  none.

  Args:
    rollouts: rollouts with rewards; responses without a score are left out of
      mean rewards and of the mean length.
    policy_stats: the trainer's statistics of the same tokens; without them the update
      measures the sampler, see `covrl.train.metrics.sampler_metrics`.
    sources: names of the data sources, in the order of `source_ids`.
    step: optimiser step at the iteration's first update. `staleness` is the
      number of updates since the parameters that sampled a token.
  """
  mask = shift_left(rollouts.loss_mask)
  staleness = step - shift_left(rollouts.policy_step)[mask]
  truncated = float(np.mean(rollouts.truncated))
  # 0 for responses without a score, which are masked.
  lengths = mask.sum(axis=1)
  return {
    **_reward_metrics(rollouts, sources),
    **({} if policy_stats is None else sampler_metrics(rollouts, policy_stats)),
    'response_length': _mean(lengths[lengths > 0]),
    'truncated_fraction': truncated,
    'end_fraction': 1.0 - truncated,
    'staleness': _mean(staleness),
    'staleness_max': float(staleness.max()) if staleness.size else math.nan,
  }


def sampler_metrics(
  rollouts: Rollouts, policy_stats: PolicyStats
) -> dict[str, float]:
  """Returns differences between sampler and trainer, and the entropy.

  Args:
    rollouts: rollouts.
    policy_stats: the trainer's statistics of the same tokens.
  """
  mask = shift_left(rollouts.loss_mask)
  stats, _ = policy_stats
  log_ratio = (stats.logprobs - shift_left(rollouts.sampler_logprobs))[mask]
  gap = np.abs(log_ratio)
  return {
    'sampler_gap': _mean(gap),
    'sampler_gap_max': float(gap.max()) if gap.size else math.nan,
    'rollout_entropy': _mean(np.asarray(stats.entropy)[mask]),
    **{
      f'importance_weight/{quantile:g}': float(
        np.exp(np.quantile(log_ratio, quantile)) if log_ratio.size else np.nan
      )
      for quantile in QUANTILES
    },
  }


def _reward_metrics(
  rollouts: Rollouts, sources: Sequence[str]
) -> dict[str, float]:
  """Returns mean rewards: the total, its parts, and both by source."""
  scored = np.any(rollouts.loss_mask, axis=1)
  total = np.where(scored, np.asarray(rollouts.rewards[TOTAL]), np.nan)
  parts = {
    name: np.asarray(values)
    for name, values in rollouts.rewards.items()
    if name != TOTAL
  }
  rows_of_source = {
    name: np.asarray(rollouts.source_ids) == source_id
    for source_id, name in enumerate(sources)
  }
  groups = np.asarray(rollouts.group_ids)[scored]
  equal = [np.ptp(total[scored][groups == g]) == 0 for g in np.unique(groups)]
  return {
    'reward': _nanmean(total),
    'equal_reward_groups': float(np.mean(equal)) if equal else math.nan,
    **{f'reward/{name}': _nanmean(values) for name, values in parts.items()},
    **{
      f'reward_of_source/{source}': _nanmean(total[rows])
      for source, rows in rows_of_source.items()
      if rows.any()
    },
    **{
      f'reward/{name}/{source}': _nanmean(values[rows])
      for name, values in parts.items()
      for source, rows in rows_of_source.items()
      if len(sources) > 1 and not np.all(np.isnan(values[rows]))
    },
  }


def _nanmean(values: Float[np.ndarray, ' n']) -> float:
  """Returns the mean of the entries that are not NaN; NaN without any."""
  return _mean(values[~np.isnan(values)])


def _mean(values: Float[np.ndarray, ' n']) -> float:
  """Returns the mean; NaN without values."""
  return float(values.mean()) if values.size else math.nan
