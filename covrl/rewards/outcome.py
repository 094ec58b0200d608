# SPDX-License-Identifier: Apache-2.0
"""What became of a response: a score, or why there is none."""

from __future__ import annotations

import dataclasses
import enum
import math


class Status(enum.Enum):
  """How a response was judged.

  The response's own doing, which has a score: `SCORED`, `WRONG` (understood, and
  not right), `UNPARSABLE` (nothing in it to judge), `TIMEOUT` and `CRASH` (a
  program that ran too long, or failed).

  A failure of the judging: `TIMEOUT` or `CRASH` of a scorer, `INVALID` (it
  returned something else than a finite number), `INFRASTRUCTURE` (there was no
  judge to ask). The score is NaN then, and the response is masked.
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
  """A response's score, and how it came by it.

  Attributes:
    score: of the response; NaN if it could not be judged, so that nothing can
      be learnt from it.
    status: how it was judged.
    detail: a sentence for the log; may be empty.
  """

  score: float
  status: Status
  detail: str = ''

  @property
  def is_judged(self) -> bool:
    """Whether there is a score to learn from."""
    return not math.isnan(self.score)
