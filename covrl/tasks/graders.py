# SPDX-License-Identifier: Apache-2.0
"""How answers of each kind of problem are judged, read, and given rightly.

A problem's kind (`Problem.kind`) comes from its file's layout:

  math        the last `\\boxed{}` is compared with the reference
  math_dapo   what follows the last `Answer:`, as DAPO-Math-17k asks for it
  code        the share of the reference's tests that the program in the
              response passes; right is who passes all
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from covrl.config import Config, RewardConfig
from covrl.data import Problem
from covrl.rewards import (
  Overlong,
  Reward,
  RewardPart,
  code_reward,
  format_reward,
  judge_of,
  maths_reward,
)
from covrl.rewards.math.extraction import extract
from covrl.rewards.math.normalize import clean, key

_RULES = {'math': 'boxed', 'math_dapo': 'dapo'}
_STATED = {'math': '\\boxed{{{}}}', 'math_dapo': 'Answer: {}'}
"""How a response states an answer, by kind."""


def rewards_of(
  kinds: Mapping[str, str], config: RewardConfig
) -> tuple[list[RewardPart], list[str]]:
  """A reward for every kind of problems, for the sources that have it.

  Args:
    kinds: the kind of each source's problems.
    config: who is to judge programs.

  Returns:
    The rewards, and what to know about them: how programs are held.

  Raises:
    JudgeError: there are programs to judge, and there is no judge.
    ValueError: there is no such kind, or no such level of judging.
  """
  sources: dict[str, list[str]] = {}
  for source, kind in kinds.items():
    sources.setdefault(kind, []).append(source)
  rewards: list[RewardPart] = []
  notes: list[str] = []
  for kind, names in sources.items():
    if kind == 'code':
      level, url = config.judge or None, config.judge_url or None
      notes.append(f'programs are judged at level {judge_of(level, url).level}')
      rewards.append(code_reward(level=level, url=url, sources=tuple(names)))
    elif kind in _RULES:
      rewards.append(
        maths_reward(rule=_RULES[kind], name=kind, sources=tuple(names))
      )
    else:
      raise ValueError(
        f'Problems must be of a kind that can be judged ({", ".join(_RULES)},'
        f' code), those of {", ".join(names)} are {kind!r}.'
      )
  return rewards, notes


def shaping_of(config: Config) -> list[RewardPart]:
  """What is rewarded beside right answers, as far as the config says.

  None of it counts in an evaluation.

  Raises:
    ValueError: the pattern of a format is none, or the buffer longer than a
      response.
  """
  rewards = config.rewards
  parts: list[RewardPart] = []
  if rewards.format:
    parts.append(format_reward(rewards.format, weight=rewards.format_weight))
  if rewards.overlong_buffer:
    parts.append(
      Overlong(
        max_length=config.rollout.max_response_length,
        buffer=rewards.overlong_buffer,
      )
    )
  if rewards.function:
    parts.append(
      Reward(
        name='function',
        score=rewards.function,
        weight=rewards.function_weight,
        shaping=True,
      )
    )
  return parts


def reader_of(problem: Problem) -> Callable[[str], str | None] | None:
  """What reads the answer of a response, spelt one way; none for programs."""
  if problem.kind not in _RULES:
    return None
  return functools.partial(_read, rule=_RULES[problem.kind])


def right_response(problem: Problem) -> str | None:
  """A response that must be judged right: the reference, or its solution.

  >>> right_response(Problem(prompt='', reference='7', source='', kind='math'))
  '\\\\boxed{7}'
  """
  if problem.kind not in _STATED:
    return problem.solution
  return _STATED[problem.kind].format(problem.reference)


def _read(response: str, *, rule: str) -> str | None:
  answer = extract(response, rule)
  return None if answer is None else key(clean(answer))
