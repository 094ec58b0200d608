# SPDX-License-Identifier: Apache-2.0
"""A task: what to ask, how to judge, and in which alphabet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from covrl.config import TaskConfig
from covrl.data import Problem, ProblemSource, Tokenizer
from covrl.rewards import RewardPart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """Problems, their judge, and the tokenizer they are written with.

  Attributes:
    tokenizer: text to tokens.
    train: problems to sample responses for.
    solved: problems with solutions, for the warm start; `None` without one.
    held_out: problems for evaluation, none of them in the other two.
    rewards: what a response is worth, in named parts; see `covrl.rewards`.
  """

  tokenizer: Tokenizer
  train: ProblemSource
  solved: ProblemSource | None
  held_out: Sequence[Problem]
  rewards: Sequence[RewardPart]

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of all data sources, those of held-out problems among them."""
    held_out = (problem.source for problem in self.held_out)
    return tuple(dict.fromkeys((*self.train.names, *held_out)))


def countdown_task(config: TaskConfig) -> Task:
  """Countdown, from reasoning-gym: make the target from all the numbers."""
  from covrl.data import (
    CountdownConfig,
    CountdownSource,
    SolvedCountdownSource,
    countdown_tokenizer,
    held_out,
  )
  from covrl.rewards import COUNTDOWN_EXAMPLE, Reward, score_countdown

  problems = CountdownConfig(
    seed=config.seed,
    min_numbers=config.min_numbers,
    max_numbers=config.max_numbers,
    max_value=config.max_value,
    max_target=config.max_target,
    held_out=config.held_out,
  )
  return Task(
    tokenizer=countdown_tokenizer(problems),
    train=CountdownSource(problems),
    solved=SolvedCountdownSource(problems),
    held_out=held_out(problems),
    rewards=[
      Reward(name='countdown', score=score_countdown, example=COUNTDOWN_EXAMPLE)
    ],
  )
