# SPDX-License-Identifier: Apache-2.0
"""Dynamic sampling by free slots: prompts are added until enough groups pass.

An iteration trains on the first groups that pass the filters, in the order of the
prompts. The choice depends on that order only, not on the times at which responses
and scores are complete: the same seed gives the same groups, and these are also the
groups of sampling by whole draws (`rollout.admission='draws'`). Only the number of
prompts that are begun after the last of these groups depends on timing; their
groups are dropped, neither finished nor scored, and the stream of prompts continues
after the last draw that is used.

Slots do not wait for scores: prompts are added while the groups that have passed,
and the expected part of those without scores, are too few. Sampling ends when
the scores of all groups up to the last one to train on are known; scores of
later groups are not waited for.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from covrl.config import Config
from covrl.data import Problem, PromptBatch, PromptStream, Tokenizer
from covrl.parallel import distributed
from covrl.rewards import Scores, Scoring
from covrl.rollout import GroupEngine, Samples, Sampling, to_rollout_rows
from covrl.rollout.score import (
  ResponseScoring,
  ScoredRollouts,
  score_rollouts,
)
from covrl.train.collect.group_filter import GroupFilter
from covrl.types import Rollouts

# Entries of the exchanged array: whether each group passes the filters.
_UNKNOWN, _FAILED, _PASSED = -1, 0, 1


class DrawnGroups(NamedTuple):
  """Groups up to the last one to train on, in the order of their prompts.

  Attributes:
    result: their responses and scores.
    draws: number of draws of prompts that contain them.
  """

  result: ScoredRollouts
  draws: int


@dataclasses.dataclass(kw_only=True)
class _Group:
  """A group that has been begun.

  Attributes:
    prompt: token ids, padded on the left.
    prompt_mask: true for real tokens.
    group_id: index of the prompt within the run.
    source_id: index of the prompt's data source.
    sequence_ids: ids of the responses.
    owner: index of the process that scores the responses.
    problem: the problem, in that process.
    response_scoring: the scoring, in the same process, once the group is begun.
    samples: the responses, once all are finished.
    scores: their scores, once known, in the same process.
    passes: whether the group passes the filters, once known.
  """

  prompt: Int[np.ndarray, ' W']
  prompt_mask: Bool[np.ndarray, ' W']
  group_id: int
  source_id: int
  sequence_ids: Int[np.ndarray, ' G']
  owner: int
  problem: Problem | None
  response_scoring: ResponseScoring | None = None
  samples: Samples | None = None
  scores: Scores | None = None
  passes: bool | None = None


@dataclasses.dataclass(frozen=True)
class DynamicSampling:
  """Samples groups until enough of them pass the filters.

  Attributes:
    engine: samples groups.
    scoring: reward functions and their worker pool.
    tokenizer: decodes the responses.
    config: the run's configuration.
  """

  engine: GroupEngine
  scoring: Scoring
  tokenizer: Tokenizer
  config: Config

  @functools.cached_property
  def _filter(self) -> GroupFilter:
    return GroupFilter.from_config(self.config)

  @property
  def _num_groups(self) -> int:
    """Number of groups that an iteration trains on."""
    return self.config.rollout.prompts_per_iteration

  @property
  def _max_groups(self) -> int:
    """Number of groups that an iteration may begin."""
    return self.config.rollout.max_draws * self._num_groups

  def sample(
    self,
    prompts: PromptStream,
    params: PyTree,
    *,
    step: int,
    first_sequence: int,
    key: Key[Array, ''],
    sampling: Sampling,
  ) -> DrawnGroups:
    """Samples and scores the groups of an iteration.

    Args:
      prompts: the stream of prompts; afterwards its next draw is the one after
        those of the result.
      params: parameters of the policy.
      step: optimiser step of `params`.
      first_sequence: sequence id of the first response.
      key: PRNG key of the iteration.
      sampling: temperature and truncation.
    """
    start, groups = prompts.get_state(), list[_Group]()
    try:
      self.engine.begin(params, key=key, sampling=sampling)
      end = self._sample(prompts, groups, first_sequence)
      draws = -(-end // self._num_groups)
      if prompts.get_state()['draw'] != start['draw'] + draws:
        prompts.set_state({**start, 'draw': start['draw'] + draws})
      return DrawnGroups(self._result(groups[:end], step), draws)
    finally:
      self.engine.end()
      for group in groups:
        if group.response_scoring is not None and group.scores is None:
          group.response_scoring.cancel()

  def _sample(
    self, prompts: PromptStream, groups: list[_Group], first_sequence: int
  ) -> int:
    """Begins groups, in order, until enough pass; returns how many that takes."""
    engine, waiting = self.engine, list[_Group]()
    cycle_start = idle_since = time.monotonic()
    cycle_seconds, is_idle_too_long = 0.0, False
    while True:
      finished = engine.read()
      for response in finished:
        if response.samples is not None:
          groups[response.number].samples = response.samples
      is_idle_too_long = self._exchange(groups, is_idle_too_long)
      end = self._num_until_enough(groups)
      if end is not None:
        return end
      while (
        len(groups) < self._max_groups
        and engine.has_room
        and (is_idle_too_long or self._needs_more(groups))
      ):
        if not waiting:
          waiting = self._draw(prompts, len(groups), first_sequence)
        groups.append(waiting.pop(0))
        self._begin(groups[-1], len(groups) - 1)
      engine.run()
      # The device decodes the next segment meanwhile.
      for response in finished:
        response_scoring = groups[response.number].response_scoring
        if response_scoring is not None:
          response_scoring.add(response.index_in_group, response.tokens)
      now = time.monotonic()
      if engine.is_busy:
        cycle_seconds, cycle_start, idle_since = now - cycle_start, now, now
      else:
        self._wait_for_scores(groups)
        is_idle_too_long = time.monotonic() - idle_since > cycle_seconds
        if is_idle_too_long:
          idle_since = time.monotonic()

  def _draw(
    self, prompts: PromptStream, groups_begun: int, first_sequence: int
  ) -> list[_Group]:
    """Returns the groups of the next draw of prompts.

    Args:
      prompts: the stream of prompts.
      groups_begun: number of groups that the iteration has begun before.
      first_sequence: sequence id of the iteration's first response.
    """
    batch: PromptBatch = next(prompts)
    tokens, mask, indices, source_ids = distributed.gather_rows(
      (batch.tokens, batch.mask, batch.indices, batch.source_ids)
    )
    size, prompts_per_process = self.engine.group_size, len(batch.problems)
    first_of_process = jax.process_index() * prompts_per_process
    members = np.arange(size, dtype=np.int32)
    return [
      _Group(
        prompt=tokens[index],
        prompt_mask=mask[index],
        group_id=int(indices[index]),
        source_id=int(source_ids[index]),
        sequence_ids=first_sequence + (groups_begun + index) * size + members,
        owner=index // prompts_per_process,
        problem=batch.problems[index - first_of_process]
        if 0 <= index - first_of_process < prompts_per_process
        else None,
      )
      for index in range(len(tokens))
    ]

  def _begin(self, group: _Group, index: int) -> None:
    """Adds a group to the engine, and opens its scoring."""
    self.engine.add(index, group.prompt, group.prompt_mask, group.sequence_ids)
    if group.problem is not None:
      problems = [group.problem] * self.engine.group_size
      group.response_scoring = ResponseScoring(
        self.tokenizer, self.scoring, problems, 0
      )

  def _exchange(self, groups: Sequence[_Group], is_idle_too_long: bool) -> bool:
    """Shares between all processes which groups pass, as far as scores are known.

    Args:
      groups: the groups that are begun.
      is_idle_too_long: whether all slots have been idle for longer than a segment takes.

    Returns:
      `is_idle_too_long` of process 0.
    """
    for group in groups:
      response_scoring, samples = group.response_scoring, group.samples
      if (
        response_scoring is None or samples is None or group.passes is not None
      ):
        continue
      if response_scoring.scores.is_done:
        group.scores = response_scoring.scores.result()
        scored = score_rollouts(self._rollouts([group], 0), group.scores)
        group.passes = bool(self._filter.passes(scored.rollouts)[0])
    verdicts = np.full((1, self._max_groups + 1), _UNKNOWN, np.int8)
    codes = {False: _FAILED, True: _PASSED, None: _UNKNOWN}
    verdicts[0, : len(groups)] = [codes[group.passes] for group in groups]
    verdicts[0, -1] = is_idle_too_long
    all_verdicts = np.asarray(distributed.gather_rows(verdicts))
    for group, verdict in zip(groups, all_verdicts.max(axis=0), strict=False):
      group.passes = None if verdict == _UNKNOWN else verdict == _PASSED
    return bool(all_verdicts[0, -1])

  def _num_until_enough(self, groups: Sequence[_Group]) -> int | None:
    """Number of groups up to the last one to train on; `None` if unknown."""
    passed = 0
    for index, group in enumerate(groups):
      if group.passes is None:
        return None
      passed += group.passes
      if passed == self._num_groups:
        return index + 1
    return self._max_groups if len(groups) == self._max_groups else None

  def _needs_more(self, groups: Sequence[_Group]) -> bool:
    """Whether too few of the groups that are begun are expected to pass.

    A group without scores counts as the share of scored groups that passed. One
    passing group is added to the scored ones, so that the share of few groups is
    not 0.
    """
    known = [group.passes for group in groups if group.passes is not None]
    pass_rate = (sum(known) + 1) / (len(known) + 1)
    unknown = len(groups) - len(known)
    return sum(known) + pass_rate * unknown < self._num_groups

  def _wait_for_scores(self, groups: Sequence[_Group]) -> None:
    """Waits until another group of this process is scored, at most 20 ms."""
    pending = [
      group.response_scoring.scores
      for group in groups
      if group.response_scoring is not None and group.passes is None
    ]
    deadline = time.monotonic() + 0.02
    distributed.wait_until(
      lambda: (
        any(scores.is_done for scores in pending) or time.monotonic() > deadline
      )
    )

  def _rollouts(self, groups: Sequence[_Group], step: int) -> Rollouts:
    """Joins finished groups into whole sequences without rewards."""
    samples: list[Any] = [group.samples for group in groups]
    size = self.engine.group_size
    rows = to_rollout_rows(
      np.stack([group.prompt for group in groups]),
      np.stack([group.prompt_mask for group in groups]),
      jax.tree.map(lambda *parts: np.concatenate(parts), *samples),
      size,
    )

    def ids(name: str) -> np.ndarray:
      values = [getattr(group, name) for group in groups]
      return np.array(values, np.int32).repeat(size)

    identifiers: dict[str, Any] = {
      'sequence_ids': np.concatenate([g.sequence_ids for g in groups]),
      'group_ids': ids('group_id'),
      'source_ids': ids('source_id'),
      'policy_step': np.where(rows['loss_mask'], step, 0).astype(np.int32),
    }
    return Rollouts(**rows | identifiers, rewards={})

  def _result(self, groups: Sequence[_Group], step: int) -> ScoredRollouts:
    """Joins groups whose scores are known, and their scores of all processes."""
    size = self.engine.group_size
    local_scores = [
      group.scores for group in groups if group.scores is not None
    ]
    gathered = Scores.join(self.scoring.rewards, local_scores).gather()
    # Scores are in the order of the processes, groups in that of the prompts.
    owners = np.array([group.owner for group in groups])
    rank = np.argsort(np.argsort(owners, kind='stable'))
    rows = (rank[:, None] * size + np.arange(size)).reshape(-1).tolist()
    scores = Scores(
      gathered.rewards,
      {
        name: [outcomes[row] for row in rows]
        for name, outcomes in gathered.outcomes.items()
      },
    )
    return score_rollouts(self._rollouts(groups, step), scores)
