# SPDX-License-Identifier: Apache-2.0
"""Rewards and answer formats of each kind of problem.

A problem's kind (`Problem.kind`) is determined by its file's schema:

  math        the last `\\boxed{}` is compared with the reference
  math_dapo   the text after the last `Answer:`, as DAPO-Math-17k's
              instruction requires
  code        the fraction of the reference's tests that the response's program
              passes; a response is correct if all pass
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
  cached_judge,
  code_reward,
  format_reward,
  math_reward,
)
from covrl.rewards.math.extraction import extract
from covrl.tasks.reference_text import bare_answer

_EXTRACTION_RULES = {'math': 'boxed', 'math_dapo': 'dapo'}
_ANSWER_FORMATS = {'math': '\\boxed{{{}}}', 'math_dapo': 'Answer: {}'}
"""Text with which a response states its answer, by kind."""


def make_rewards(
  kinds: Mapping[str, str], config: RewardConfig
) -> tuple[list[RewardPart], list[str]]:
  """Returns one reward per kind of problem, limited to the kind's sources.

  Args:
    kinds: kind of each source's problems.
    config: sandbox backend for programs.

  Returns:
    The rewards, and notes on how programs are isolated.

  Raises:
    JudgeError: there are programs to run, and no sandbox backend is available.
    ValueError: a kind or the sandbox backend is unknown.
  """
  sources: dict[str, list[str]] = {}
  for source, kind in kinds.items():
    sources.setdefault(kind, []).append(source)
  rewards: list[RewardPart] = []
  notes: list[str] = []
  for kind, names in sources.items():
    if kind == 'code':
      backend, url = config.sandbox or None, config.sandbox_url or None
      packages = config.package_names
      judge = cached_judge(backend, url, packages)
      packages_text = f', with {", ".join(packages)}' if packages else ''
      notes.append(
        f'programs are judged in the sandbox backend {judge.backend}{packages_text}'
      )
      rewards.append(
        code_reward(
          backend=backend, url=url, packages=packages, sources=tuple(names)
        )
      )
    elif kind in _EXTRACTION_RULES:
      rewards.append(
        math_reward(
          rule=_EXTRACTION_RULES[kind], name=kind, sources=tuple(names)
        )
      )
    else:
      raise ValueError(
        f'problems must be of a kind that can be graded ({", ".join(_EXTRACTION_RULES)},'
        f' code), got {kind!r} for those of {", ".join(names)}'
      )
  return rewards, notes


def make_shaping_rewards(config: Config) -> list[RewardPart]:
  """Returns the configured shaping rewards, which evaluations ignore.

  Raises:
    ValueError: the format is not a regular expression, or the overlong buffer
      exceeds the length of a response.
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


def answer_extractor(problem: Problem) -> Callable[[str], str | None] | None:
  """Returns a function that extracts answers; `None` for programs."""
  if problem.kind not in _EXTRACTION_RULES:
    return None
  return functools.partial(extract, rule=_EXTRACTION_RULES[problem.kind])


def reference_response(problem: Problem) -> str | None:
  """Returns a response that states the reference, or the known solution.

  The reference is written as a model would write it, so that one that no
  response can equal is graded as wrong.

  >>> reference_response(Problem(prompt='', reference='7', source='', kind='math'))
  '\\\\boxed{7}'
  """
  if problem.kind not in _ANSWER_FORMATS:
    return problem.solution
  answer = bare_answer(str(problem.reference))
  return _ANSWER_FORMATS[problem.kind].format(answer)
