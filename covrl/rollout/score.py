# SPDX-License-Identifier: Apache-2.0
"""Sampling and scoring of rollouts.

Responses are scored in worker processes as soon as they are decoded, while the
device continues; `PendingRollouts.result` waits for the scores. A response whose
scoring failed is masked out of the loss; it does not get a reward of 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Key, PyTree

from covrl.data import Problem, PromptBatch, Tokenizer
from covrl.parallel import distributed
from covrl.rewards import TOTAL, PendingScores, Scores, Scoring
from covrl.rewards.outcome import MAX_SCORE
from covrl.rollout.engine import SamplingEngine
from covrl.rollout.samples import Samples, to_rollout_rows
from covrl.rollout.sampling import Sampling
from covrl.types import Rollouts


@dataclasses.dataclass(frozen=True)
class JoinedScores:
  """Pending scores of several calls, in order.

  Attributes:
    calls: the calls; at least one.
  """

  calls: tuple[PendingScores, ...]

  def result(self) -> Scores:
    """Waits for all scores."""
    scores = [call.result() for call in self.calls]
    return Scores.join(scores[0].rewards, scores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PendingRollouts:
  """Sampled responses whose scores are still being computed.

  Attributes:
    rollouts: host arrays, without `rewards`.
    responses: decoded texts of this process's responses.
    scores: pending scores of these.
  """

  rollouts: Rollouts
  responses: tuple[str, ...]
  scores: PendingScores | JoinedScores

  def arrays(self) -> dict[str, np.ndarray]:
    """The arrays that a checkpoint stores, for `resubmit`."""
    fields = {
      field.name: getattr(self.rollouts, field.name)
      for field in dataclasses.fields(Rollouts)
      if field.name != 'rewards'
    }
    return {
      name: np.asarray(array)
      for name, array in fields.items()
      if array is not None
    }

  def result(self) -> ScoredRollouts:
    """Waits for the scores; see `score_rollouts`."""
    return score_rollouts(self.rollouts, self.scores.result().gather())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredRollouts:
  """Rollouts with their rewards.

  Attributes:
    rollouts: with `rewards`: the total under `'score'`, 0 if scoring failed
      (the sequence is then masked out of `loss_mask`), and each component under
      its name, NaN if it does not apply or failed.
    counts: number of outcomes by `name/status`.
    failures: one sentence per failed outcome.
  """

  rollouts: Rollouts
  counts: dict[str, int]
  failures: list[str]

  @property
  def masked(self) -> int:
    """Number of sequences without any token in the loss mask."""
    return int(np.sum(~np.any(self.rollouts.loss_mask, axis=1)))


def score_rollouts(rollouts: Rollouts, scores: Scores) -> ScoredRollouts:
  """Adds rewards, and masks out responses whose scoring failed.

  A total beyond `MAX_SCORE` counts as failed: its advantage would not be finite
  in float32. So does a response whose logits were not finite: its tokens were not
  drawn from the policy.

  Args:
    rollouts: rollouts without `rewards`.
    scores: scores of all of them.
  """
  totals = np.array(scores.totals())
  too_large = np.abs(totals) > MAX_SCORE
  has_nan_logits = np.any(
    rollouts.loss_mask & np.isnan(rollouts.sampler_logprobs), axis=1
  )
  failed = np.isnan(totals) | too_large | has_nan_logits
  rewards = {TOTAL: np.where(failed, 0, totals).astype(np.float32)}
  for name, outcomes in scores.outcomes.items():
    rewards[name] = np.array(
      [np.nan if o is None else o.score for o in outcomes], np.float32
    )
  return ScoredRollouts(
    rollouts=dataclasses.replace(
      rollouts,
      rewards=rewards,
      loss_mask=rollouts.loss_mask & ~failed[:, None],
    ),
    counts=scores.counts(),
    failures=[
      *scores.failures(),
      *(
        f'the sum of all rewards must be of magnitude {MAX_SCORE:g} or less, '
        f'got {total:g}'
        for total in totals[too_large]
      ),
      *['the logits of a response must be finite, got nan']
      * int(has_nan_logits.sum()),
    ],
  )


def collect_rollouts(
  engine: SamplingEngine,
  params: PyTree,
  prompts: PromptBatch,
  scoring: Scoring,
  tokenizer: Tokenizer,
  *,
  group_size: int,
  key: Key[Array, ''],
  first_sequence: int,
  step: int,
  sampling: Sampling,
) -> PendingRollouts:
  """Samples responses to a batch of prompts and submits them for scoring.

  Each process submits the responses to its own prompts; all processes get all
  rollouts.

  Args:
    engine: the sampling engine.
    params: parameters of the policy.
    prompts: this process's prompts of one draw.
    scoring: reward functions and their worker pool.
    tokenizer: decodes the responses.
    group_size: responses per prompt.
    key: PRNG key of the iteration.
    first_sequence: sequence id of the first response.
    step: optimiser step of `params`.
    sampling: temperature and truncation.

  Returns:
    The rollouts, their scores pending.
  """
  tokens, mask, indices, source_ids = distributed.gather_rows(
    (prompts.tokens, prompts.mask, prompts.indices, prompts.source_ids)
  )
  num_responses = len(tokens) * group_size
  ids = (first_sequence + np.arange(num_responses)).astype(np.int32)
  process_rows = distributed.process_slice(num_responses)
  problems = [
    problem for problem in prompts.problems for _ in range(group_size)
  ]
  responses = ResponseScoring(tokenizer, scoring, problems, process_rows.start)
  samples: Samples = distributed.run_on_devices(
    engine.sample,
    params,
    tokens,
    mask,
    group_size=group_size,
    key=key,
    sequence_ids=ids,
    sampling=sampling,
    on_response=responses.add,
  )
  rows = to_rollout_rows(tokens, mask, samples, group_size)
  rows |= {
    'sequence_ids': ids,
    'group_ids': indices.repeat(group_size).astype(np.int32),
    'source_ids': source_ids.repeat(group_size),
    'policy_step': np.where(rows['loss_mask'], step, 0).astype(np.int32),
  }
  return PendingRollouts(
    rollouts=Rollouts(**rows, rewards={}),
    responses=tuple(responses.texts),
    scores=responses.scores,
  )


def resubmit(
  arrays: Mapping[str, Any],
  problems: Sequence[Problem],
  scoring: Scoring,
  tokenizer: Tokenizer,
) -> PendingRollouts:
  """Submits the responses of a checkpoint for scoring again.

  Args:
    arrays: see `PendingRollouts.arrays`.
    problems: the problem of each response of this process.
    scoring: reward functions and their worker pool.
    tokenizer: decodes the responses.
  """
  rollouts = Rollouts(**arrays, rewards={})
  process_rows = distributed.process_slice(len(rollouts.tokens))
  responses = ResponseScoring(tokenizer, scoring, problems, process_rows.start)
  mask = np.asarray(rollouts.loss_mask)
  for row, tokens in enumerate(np.asarray(rollouts.tokens)):
    responses.add(row, tokens[mask[row]].tolist())
  return PendingRollouts(
    rollouts=rollouts,
    responses=tuple(responses.texts),
    scores=responses.scores,
  )


class ResponseScoring:
  """Decodes and submits responses as they end, while others are sampled.

  Attributes:
    texts: the responses of this process, decoded without special tokens.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    scoring: Scoring,
    problems: Sequence[Problem],
    first: int,
  ) -> None:
    """Opens a call of the scoring.

    Args:
      tokenizer: decodes the responses.
      scoring: reward functions and their worker pool.
      problems: the problem of each response of this process.
      first: row of the first of them among those of all processes.
    """
    self._tokenizer, self._first = tokenizer, first
    self.texts = [''] * len(problems)
    self._call = scoring.open(
      [problem.reference for problem in problems],
      sources=[problem.source for problem in problems],
    )

  @property
  def scores(self) -> PendingScores:
    """The scores; complete once all responses are added."""
    return self._call.scores

  def add(self, row: int, tokens: list[int]) -> None:
    """Decodes and submits a response, unless it is another process's.

    Args:
      row: row of the response among those of all processes.
      tokens: token ids, with the end-of-sequence token.
    """
    index = row - self._first
    if 0 <= index < len(self.texts):
      self.texts[index] = self._tokenizer.decode(tokens)
      self._call.add(index, self.texts[index], len(tokens))

  def cancel(self) -> None:
    """Drops the call; its scores are not needed."""
    self._call.cancel()


def decode_responses(tokenizer: Tokenizer, samples: Samples) -> tuple[str, ...]:
  """Decodes sampled responses, without special tokens."""
  tokens = np.asarray(samples.response_tokens)
  mask = np.asarray(samples.response_mask)
  return tuple(
    tokenizer.decode(row[keep].tolist())
    for row, keep in zip(tokens, mask, strict=True)
  )
