# SPDX-License-Identifier: Apache-2.0
"""Outcome of scoring a response: a score, or the reason for its absence."""

from __future__ import annotations

import dataclasses
import enum
import math


class Status(enum.Enum):
  """Status of a scored response.

  With a score, caused by the response: `SCORED`, `WRONG` (valid but incorrect),
  `UNPARSABLE` (without an answer), `TIMEOUT` and `CRASH` (of its program).

  Without a score (NaN), so that the response is masked: `TIMEOUT` or `CRASH` of
  the scorer, `INVALID` (the scorer did not return a finite number) and
  `INFRASTRUCTURE` (no working judge).
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
  def is_judged(self) -> bool:
    """Whether the response has a score."""
    return not math.isnan(self.score)
