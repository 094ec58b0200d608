# SPDX-License-Identifier: Apache-2.0
"""An iteration's rollouts as training data: rows, their order, their metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from covrl.rewards import TOTAL
from covrl.train.forward import PolicyStats
from covrl.train.metrics import QUANTILES
from covrl.types import Rollouts, TokenBatch, TokenMoments

# Streams of randomness that are derived from the run's seed.
ROLLOUT_STREAM, TRAIN_STREAM, EVALUATE_STREAM, INIT_STREAM = range(4)

Advantages = Callable[
  [Float[Array, ' S'], Int[Array, ' S']], Float[Array, ' S']
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iteration:
  """What an iteration's updates read; host arrays.

  Attributes:
    batch: all sequences, one a row; `weights` are relative (0 for what must
      not count) until an update normalises them.
    order: rows in the order the updates take them.
    rewards: of each sequence.
    metrics: of the rollouts, logged with every update.
  """

  batch: TokenBatch
  order: Int[np.ndarray, ' S']
  rewards: Float[np.ndarray, ' S']
  metrics: dict[str, float]

  def rows(self, update: int, size: int) -> TokenBatch:
    """The rows of one update."""
    chosen = self.order[update * size : (update + 1) * size]
    return _take(self.batch, chosen)

  def arrays(self) -> dict[str, Any]:
    """What a checkpoint keeps of an unfinished iteration."""
    return {'batch': self.batch, 'order': self.order, 'rewards': self.rewards}


def unscored_batch(rollouts: Rollouts) -> TokenBatch:
  """Rows aligned with predictions; what only the trainer knows is still 0.

  As wide as the rollouts, though the last token predicts nothing that was
  sampled: prompts and responses have round numbers of tokens, which divide into
  a kernel's blocks and over a mesh.
  """
  zeros = np.zeros_like(rollouts.sampler_logprobs)
  loss_mask = following(rollouts.loss_mask)
  return _on_host(
    tokens=rollouts.tokens,
    targets=following(rollouts.tokens),
    positions=rollouts.positions,
    segment_ids=rollouts.attention_mask.astype(np.int32),
    loss_mask=loss_mask,
    weights=loss_mask.astype(np.float32),
    advantages=zeros,
    old_logprobs=zeros,
    old_entropy=zeros,
    old_moments=_no_moments(zeros),
    sampler_logprobs=following(rollouts.sampler_logprobs),
    sequence_ids=np.broadcast_to(
      np.asarray(rollouts.sequence_ids)[:, None], loss_mask.shape
    ).copy(),
  )


def following(entries: Any) -> np.ndarray:
  """What speaks of tokens, moved to the places that predict them.

  >>> following(np.array([[1, 2, 3]])).tolist()
  [[2, 3, 0]]
  """
  entries = np.asarray(entries)
  return np.pad(entries[:, 1:], ((0, 0), (0, 1)))


def effective_groups(rollouts: Rollouts) -> Int[np.ndarray, ' S']:
  """Group ids, sequences whose scoring failed each in a group of their own.

  They are masked and must not count in the baseline of the others.
  """
  failed = np.logical_not(np.any(rollouts.loss_mask, axis=1))
  alone = -1 - np.arange(failed.size)
  return np.where(failed, alone, rollouts.group_ids).astype(np.int32)


def of_rollouts(
  rollouts: Rollouts,
  batch: TokenBatch,
  advantages: Float[np.ndarray, ' S'],
  scored: PolicyStats,
  *,
  seed: int,
  iteration: int,
  metrics: dict[str, float],
) -> Iteration:
  """Completes the rows and draws their order.

  Args:
    rollouts: scored.
    batch: see `unscored_batch`; its `loss_mask` is replaced by the scored one.
    advantages: of each sequence.
    scored: the rows' statistics by the trainer, before the first update.
    seed: of the run.
    iteration: whose order is drawn.
    metrics: see `Iteration`.
  """
  loss_mask = following(rollouts.loss_mask)
  stats, moments = scored
  complete = dataclasses.replace(
    batch,
    loss_mask=loss_mask,
    weights=loss_mask.astype(np.float32),
    advantages=np.where(loss_mask, advantages[:, None], 0),
    old_logprobs=stats.logprobs,
    old_entropy=stats.entropy,
    old_moments=moments,
  )
  rewards = np.asarray(rollouts.rewards[TOTAL])
  generator = np.random.default_rng([seed, TRAIN_STREAM, iteration])
  return Iteration(
    batch=complete,
    order=generator.permutation(len(rewards)).astype(np.int32),
    rewards=rewards,
    metrics=metrics,
  )


def informative_groups(
  rollouts: Rollouts, group_size: int
) -> Bool[np.ndarray, ' P']:
  """Prompts whose scored responses differ in reward: those with a gradient."""
  rewards = np.asarray(rollouts.rewards[TOTAL]).reshape(-1, group_size)
  scored = np.any(rollouts.loss_mask, axis=1).reshape(rewards.shape)
  most = np.max(rewards, axis=1, where=scored, initial=-np.inf)
  least = np.min(rewards, axis=1, where=scored, initial=np.inf)
  return most > least


def rollout_metrics(
  rollouts: Rollouts, scored: PolicyStats, *, sources: Sequence[str]
) -> dict[str, float]:
  """What is logged of all that was sampled, used or not.

  Args:
    rollouts: scored; means of rewards leave out what could not be judged.
    scored: the trainer's statistics of the same tokens.
    sources: names of the data sources, which `source_ids` are places in.
  """
  mask = following(rollouts.loss_mask)
  stats, _ = scored
  ratio = (stats.logprobs - following(rollouts.sampler_logprobs))[mask]
  gap = np.abs(ratio)
  truncated = float(np.mean(rollouts.truncated))
  return {
    **_reward_metrics(rollouts, sources),
    'sampler_gap': float(gap.mean()) if gap.size else 0.0,
    'sampler_gap_max': float(gap.max()) if gap.size else 0.0,
    'rollout_entropy': float(np.mean(np.asarray(stats.entropy)[mask])),
    'response_length': float(mask.sum(axis=1).mean()),
    'truncated_fraction': truncated,
    'end_fraction': 1.0 - truncated,
    **{
      f'importance_weight/{quantile:g}': float(
        np.exp(np.quantile(ratio, quantile)) if ratio.size else 1.0
      )
      for quantile in QUANTILES
    },
  }


def _reward_metrics(
  rollouts: Rollouts, sources: Sequence[str]
) -> dict[str, float]:
  """Mean rewards: the total, its parts and both by source."""
  judged = np.any(rollouts.loss_mask, axis=1)
  total = np.where(judged, np.asarray(rollouts.rewards[TOTAL]), np.nan)
  parts = {
    name: np.asarray(values)
    for name, values in rollouts.rewards.items()
    if name != TOTAL
  }
  of_source = {
    name: np.asarray(rollouts.source_ids) == place
    for place, name in enumerate(sources)
  }
  groups = np.asarray(rollouts.group_ids)[judged]
  equal = [np.ptp(total[judged][groups == g]) == 0 for g in np.unique(groups)]
  return {
    'reward': _mean(total),
    'equal_reward_groups': float(np.mean(equal)) if equal else 1.0,
    **{f'reward/{name}': _mean(values) for name, values in parts.items()},
    **{
      f'reward_of_source/{source}': _mean(total[rows])
      for source, rows in of_source.items()
      if rows.any()
    },
    **{
      f'reward/{name}/{source}': _mean(values[rows])
      for name, values in parts.items()
      for source, rows in of_source.items()
      if len(sources) > 1 and not np.all(np.isnan(values[rows]))
    },
  }


def _mean(values: Float[np.ndarray, ' n']) -> float:
  """Of those that are there; 0 where none is."""
  known = values[~np.isnan(values)]
  return float(known.mean()) if known.size else 0.0


def blank_iteration(count: int, width: int, *, reference: bool) -> Iteration:
  """Padding in the shapes of an iteration.

  Args:
    count: sequences.
    width: of a row.
    reference: whether there are log-probabilities of a reference policy.
  """
  shapes = abstract_batch(count, width, reference=reference)
  return Iteration(
    batch=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes),
    order=np.arange(count, dtype=np.int32),
    rewards=np.zeros(count, np.float32),
    metrics={},
  )


def abstract_batch(count: int, width: int, *, reference: bool) -> TokenBatch:
  """The shapes of an iteration's batch, to compile programs for; see above."""

  def rows(dtype: Any) -> Any:
    return jax.ShapeDtypeStruct((count, width), dtype)

  integers, floats, flags = rows(np.int32), rows(np.float32), rows(bool)
  return TokenBatch(
    tokens=integers,
    targets=integers,
    positions=integers,
    segment_ids=integers,
    loss_mask=flags,
    weights=floats,
    advantages=floats,
    old_logprobs=floats,
    old_entropy=floats,
    old_moments=_no_moments(floats),
    sampler_logprobs=floats,
    sequence_ids=integers,
    ref_logprobs=floats if reference else None,
  )


def _take(batch: TokenBatch, rows: Int[np.ndarray, ' B']) -> TokenBatch:
  return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], batch)


def _no_moments(zeros: Any) -> TokenMoments:
  return TokenMoments(square=zeros, square_log=zeros, square_log_square=zeros)


def _on_host(**arrays: Any) -> TokenBatch:
  """A batch of numpy arrays, which the devices have not seen yet."""
  return TokenBatch(**arrays)
