# SPDX-License-Identifier: Apache-2.0
"""An iteration's training data, made from scored rollouts, and its metrics."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array
from covrl.config import Config
from covrl.data.packing import prompt_width
from covrl.models import ExpertRecordSpec
from covrl.rewards import TOTAL
from covrl.train.forward import PolicyStats, with_old_stats
from covrl.types import Rollouts, TokenBatch, TokenMoments

# Folded into the key of the run's seed: independent random streams.
ROLLOUT_STREAM, TRAIN_STREAM, EVALUATE_STREAM, INIT_STREAM = range(4)

# `(rewards, group_ids) -> advantages`, one per response, of groups that are numbered
# from 0 (see `baseline_groups`); or, with the response
# tokens as a third argument `mask`, one per token.
Advantages = Callable[..., Float[Array, ' S'] | Float[Array, 'S T']]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutBatch:
  """The training data of an iteration, as host arrays.

  Attributes:
    batch: all sequences, one per row. `weights` are relative (0 for tokens
      that do not count) until an update normalises them.
    order: row indices in the order in which the updates take them.
    rewards: total reward of each sequence.
    groups: id of each sequence's group, within which rewards are compared.
    policy_step: optimiser step whose parameters sampled each target; 0 off the
      `loss_mask`.
    metrics: metrics of the rollouts, logged with every update.
    update_metrics: metrics of each update that are known before it, those of
      networks that are updated before the rows are scored; or empty.
  """

  batch: TokenBatch
  order: Int[np.ndarray, ' S']
  rewards: Float[np.ndarray, ' S']
  groups: Int[np.ndarray, ' S']
  policy_step: Int[np.ndarray, 'S T']
  metrics: dict[str, float]
  update_metrics: Sequence[dict[str, float]] = ()

  def metrics_of(self, update: int) -> dict[str, float]:
    """Returns the metrics that are logged with an update of the iteration."""
    update_metrics = self.update_metrics[update] if self.update_metrics else {}
    return self.metrics | update_metrics

  def update_rows(self, update: int, size: int) -> TokenBatch:
    """Returns the rows of one update.

    Args:
      update: index of the update within the iteration.
      size: sequences per update.
    """
    chosen = self.order[update * size : (update + 1) * size]
    return jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], self.batch)

  def arrays(self) -> dict[str, Any]:
    """Returns the arrays that a checkpoint stores."""
    return {
      'batch': self.batch,
      'order': self.order,
      'rewards': self.rewards,
      'groups': self.groups,
      'policy_step': self.policy_step,
    }


def to_token_batch(rollouts: Rollouts) -> TokenBatch:
  """Aligns rollouts with the predictions of each token, as numpy arrays.

  Advantages and the trainer's statistics are 0. Rows keep the rollouts' width,
  although the last token predicts nothing that was sampled: the width divides
  evenly into kernel blocks and mesh shards.
  """
  zeros: Any = np.zeros_like(rollouts.sampler_logprobs)
  loss_mask: Any = shift_left(rollouts.loss_mask)
  sequence_ids: Any = np.broadcast_to(
    np.asarray(rollouts.sequence_ids)[:, None], loss_mask.shape
  ).copy()
  targets: Any = shift_left(rollouts.tokens)
  sampler_logprobs: Any = shift_left(rollouts.sampler_logprobs)
  return TokenBatch(
    tokens=rollouts.tokens,
    targets=targets,
    positions=rollouts.positions,
    segment_ids=rollouts.attention_mask.astype(np.int32),
    loss_mask=loss_mask,
    weights=loss_mask.astype(np.float32),
    advantages=zeros,
    old_logprobs=zeros,
    old_entropy=zeros,
    old_moments=_equal_moments(zeros),
    sampler_logprobs=sampler_logprobs,
    sequence_ids=sequence_ids,
    experts=rollouts.experts,
  )


def shift_left(array: Any) -> np.ndarray:
  """Shifts token-aligned arrays `[S, T]` left by one.

  Entry t then describes the token that position t predicts, `targets[:, t]`.

  >>> shift_left(np.array([[1, 2, 3]])).tolist()
  [[2, 3, 0]]
  """
  return np.pad(np.asarray(array)[:, 1:], ((0, 0), (0, 1)))


def baseline_groups(rollouts: Rollouts) -> Int[np.ndarray, ' S']:
  """Returns ids of the groups within which rewards are compared.

  Groups are numbered from 0 in their order, in every iteration, so that a function
  may take the ids for indices. Masked sequences follow, each in a separate group: a
  sequence without a score must not count in the baseline of the others.
  """
  masked = np.logical_not(np.any(rollouts.loss_mask, axis=1))
  _, first, index = np.unique(
    rollouts.group_ids, return_index=True, return_inverse=True
  )
  ranks = np.argsort(np.argsort(first))
  separate = first.size + np.arange(masked.size)
  return np.where(masked, separate, ranks[index]).astype(np.int32)


def zero_lone_advantages(
  advantages: Float[np.ndarray, 'S T'], rollouts: Rollouts
) -> Float[np.ndarray, 'S T']:
  """Sets the advantages of responses that no other can be compared with to 0.

  They are those in whose group no other response could be scored. The advantage of
  a single response would be its reward.

  Args:
    advantages: advantages of tokens, relative to the group.
    rollouts: the sequences, those without a score masked.
  """
  has_score = np.any(rollouts.loss_mask, axis=1)
  _, index, sizes = np.unique(
    rollouts.group_ids, return_inverse=True, return_counts=True
  )
  num_scored = np.bincount(index, weights=has_score)
  is_lone = ((sizes > 1) & (num_scored == 1))[index]
  return np.where(is_lone[:, None], 0, advantages).astype(advantages.dtype)


def make_rollout_batch(
  rollouts: Rollouts,
  batch: TokenBatch,
  advantages: Float[np.ndarray, ' S'] | Float[np.ndarray, 'S T'],
  policy_stats: PolicyStats | None,
  *,
  seed: int,
  iteration: int,
  metrics: dict[str, float],
) -> RolloutBatch:
  """Adds advantages and the trainer's statistics; draws the order of the rows.

  Args:
    rollouts: rollouts with rewards.
    batch: the same sequences, from `to_token_batch`; the `loss_mask` is
      replaced by the one after scoring.
    advantages: advantage of each sequence or token.
    policy_stats: the trainer's statistics of the rows before the first update, if it
      reads them.
    seed: the run's seed.
    iteration: index of the iteration.
    metrics: see `RolloutBatch`.
  """
  loss_mask = shift_left(rollouts.loss_mask)
  complete = dataclasses.replace(
    batch,
    loss_mask=loss_mask,
    weights=loss_mask.astype(np.float32),
    advantages=np.where(loss_mask, _per_token(advantages), 0),
  )
  if policy_stats is not None:
    complete = with_old_stats(complete, policy_stats)
  rewards = np.asarray(rollouts.rewards[TOTAL])
  generator = np.random.default_rng([seed, TRAIN_STREAM, iteration])
  return RolloutBatch(
    batch=complete,
    order=generator.permutation(len(rewards)).astype(np.int32),
    rewards=rewards,
    groups=baseline_groups(rollouts),
    policy_step=shift_left(rollouts.policy_step),
    metrics=metrics,
  )


def token_advantages(
  advantages: Advantages,
) -> Callable[[Array, Array, Array], Float[Array, 'S T']]:
  """Returns a function of rewards, group ids and mask to advantages of tokens.

  Args:
    advantages: a function that may take the mask; see `Advantages`.

  Raises:
    TypeError: when it is traced, the advantages are not numbers.
    ValueError: they are neither `[S]` nor `[S, T]`.
  """
  reads_mask = 'mask' in inspect.signature(advantages).parameters

  def per_token(
    rewards: Float[Array, ' S'],
    group_ids: Int[Array, ' S'],
    mask: Bool[Array, 'S T'],
  ) -> Float[Array, 'S T']:
    mask_argument = {'mask': mask} if reads_mask else {}
    result = advantages(rewards, group_ids, **mask_argument)
    is_per_token = np.ndim(result) > 1
    axes, shape = ('S T', mask.shape) if is_per_token else ('S', rewards.shape)
    check_array(
      "the result of the recipe's advantages", result, 'real', axes, shape
    )
    return jnp.where(mask, _per_token(jnp.asarray(result, jnp.float32)), 0)

  return per_token


def _per_token(advantages: Any) -> Any:
  """Adds an axis of tokens to advantages of responses."""
  return advantages if advantages.ndim == 2 else advantages[:, None]


def merge_metrics(*sources: Mapping[str, float]) -> dict[str, float]:
  """Merges metrics of different origin.

  Raises:
    ValueError: two metrics have the same name, for example an estimator's and one
      of covrl's.
  """
  merged: dict[str, float] = {}
  for metrics in sources:
    if shared := sorted(merged.keys() & metrics.keys()):
      raise ValueError(
        f'the metrics of an update must have different names, got two'
        f' {shared[0]!r}'
      )
    merged |= metrics
  return merged


def row_width(config: Config) -> int:
  """Returns the tokens per row: those of a prompt and of a response."""
  rollout = config.rollout
  return prompt_width(rollout.max_prompt_length) + rollout.max_response_length


def padding_batch(
  count: int,
  width: int,
  *,
  reference: bool,
  target_names: Sequence[str] = (),
  has_filtered_logprobs: bool = False,
  experts: ExpertRecordSpec | None = None,
) -> RolloutBatch:
  """Returns a batch of zeros with the shapes of an iteration's data.

  Args:
    count: number of sequences.
    width: tokens per row.
    reference: whether it has log-probabilities of a reference policy.
    target_names: names of the entries of `TokenBatch.network_targets`.
    has_filtered_logprobs: whether it has log-probabilities of the policy filtered
      by min-p.
    experts: shape and dtype of the record of experts, if there is one.
  """
  shapes = abstract_batch(
    count,
    width,
    reference=reference,
    target_names=target_names,
    has_filtered_logprobs=has_filtered_logprobs,
    experts=experts,
  )
  return RolloutBatch(
    batch=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes),
    order=np.arange(count, dtype=np.int32),
    rewards=np.zeros(count, np.float32),
    groups=np.arange(count, dtype=np.int32),
    policy_step=np.zeros((count, width), np.int32),
    metrics={},
  )


def zero_rollouts(
  count: int, width: int, experts: ExpertRecordSpec | None = None
) -> dict[str, np.ndarray]:
  """Returns arrays of zeros like those of `PendingRollouts.arrays`.

  Args:
    count: number of sequences.
    width: tokens per row.
    experts: shape and dtype of the record of experts, if there is one.
  """
  integers = np.zeros((count, width), np.int32)
  floats, flags = integers.astype(np.float32), integers.astype(bool)
  ids = np.zeros(count, np.int32)
  recorded = {} if experts is None else {'experts': experts.empty(count, width)}
  return recorded | {
    'tokens': integers,
    'positions': integers,
    'attention_mask': flags,
    'loss_mask': flags,
    'sampler_logprobs': floats,
    'behaviour_logprobs': floats,
    'sequence_ids': ids,
    'group_ids': ids,
    'source_ids': ids,
    'policy_step': integers,
    'truncated': ids.astype(bool),
  }


def abstract_batch(
  count: int,
  width: int,
  *,
  reference: bool,
  target_names: Sequence[str] = (),
  has_filtered_logprobs: bool = False,
  experts: ExpertRecordSpec | None = None,
) -> TokenBatch:
  """Returns the shapes of an iteration's rows; see `padding_batch`."""

  def rows(dtype: Any) -> Any:
    return jax.ShapeDtypeStruct((count, width), dtype)

  integers, floats, flags = rows(np.int32), rows(np.float32), rows(bool)
  target_shapes: dict[str, Any] = dict.fromkeys(target_names, floats)
  recorded: Any = None
  if experts is not None:
    recorded = jax.ShapeDtypeStruct(experts.shape(count, width), experts.dtype)
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
    old_moments=dataclasses.replace(
      _equal_moments(floats),
      filtered_logprobs=floats if has_filtered_logprobs else None,
    ),
    sampler_logprobs=floats,
    sequence_ids=integers,
    ref_logprobs=floats if reference else None,
    network_targets=target_shapes,
    experts=recorded,
  )


def _equal_moments(leaf: Any) -> TokenMoments:
  """Moments that all are `leaf`, such as zeros or a shape."""
  return TokenMoments(square=leaf, square_log=leaf, square_log_square=leaf)
