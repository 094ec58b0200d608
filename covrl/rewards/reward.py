# SPDX-License-Identifier: Apache-2.0
"""Reward parts: scored by functions, by format, or by length."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from covrl.rewards.outcome import Outcome

ScoreFunction: TypeAlias = Callable[[str, Any], 'float | Outcome']

_NAME = re.compile(r'[a-z][a-z0-9_]*')
MAX_WEIGHT = 1e6
TOTAL = 'score'
"""Name of the weighted sum of all parts."""
CORRECT_ABOVE = 0.5
"""A response is right if its total reward is above this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
  """A reward part that a function computes in separate worker processes.

  Attributes:
    name: name in the metrics.
    score: `(response, reference) -> number or Outcome`, 1 for a correct response and
      at most 1 for others, unless it is shaping: a function of the recipe's
      file, of a file beside it or of an installed module, or its name as
      `'module:function'`.
    weight: weight in the total; 0 only logs the score.
    sources: names of the data sources that it scores; empty for all.
    shaping: whether it is used in training only, and left out of evaluations.
    timeout: time limit per response in seconds; `None` takes the run's.
    example: a response and a reference to warm workers up.
    network: whether the function may use the network.
  """

  name: str
  score: ScoreFunction | str
  weight: float = 1.0
  sources: tuple[str, ...] = ()
  shaping: bool = False
  timeout: float | None = None
  example: tuple[str, Any] | None = None
  network: bool = False

  def __post_init__(self) -> None:
    _check_name(self.name)
    _check_weight(self.name, self.weight)
    _check_sources(self.name, self.sources)
    if self.timeout is not None and not 0 < self.timeout < math.inf:
      raise ValueError(
        f'the timeout of the reward {self.name!r} must be finite and positive,'
        f' got {self.timeout}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlong:
  """A reward part that penalises long responses; see `overlong_penalty`.

  It depends on lengths only, needs no worker, and is left out of evaluations.

  Attributes:
    max_length: maximal response length in tokens.
    buffer: tokens below the maximum over which the penalty grows.
    name: name in the metrics.
    weight: weight in the total.
    sources: names of the data sources that it scores; empty for all.
  """

  max_length: int
  buffer: int
  name: str = 'overlong'
  weight: float = 1.0
  sources: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    _check_name(self.name)
    _check_weight(self.name, self.weight)
    _check_sources(self.name, self.sources)
    overlong_penalty(0, max_length=self.max_length, buffer=self.buffer)

  @property
  def shaping(self) -> bool:
    """Whether evaluations leave the reward out: always true."""
    return True

  def __call__(self, length: int) -> float:
    """Returns the penalty of a response of `length` tokens."""
    return overlong_penalty(
      length, max_length=self.max_length, buffer=self.buffer
    )


RewardPart: TypeAlias = Reward | Overlong


def overlong_penalty(length: int, *, max_length: int, buffer: int) -> float:
  """Returns a penalty that grows linearly over the last allowed tokens.

    0                                     length ≤ max_length − buffer
    (max_length − buffer − length)/buffer in between
    −1                                    max_length < length

  >>> [overlong_penalty(n, max_length=100, buffer=20) for n in (80, 90, 100)]
  [0.0, -0.5, -1.0]

  Args:
    length: response length in tokens.
    max_length: L_max, above which the penalty is −1.
    buffer: L_cache, the length over which the penalty grows.

  Raises:
    ValueError: if the length is negative, or the buffer is not between 1 and
      `max_length`.

  References:
    Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale,
    arXiv:2503.14476, equation 13.
  """
  if not 1 <= buffer <= max_length:
    raise ValueError(
      'the buffer of overlong responses must lie in [1, max_length], got'
      f' {buffer} of {max_length}'
    )
  if not length >= 0:
    raise ValueError(f'length must be at least 0, got {length}')
  return min(0.0, max(-1.0, (max_length - buffer - length) / buffer))


def format_reward(
  pattern: str,
  *,
  name: str = 'format',
  weight: float = 1.0,
  sources: tuple[str, ...] = (),
) -> Reward:
  """Returns a reward of 1 if a whole response matches a pattern, else 0.

  >>> reward = format_reward(r'<think>.*</think>.*')
  >>> reward.score('<think>2 + 2</think> 4', None)
  1.0

  Args:
    pattern: a regular expression; `.` also matches newlines.
    name: name in the metrics, see `Reward`.
    weight: weight in the total, see `Reward`.
    sources: data sources that it scores, see `Reward`.

  Raises:
    ValueError: if the pattern is not a regular expression.
  """
  try:
    re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'pattern must be a regular expression, got {pattern!r}: {error}'
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
  """Returns 1 if the whole response matches a regular expression, else 0."""
  del reference
  return float(bool(re.fullmatch(pattern, response.strip(), re.DOTALL)))


def _check_weight(name: str, weight: object) -> None:
  """Refuses a weight that is not a number or is too large."""
  if not isinstance(weight, int | float) or not abs(weight) <= MAX_WEIGHT:
    raise ValueError(
      f'the weight of the reward {name!r} must be a number of magnitude'
      f' {MAX_WEIGHT:g} or less, got {weight!r}'
    )


def _check_sources(name: str, sources: object) -> None:
  """Refuses a string, each character of which would be taken for a source."""
  is_sequence = isinstance(sources, tuple | list)
  if not is_sequence or not all(isinstance(each, str) for each in sources):
    raise ValueError(
      f'the sources of the reward {name!r} must be a tuple of texts, got'
      f' {sources!r}'
    )


def _check_name(name: str) -> None:
  """Refuses a name that is not a lower-case word, or is that of the total."""
  if not _NAME.fullmatch(name) or name == TOTAL:
    raise ValueError(
      f'the name of a reward must be a lower-case word other than {TOTAL!r},'
      f' got {name!r}'
    )
