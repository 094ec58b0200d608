# SPDX-License-Identifier: Apache-2.0
"""The reward of programs: the share of their tests that they pass."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.rewards.outcome import Outcome
from covrl.rewards.reward import Reward
from covrl.rewards.sandbox import Judge, judge_code

# Tests run one after the other, and a program that runs out of time is not run
# again; a response that takes this long all the same is masked.
_SECONDS = 120.0
_EXAMPLE = 'print(input())', [{'stdin': '1', 'stdout': '1'}]


def code_reward(
  *,
  level: str | None = None,
  url: str | None = None,
  time_limit: float = 4.0,
  name: str = 'code',
  weight: float = 1.0,
  sources: tuple[str, ...] = (),
) -> Reward:
  """A part that is the share of tests passed; see `judge_code`.

  In an evaluation only a program that passes all of them is right.

  Args:
    level: how programs are held, see `Judge`; the best that can be had unless
      given. Nothing is run unsandboxed unless asked for.
    url: of a remote judge.
    time_limit: seconds that each test may take.
    name: see `Reward`.
    weight: likewise.
    sources: likewise.
  """
  return Reward(
    name=name,
    score=functools.partial(
      score_code, level=level, url=url, time_limit=time_limit
    ),
    weight=weight,
    sources=sources,
    timeout=_SECONDS,
    example=_EXAMPLE,
  )


def score_code(
  response: str,
  reference: Sequence[Mapping[str, Any]],
  *,
  level: str | None = None,
  url: str | None = None,
  time_limit: float = 4.0,
) -> Outcome:
  """The share of the reference's tests that a response's program passes."""
  return judge_code(
    response,
    reference,
    time_limit=time_limit,
    pass_rate=True,
    judge=judge_of(level, url),
  )


@functools.cache
def judge_of(level: str | None = None, url: str | None = None) -> Judge:
  """This process's judge of a level.

  Raises:
    JudgeError: there is none to be had; in one sentence, why.
    ValueError: there is no such level.
  """
  return Judge(level=level, url=url)
