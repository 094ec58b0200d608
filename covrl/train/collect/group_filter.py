# SPDX-License-Identifier: Apache-2.0
"""Choice of the groups to train on among all that an iteration has drawn."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from covrl.config import Config
from covrl.rewards import CORRECT_ABOVE, TOTAL
from covrl.types import Rollouts


class ChosenGroups(NamedTuple):
  """The groups that an iteration trains on.

  Attributes:
    rows: indices of the responses, groups in the order in which they were
      drawn.
    unmasked: whether a response counts; others are masked out.
    metrics: numbers of groups, `groups/NAME`.
  """

  rows: Int[np.ndarray, ' S']
  unmasked: Bool[np.ndarray, ' S']
  metrics: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupFilter:
  """Tests groups of responses, and chooses the first that pass.

  Attributes:
    group_size: responses per prompt.
    num_groups: number of groups of an iteration.
    max_draws: largest number of draws in an iteration, each of `num_groups` groups.
    min_accuracy: least share of right responses.
    max_accuracy: largest share of right responses.
    drop_truncated_groups: whether groups with truncated responses fail.
    fill: whether groups that fail take the place of missing ones.
  """

  group_size: int
  num_groups: int
  max_draws: int
  min_accuracy: float
  max_accuracy: float
  drop_truncated_groups: bool
  fill: bool

  @classmethod
  def from_config(cls, config: Config) -> GroupFilter:
    """Returns the filter of a run."""
    rollout = config.rollout
    return cls(
      group_size=rollout.responses_per_prompt,
      num_groups=rollout.prompts_per_iteration,
      max_draws=rollout.max_draws,
      min_accuracy=rollout.min_accuracy,
      max_accuracy=rollout.max_accuracy,
      drop_truncated_groups=rollout.drop_truncated_groups,
      fill=rollout.fill_groups,
    )

  @property
  def has_bounds(self) -> bool:
    """Whether any test other than that of unequal rewards is on."""
    bounds = self.min_accuracy, self.max_accuracy
    return self.drop_truncated_groups or bounds != (0, 1)

  @property
  def is_active(self) -> bool:
    """Whether groups are chosen; a run without filters takes all of a draw."""
    return self.max_draws > 1 or self.has_bounds

  def faults(self, rollouts: Rollouts) -> dict[str, Bool[np.ndarray, ' P']]:
    """Returns which groups fail each test, by the name of the fault.

    Args:
      rollouts: rollouts with rewards, groups in order.
    """
    size = self.group_size
    rewards = np.asarray(rollouts.rewards[TOTAL]).reshape(-1, size)
    scored = np.any(rollouts.loss_mask, axis=1).reshape(rewards.shape)
    num_scored = scored.sum(axis=1)
    num_correct = (scored & (rewards > CORRECT_ABOVE)).sum(axis=1)
    accuracy = num_correct / np.maximum(num_scored, 1)
    truncated = np.asarray(rollouts.truncated).reshape(rewards.shape)
    has_scores: Any = num_scored > 0
    return {
      'unscored': ~has_scores,
      'equal_reward': has_scores & ~informative_groups(rollouts, size),
      'below_accuracy': has_scores & (accuracy < self.min_accuracy),
      'above_accuracy': has_scores & (accuracy > self.max_accuracy),
      'truncated': np.any(truncated & self.drop_truncated_groups, axis=1),
    }

  def passes(self, rollouts: Rollouts) -> Bool[np.ndarray, ' P']:
    """Returns which groups pass all tests."""
    return ~np.any(list(self.faults(rollouts).values()), axis=0)

  def choose(self, rollouts: Rollouts, iteration: int) -> ChosenGroups:
    """Chooses the groups of an iteration: the first that pass, then others.

    Args:
      rollouts: the rollouts of all draws, groups in order.
      iteration: index of the iteration, for the error.

    Raises:
      RuntimeError: no group passes bounds that the recipe has set, and others do
        not take their place.
    """
    faults = self.faults(rollouts)
    passed = ~np.any(list(faults.values()), axis=0)
    if self.has_bounds and not self.fill and not passed.any():
      counts = ', '.join(
        f'{int(failed.sum())} {name.replace("_", " ")}'
        for name, failed in faults.items()
        if failed.any()
      )
      raise RuntimeError(
        'at least one group of an iteration must pass the filters'
        f' (rollout.min_accuracy = {self.min_accuracy:g},'
        f' rollout.max_accuracy = {self.max_accuracy:g},'
        f' rollout.drop_truncated_groups = {str(self.drop_truncated_groups).lower()}), got 0 of'
        f' {passed.size} in up to {self.max_draws} draws of iteration {iteration}:'
        f' {counts}'
      )
    order = np.argsort(~passed, kind='stable')
    groups = np.sort(order[: self.num_groups])
    members = np.arange(self.group_size)
    rows = (groups[:, None] * self.group_size + members).ravel()
    unmasked = passed[groups] | self.fill
    missing = self.num_groups - int(passed[groups].sum())
    metrics = {
      'groups/drawn': float(passed.size),
      'groups/passed': float(passed.sum()),
      'groups/filled': float(missing if self.fill else 0),
      'groups/masked': float(0 if self.fill else missing),
    } | {
      f'groups/{name}': float(failed.sum()) for name, failed in faults.items()
    }
    return ChosenGroups(rows, unmasked.repeat(self.group_size), metrics)


def informative_groups(
  rollouts: Rollouts, group_size: int
) -> Bool[np.ndarray, ' P']:
  """Returns a mask of the groups whose scored responses differ in reward.

  All other groups have zero group-relative advantages and no gradient.

  Args:
    rollouts: rollouts with rewards, groups in order.
    group_size: responses per prompt.
  """
  rewards = np.asarray(rollouts.rewards[TOTAL]).reshape(-1, group_size)
  scored = np.any(rollouts.loss_mask, axis=1).reshape(rewards.shape)
  highest = np.max(rewards, axis=1, where=scored, initial=-np.inf)
  lowest = np.min(rewards, axis=1, where=scored, initial=np.inf)
  return highest > lowest
