# SPDX-License-Identifier: Apache-2.0
"""Outcome of scoring a response: a score, or the reason for its absence."""

from __future__ import annotations

import dataclasses
import enum
import math

MAX_SCORE = 1e15
"""Largest magnitude of a score; advantages square rewards in float32."""


class Status(enum.Enum):
  """Status of a scored response.

  With a score, caused by the response: `SCORED`, `WRONG` (valid but incorrect),
  `UNPARSABLE` (without an answer), `TIMEOUT` and `CRASH` (of its program).

  Without a score (NaN), so that the response is masked: `TIMEOUT` or `CRASH` of
  the scorer, `INVALID` (the scorer did not return a number, or one beyond
  `MAX_SCORE`) and `INFRASTRUCTURE` (no working judge).
  """

  SCORED = 'scored'
  WRONG = 'wrong'
  UNPARSABLE = 'unparsable'
  TIMEOUT = 'timeout'
  CRASH = 'crash'
  INVALID = 'invalid'
  INFRASTRUCTURE = 'infrastructure'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A response's score and its status.

  Attributes:
    score: the score; NaN if the response could not be scored.
    status: see `Status`.
    detail: a sentence for the log; may be empty.
  """

  score: float
  status: Status
  detail: str = ''

  @property
  def has_score(self) -> bool:
    """Whether the response has a score."""
    return not math.isnan(self.score)

  def checked(self) -> Outcome:
    """Returns the outcome, `INVALID` if its score cannot be used.

    A status that says that there is no score has none, whatever the number.

    >>> Outcome(math.inf, Status.SCORED).checked().status
    <Status.INVALID: 'invalid'>
    >>> Outcome(0.0, Status.INFRASTRUCTURE, 'no judge').checked().score
    nan
    """
    if self.status in (Status.INVALID, Status.INFRASTRUCTURE):
      return dataclasses.replace(self, score=math.nan)
    is_scored = self.status in (Status.SCORED, Status.WRONG, Status.UNPARSABLE)
    if abs(self.score) <= MAX_SCORE or not (self.has_score or is_scored):
      return self
    detail = (
      f'a score must be a number of magnitude {MAX_SCORE:g} or less, got '
      f'{self.score:g}'
    )
    return Outcome(math.nan, Status.INVALID, detail)
