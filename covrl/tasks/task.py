# SPDX-License-Identifier: Apache-2.0
"""A task: what to ask, how to judge, and in which alphabet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from covrl.config import EvaluateConfig, TaskConfig
from covrl.data import Problem, ProblemSource, Suite, Tokenizer
from covrl.rewards import RewardPart

Reader: TypeAlias = Callable[[Problem], Callable[[str], str | None] | None]


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
    reader: gives for a problem what reads the final answer of a response to
      it, to vote with; `None` where there is nothing to vote on.
    right_response: a response to a problem that must be judged right, `None`
      where nobody knows one.
    checked: problems whose references are given as answers before a run
      begins, to see that they are judged right.
    notes: what to know about the problems, a sentence each.
  """

  tokenizer: Tokenizer
  train: ProblemSource
  solved: ProblemSource | None
  held_out: Sequence[Problem]
  rewards: Sequence[RewardPart]
  suites: Sequence[Suite] = ()
  reader: Reader = lambda problem: None
  right_response: Callable[[Problem], str | None] = lambda p: p.solution
  checked: Sequence[ProblemSource] = ()
  notes: Sequence[str] = ()

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of all data sources, those of held-out problems among them."""
    return _source_names(
      self.train.names, self.held_out, *(s.problems for s in self.suites)
    )

  def evaluation(self, config: EvaluateConfig) -> list[Suite]:
    """What is evaluated, and how: held-out problems, if any, and the sets."""
    suites = [
      suite.changed(
        problems=config.suite_problems or None,
        samples=None if config.suite_samples < 0 else config.suite_samples,
        temperature=None
        if config.suite_temperature < 0
        else config.suite_temperature,
      )
      for suite in self.suites
    ]
    if self.held_out:
      own = Suite(
        name='',
        problems=self.held_out[: config.problems],
        samples=config.samples,
        temperature=config.temperature,
      )
      suites.insert(0, own)
    return suites


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
