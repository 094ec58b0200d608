# SPDX-License-Identifier: Apache-2.0
"""Partial rollouts: responses that are finished after an update of the policy.

More groups are sampled together than an iteration trains on. Sampling ends when
enough groups are complete; the others are continued in the next iteration, with
newer parameters. A group is trained on when all of its responses are finished, so
that its baseline is computed from all of them, and at the latest after
`rollout.max_staleness` iterations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from covrl.config import Config
from covrl.data import Problem, PromptBatch, PromptStream, Tokenizer
from covrl.data.packing import prompt_width
from covrl.models import ExpertRecordSpec
from covrl.parallel import distributed
from covrl.rewards import Scoring
from covrl.rollout import Samples, Sampling, SamplingEngine, to_rollout_rows
from covrl.rollout.score import (
  JoinedScores,
  PendingRollouts,
  ResponseScoring,
)
from covrl.train.collect.draws import prompts_in_order
from covrl.types import Rollouts

# `group_ids` of group slots without a group.
NO_GROUP = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupsInFlight:
  """Groups whose responses are not all finished, or not trained on yet.

  A group keeps its slot, and its responses their rows, until they are trained on.

  Attributes:
    prompts: token ids of the prompt of each group slot, padded on the left.
    prompt_mask: true for real tokens.
    group_ids: index of the prompt within the run; `NO_GROUP` without a group.
    source_ids: index of the prompt's data source.
    start_iteration: iteration in which the group was begun.
    samples: the responses so far, those of a group in consecutive rows.
    policy_step: optimiser step whose parameters sampled each token.
    response_scorings: the scoring of each group; `None` without a group.
  """

  prompts: Int[np.ndarray, 'N Tp']
  prompt_mask: Bool[np.ndarray, 'N Tp']
  group_ids: Int[np.ndarray, ' N']
  source_ids: Int[np.ndarray, ' N']
  start_iteration: Int[np.ndarray, ' N']
  samples: Samples
  policy_step: Int[np.ndarray, 'R T']
  response_scorings: tuple[ResponseScoring | None, ...]

  @classmethod
  def empty(
    cls, config: Config, experts: ExpertRecordSpec | None = None
  ) -> GroupsInFlight:
    """Creates group slots without groups.

    Args:
      config: the run's configuration.
      experts: shape and dtype of the record of experts, if there is one.
    """
    rollout = config.rollout
    group_slots = rollout.prompts_per_iteration + rollout.carried_groups
    prompts = (group_slots, prompt_width(rollout.max_prompt_length))
    rows = (
      group_slots * rollout.responses_per_prompt,
      rollout.max_response_length,
    )
    logprobs: Any = np.zeros(rows, np.float32)
    tokens: Any = np.zeros(rows, np.int32)
    flags: Any = np.zeros(rows, bool)
    recorded: Any = None
    if experts is not None:
      recorded = experts.empty(rows[0], prompts[1] + rows[1])
    return cls(
      prompts=np.zeros(prompts, np.int32),
      prompt_mask=np.zeros(prompts, bool),
      group_ids=np.full(group_slots, NO_GROUP, np.int32),
      source_ids=np.zeros(group_slots, np.int32),
      start_iteration=np.zeros(group_slots, np.int32),
      samples=Samples(
        response_tokens=tokens,
        response_mask=flags,
        sampler_logprobs=logprobs,
        behaviour_logprobs=logprobs,
        truncated=flags[:, 0],
        experts=recorded,
      ),
      policy_step=tokens,
      response_scorings=(None,) * group_slots,
    )

  @property
  def group_size(self) -> int:
    """Responses per group."""
    return len(self.policy_step) // len(self.group_ids)

  @property
  def sequence_ids(self) -> Int[np.ndarray, ' R']:
    """Ids of the responses, unique within the run."""
    members = np.arange(self.group_size)
    ids = self.group_ids[:, None] * self.group_size + members
    return ids.reshape(-1).astype(np.int32)

  def take(
    self, group_slots: Sequence[int]
  ) -> tuple[PendingRollouts, GroupsInFlight]:
    """Removes complete groups.

    Returns:
      Their responses, and the other groups.
    """
    chosen, size = np.sort(np.asarray(group_slots)), self.group_size
    rows = (chosen[:, None] * size + np.arange(size)).reshape(-1)
    samples = jax.tree.map(lambda x: np.asarray(x)[rows], self.samples)
    prompts, prompt_mask = self.prompts[chosen], self.prompt_mask[chosen]
    response_scorings = [
      response_scoring
      for group_slot in chosen
      if (response_scoring := self.response_scorings[group_slot]) is not None
    ]
    padding = np.zeros((len(rows), prompts.shape[1]), np.int32)
    ids: dict[str, Any] = {
      'sequence_ids': self.sequence_ids[rows],
      'group_ids': self.group_ids[chosen].repeat(size),
      'source_ids': self.source_ids[chosen].repeat(size),
      'policy_step': np.concatenate((padding, self.policy_step[rows]), axis=1),
    }
    pending = PendingRollouts(
      rollouts=Rollouts(
        **to_rollout_rows(prompts, prompt_mask, samples, size) | ids, rewards={}
      ),
      responses=tuple(
        text
        for response_scoring in response_scorings
        for text in response_scoring.texts
      ),
      scores=JoinedScores(
        tuple(response_scoring.scores for response_scoring in response_scorings)
      ),
    )
    is_remaining = np.ones(len(self.group_ids), bool)
    is_remaining[chosen] = False
    remaining_rows = is_remaining.repeat(size)
    remaining = dataclasses.replace(
      self,
      group_ids=np.where(is_remaining, self.group_ids, NO_GROUP).astype(
        np.int32
      ),
      samples=_masked(self.samples, remaining_rows),
      policy_step=self.policy_step * remaining_rows[:, None],
      response_scorings=tuple(
        response_scoring if remains else None
        for response_scoring, remains in zip(
          self.response_scorings, is_remaining, strict=True
        )
      ),
    )
    return pending, remaining

  def arrays(self) -> dict[str, Any]:
    """Returns the arrays that a checkpoint stores."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    del fields['response_scorings']
    fields['born'] = fields.pop('start_iteration')  # Its name in checkpoints.
    samples = self.samples._asdict()
    stored = {
      name: array for name, array in samples.items() if array is not None
    }
    return fields | {'samples': stored}


@dataclasses.dataclass(frozen=True)
class PartialRollouts:
  """Samples groups, and carries over those that are not complete.

  Attributes:
    engine: the sampling engine.
    scoring: reward functions and their worker pool.
    tokenizer: decodes the responses.
    config: the run's configuration.
  """

  engine: SamplingEngine
  scoring: Scoring
  tokenizer: Tokenizer
  config: Config

  def sample(
    self,
    carried: GroupsInFlight | None,
    prompts: PromptStream,
    params: PyTree,
    *,
    step: int,
    current_iteration: int,
    iteration: int,
    key: Key[Array, ''],
    sampling: Sampling,
  ) -> tuple[PendingRollouts, GroupsInFlight]:
    """Samples until an iteration's number of groups are complete.

    Args:
      carried: groups that were carried over, if any.
      prompts: the stream of prompts, for the group slots without groups.
      params: parameters of the policy.
      step: optimiser step of `params`.
      current_iteration: index of the current iteration.
      iteration: index of the iteration that trains on the result.
      key: PRNG key of that iteration.
      sampling: temperature and truncation.

    Returns:
      The responses of complete groups, and the other groups.
    """
    rollout = self.config.rollout
    # The first sampling begins that many groups more than an iteration trains on,
    # and so does not use the end of its last draw; later ones begin whole draws.
    unused = -rollout.carried_groups % rollout.prompts_per_iteration
    in_flight = self._begin(
      carried or self.empty(),
      prompts_in_order(prompts, 0 if carried is None else unused),
      current_iteration,
    )
    carried_samples = in_flight.samples
    size = len(in_flight.group_ids)
    finished = self.finished(carried_samples)
    is_due = iteration + 1 - in_flight.start_iteration > rollout.max_staleness

    def add(row: int, tokens: list[int]) -> None:
      response_scoring = in_flight.response_scorings[
        row // in_flight.group_size
      ]
      assert response_scoring is not None
      response_scoring.add(row, tokens)
      finished[row] = True

    def is_enough() -> bool:
      complete = np.all(finished.reshape(size, -1), axis=1)
      number = int(complete.sum())
      return number >= rollout.prompts_per_iteration and bool(
        complete[is_due].all()
      )

    samples: Samples = distributed.run_on_devices(
      self.engine.sample,
      params,
      in_flight.prompts,
      in_flight.prompt_mask,
      group_size=in_flight.group_size,
      key=key,
      sequence_ids=in_flight.sequence_ids,
      sampling=sampling,
      on_response=add,
      carried=carried_samples,
      is_enough=is_enough,
    )
    # Responses that ended in the segment that was running when there were enough
    # groups; `add` has not been called for them.
    for row in np.flatnonzero(self.finished(samples) & ~finished).tolist():
      add(row, _tokens(samples, row))
    is_new = samples.response_mask & ~carried_samples.response_mask
    groups = dataclasses.replace(
      in_flight,
      samples=samples,
      policy_step=np.where(
        is_new,
        step,
        np.where(carried_samples.response_mask, in_flight.policy_step, 0),
      ).astype(np.int32),
    )
    complete = np.all(finished.reshape(size, -1), axis=1)
    order = sorted(
      np.flatnonzero(complete).tolist(),
      key=lambda group_slot: (
        not is_due[group_slot],
        in_flight.start_iteration[group_slot],
        group_slot,
      ),
    )
    return groups.take(order[: rollout.prompts_per_iteration])

  def restore(
    self, arrays: Mapping[str, Any], problems: Sequence[Problem | None]
  ) -> GroupsInFlight:
    """Restores the groups of a checkpoint; scores their responses again.

    Args:
      arrays: see `GroupsInFlight.arrays`.
      problems: the problem of each group slot, `None` without a group.
    """
    samples = Samples(**arrays['samples'])
    fields: dict[str, Any] = dict(arrays) | {'samples': samples}
    fields['start_iteration'] = fields.pop('born')
    groups = GroupsInFlight(**fields, response_scorings=(None,) * len(problems))
    response_scorings = tuple(
      None if problem is None else self._open(problem, group_slot)
      for group_slot, problem in enumerate(problems)
    )
    for row in np.flatnonzero(self.finished(samples)).tolist():
      response_scoring = response_scorings[row // groups.group_size]
      if response_scoring is not None:
        response_scoring.add(row, _tokens(samples, row))
    return dataclasses.replace(groups, response_scorings=response_scorings)

  def empty(self) -> GroupsInFlight:
    """Returns group slots without groups."""
    return GroupsInFlight.empty(self.config, self.engine.experts)

  def finished(self, samples: Samples) -> Bool[np.ndarray, ' R']:
    """Returns a mask of the responses that are finished."""
    mask = np.asarray(samples.response_mask)
    length = mask.sum(axis=1)
    last = np.asarray(samples.response_tokens)[
      np.arange(len(mask)), np.maximum(length - 1, 0)
    ]
    is_end = np.isin(last, self.engine.end_ids)
    return (length > 0) & (is_end | (length == mask.shape[1]))

  def _begin(
    self,
    groups: GroupsInFlight,
    prompts: Iterator[tuple[PromptBatch, int]],
    current_iteration: int,
  ) -> GroupsInFlight:
    """Fills the group slots without groups with the next prompts, in order."""
    groups = dataclasses.replace(
      groups,
      **{
        name: getattr(groups, name).copy()
        for name in (
          'prompts',
          'prompt_mask',
          'group_ids',
          'source_ids',
          'start_iteration',
        )
      },
    )
    response_scorings = list(groups.response_scorings)
    for group_slot in np.flatnonzero(groups.group_ids == NO_GROUP).tolist():
      batch, index = next(prompts)
      groups.prompts[group_slot] = batch.tokens[index]
      groups.prompt_mask[group_slot] = batch.mask[index]
      groups.group_ids[group_slot] = batch.indices[index]
      groups.source_ids[group_slot] = batch.source_ids[index]
      groups.start_iteration[group_slot] = current_iteration
      response_scorings[group_slot] = self._open(
        batch.problems[index], group_slot
      )
    return dataclasses.replace(
      groups, response_scorings=tuple(response_scorings)
    )

  def _open(self, problem: Problem, group_slot: int) -> ResponseScoring:
    """Opens the scoring of a group's responses."""
    size = self.config.rollout.responses_per_prompt
    return ResponseScoring(
      self.tokenizer, self.scoring, [problem] * size, group_slot * size
    )


def _masked(samples: Samples, mask: Bool[np.ndarray, ' R']) -> Samples:
  """Sets the rows outside of `mask` to zero."""
  return jax.tree.map(
    lambda x: np.where(
      mask.reshape(-1, *(1,) * (x.ndim - 1)), x, x.dtype.type()
    ),
    samples,
  )


def _tokens(samples: Samples, row: int) -> list[int]:
  """Returns the tokens of a response."""
  mask = np.asarray(samples.response_mask)[row]
  return np.asarray(samples.response_tokens)[row][mask].tolist()
