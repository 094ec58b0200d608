# SPDX-License-Identifier: Apache-2.0
"""A task: what to ask, how to judge, and in which alphabet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from covrl.config import EvaluateConfig, TaskConfig
from covrl.data import Problem, ProblemSource, Suite, Tokenizer
from covrl.rewards import RewardPart

Answer: TypeAlias = Callable[[Problem, str], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """Problems, their judge, and the tokenizer they are written with.

  Attributes:
    tokenizer: text to tokens.
    train: problems to sample responses for.
    solved: problems with solutions, for the warm start; `None` without one.
    held_out: problems for evaluation, none of them in the other two.
    rewards: what a response is worth, in named parts; see `covrl.rewards`.
    suites: evaluation sets beside them, or instead.
    answer: from a problem and a response to its final answer, to vote with;
      `None` where there is nothing to vote on.
    notes: what to know about the problems, a sentence each.
  """

  tokenizer: Tokenizer
  train: ProblemSource
  solved: ProblemSource | None
  held_out: Sequence[Problem]
  rewards: Sequence[RewardPart]
  suites: Sequence[Suite] = ()
  answer: Answer | None = None
  notes: Sequence[str] = ()

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of all data sources, those of held-out problems among them."""
    return _source_names(
      self.train.names, self.held_out, *(s.problems for s in self.suites)
    )

  def evaluation(
    self,
    config: EvaluateConfig,
    *,
    problems: int | None = None,
    samples: int | None = None,
    temperature: float | None = None,
  ) -> list[Suite]:
    """What is evaluated: held-out problems, if any, and the sets.

    Args:
      config: how many held-out problems, and how they are sampled.
      problems: how many of them instead.
      samples: k of all of them instead.
      temperature: of the samples of all of them instead.
    """
    suites = list(self.suites)
    if self.held_out:
      count = config.problems if problems is None else problems
      own = Suite(
        name='',
        problems=self.held_out[:count],
        samples=config.samples,
        temperature=config.temperature,
      )
      suites.insert(0, own)
    changes: dict[str, Any] = {'samples': samples, 'temperature': temperature}
    given = {name: v for name, v in changes.items() if v is not None}
    return [dataclasses.replace(suite, **given) for suite in suites]


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


def _source_names(
  names: Iterable[str], *problems: Iterable[Problem]
) -> tuple[str, ...]:
  others = (problem.source for some in problems for problem in some)
  return tuple(dict.fromkeys((*names, *others)))
