# SPDX-License-Identifier: Apache-2.0
"""The named parts that a response's reward is made of."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from covrl.rewards.outcome import Outcome

ScoreFunction: TypeAlias = Callable[[str, Any], 'float | Outcome']

_NAME = re.compile(r'[a-z][a-z0-9_]*')
TOTAL = 'score'
"""Under which the weighted sum of all parts goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
  """A part that a function judges, in worker processes of its own.

  Attributes:
    name: under which its scores are logged.
    score: `(response, reference) -> score`, which is a number or an `Outcome`:
      a function at the top of a module, or its name, `'module:function'`.
    weight: what its score counts in the total; 0 only logs it.
    sources: names of the data sources whose responses it judges; empty for all.
    shaping: whether it steers training alone; an evaluation leaves it out.
    timeout: most seconds for one response; `None` takes the run's.
    example: a response and a reference to warm the workers up with.
  """

  name: str
  score: ScoreFunction | str
  weight: float = 1.0
  sources: tuple[str, ...] = ()
  shaping: bool = False
  timeout: float | None = None
  example: tuple[str, Any] | None = None

  def __post_init__(self) -> None:
    _check_name(self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlong:
  """A part that shortens responses; see `overlong_penalty`.

  It reads lengths alone, so it needs no worker, and only steers training.

  Attributes:
    max_length: longest response, in tokens.
    buffer: tokens before it over which the penalty grows.
    name: as in `Reward`.
    weight: likewise.
    sources: likewise.
  """

  max_length: int
  buffer: int
  name: str = 'overlong'
  weight: float = 1.0
  sources: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    _check_name(self.name)
    overlong_penalty(0, max_length=self.max_length, buffer=self.buffer)

  @property
  def shaping(self) -> bool:
    """Always: a long right answer is right."""
    return True

  def __call__(self, length: int) -> float:
    """The penalty of a response of so many tokens."""
    return overlong_penalty(
      length, max_length=self.max_length, buffer=self.buffer
    )


RewardPart: TypeAlias = Reward | Overlong


def overlong_penalty(length: int, *, max_length: int, buffer: int) -> float:
  """A penalty that grows linearly over the last tokens allowed.

    0                                     length ≤ max_length − buffer
    (max_length − buffer − length)/buffer in between
    −1                                    max_length < length

  >>> [overlong_penalty(n, max_length=100, buffer=20) for n in (80, 90, 100)]
  [0.0, -0.5, -1.0]

  Args:
    length: of the response, in tokens.
    max_length: L_max, above which the penalty is full.
    buffer: L_cache, the soft part of it.

  Raises:
    ValueError: the buffer is not between 1 and `max_length`.

  References:
    Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale,
    arXiv:2503.14476, equation 13.
  """
  if not 1 <= buffer <= max_length:
    raise ValueError(
      'The buffer of overlong responses must lie in [1, max_length], got'
      f' {buffer} of {max_length}.'
    )
  return min(0.0, max(-1.0, (max_length - buffer - length) / buffer))


def format_reward(
  pattern: str,
  *,
  name: str = 'format',
  weight: float = 1.0,
  sources: tuple[str, ...] = (),
) -> Reward:
  """A part that is 1 where a whole response matches a pattern, else 0.

  >>> reward = format_reward(r'<think>.*</think>.*')
  >>> reward.score('<think>2 + 2</think> 4', None)
  1.0

  Args:
    pattern: a regular expression; `.` matches newlines, too.
    name: see `Reward`.
    weight: likewise.
    sources: likewise.

  Raises:
    ValueError: the pattern is none.
  """
  try:
    re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'A format needs a regular expression, got {pattern!r}: {error}.'
    ) from None
  return Reward(
    name=name,
    score=functools.partial(score_format, pattern=pattern),
    weight=weight,
    sources=sources,
    shaping=True,
    example=('', None),
  )


def score_format(response: str, reference: Any, *, pattern: str) -> float:
  """1 where the whole response matches a regular expression, else 0."""
  del reference
  return float(bool(re.fullmatch(pattern, response.strip(), re.DOTALL)))


def _check_name(name: str) -> None:
  if not _NAME.fullmatch(name) or name == TOTAL:
    raise ValueError(
      f'The name of a reward must be a small-letter word other than {TOTAL!r},'
      f' got {name!r}.'
    )
