# SPDX-License-Identifier: Apache-2.0
"""Prompts to scored rollouts.

Responses are scored in worker processes as soon as they are decoded, while
the device goes on to the next thing; `PendingRollouts.result` waits for the
scores. A response whose scoring failed is masked out, never given a 0.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from covrl.data import PromptBatch, Tokenizer
from covrl.parallel import distributed
from covrl.rewards import TOTAL, PendingScores, Scoring
from covrl.rollout.engine import SamplingEngine
from covrl.rollout.samples import Samples, to_rollout_rows
from covrl.rollout.sampling import Sampling
from covrl.types import Rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class PendingRollouts:
  """Sampled responses whose scores are still being computed.

  Attributes:
    rollouts: host arrays, `rewards` still empty.
    responses: the decoded texts of this process's.
    scores: of these, to be awaited.
  """

  rollouts: Rollouts
  responses: tuple[str, ...]
  scores: PendingScores

  def result(self) -> ScoredRollouts:
    """Waits for the scores; what could not be judged is masked out."""
    scores = self.scores.result().gathered()
    totals = np.array(scores.totals(), np.float32)
    failed = np.isnan(totals)
    rewards = {TOTAL: np.where(failed, 0, totals).astype(np.float32)}
    for name, outcomes in scores.outcomes.items():
      rewards[name] = np.array(
        [np.nan if o is None else o.score for o in outcomes], np.float32
      )
    return ScoredRollouts(
      rollouts=dataclasses.replace(
        self.rollouts,
        rewards=rewards,
        loss_mask=self.rollouts.loss_mask & ~failed[:, None],
      ),
      counts=scores.counts(),
      failures=scores.failures(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredRollouts:
  """Rollouts with their rewards.

  Attributes:
    rollouts: `rewards` has the total under `'score'`, 0 where there is none
      (the sequence is masked out of `loss_mask` then), and every part under
      its name, NaN where it does not apply or could not be judged.
    counts: outcomes by `name/status`.
    failures: a sentence for every outcome that is no judgement.
  """

  rollouts: Rollouts
  counts: dict[str, int]
  failures: list[str]

  @property
  def masked(self) -> int:
    """Sequences without a reward."""
    return int(np.sum(~np.any(self.rollouts.loss_mask, axis=1)))


def collect(
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
  """Samples responses to a batch of prompts and sends them to be scored.

  Each process sends the responses to its own prompts; all have all rollouts.

  Args:
    engine: the sampler.
    params: of the policy.
    prompts: of one draw, as many as this process takes.
    scoring: the rewards.
    tokenizer: to decode with.
    group_size: responses per prompt.
    key: PRNG key of the iteration.
    first_sequence: id of the iteration's first sequence.
    step: optimiser step of `params`.
    sampling: temperature and truncation.
  """
  tokens, mask, indices, source_ids = distributed.gather_rows(
    (prompts.tokens, prompts.mask, prompts.indices, prompts.source_ids)
  )
  count = len(tokens) * group_size
  ids = (first_sequence + np.arange(count)).astype(np.int32)
  samples: Samples = distributed.run(
    engine.sample,
    params,
    tokens,
    mask,
    group_size=group_size,
    key=key,
    sequence_ids=ids,
    sampling=sampling,
  )
  own = distributed.own_share(count)
  responses = decode(tokenizer, jax.tree.map(lambda rows: rows[own], samples))
  problems = [
    problem for problem in prompts.problems for _ in range(group_size)
  ]
  rows = to_rollout_rows(tokens, mask, samples, group_size)
  rows |= {
    'sequence_ids': ids,
    'group_ids': indices.repeat(group_size).astype(np.int32),
    'source_ids': source_ids.repeat(group_size),
    'policy_step': np.full(count, step, np.int32),
  }
  return PendingRollouts(
    rollouts=Rollouts(**rows, rewards={}),
    responses=responses,
    scores=scoring.submit(
      responses,
      [problem.reference for problem in problems],
      sources=[problem.source for problem in problems],
      lengths=samples.response_mask[own].sum(axis=1).tolist(),
    ),
  )


def decode(tokenizer: Tokenizer, samples: Samples) -> tuple[str, ...]:
  """Texts of sampled responses, special tokens left out."""
  tokens = np.asarray(samples.response_tokens)
  mask = np.asarray(samples.response_mask)
  return tuple(
    tokenizer.decode(row[keep].tolist())
    for row, keep in zip(tokens, mask, strict=True)
  )
