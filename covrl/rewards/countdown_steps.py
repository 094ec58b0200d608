# SPDX-License-Identifier: Apache-2.0
"""Reward of Countdown with written steps: 1 if every step is right, else 0."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

# Characters of the longest response that is read; sensible ones are far shorter.
MAX_LENGTH = 512

COUNTDOWN_STEPS_EXAMPLE = (
  '2 + 1 = 3 , 3 * 3 = 9',
  {'numbers': [1, 2, 3], 'target': 9},
)
"""A response and its reference, to warm workers up."""

_STEP = re.compile(
  r' *([0-9]{1,9}) *([+\-*/]) *([0-9]{1,9}) *= *([0-9]{1,9}) *'
)


def score_countdown_steps(response: str, reference: Mapping[str, Any]) -> float:
  """Scores whether written steps lead from the numbers to the target.

  A step combines two available numbers with an operator, states the result, and
  replaces the two by it. At the end only the target may be left. Every result must
  be a non-negative integer; a division must have no remainder.

  >>> reference = {'numbers': [3, 7, 4, 2], 'target': 42}
  >>> score_countdown_steps('3 + 7 = 10 , 10 * 4 = 40 , 40 + 2 = 42', reference)
  1.0
  >>> score_countdown_steps('3 + 7 = 10 , 10 * 4 = 42', reference)
  0.0

  Args:
    response: steps `a + b = c`, separated by commas; spaces are ignored.
    reference: `numbers` and `target` of the problem.

  Returns:
    1 if every step is right, uses available numbers, and only the target is
    left, else 0.
  """
  if len(response) > MAX_LENGTH:
    return 0.0
  available = Counter(reference['numbers'])
  for text in response.split(','):
    match = _STEP.fullmatch(text)
    if match is None:
      return 0.0
    left, operator, right, result = match.groups()
    a, b, c = int(left), int(right), int(result)
    operands = Counter((a, b))
    if not operands <= available or not _is_correct(a, operator, b, c):
      return 0.0
    available = available - operands + Counter((c,))
  return 1.0 if available == Counter((reference['target'],)) else 0.0


def _is_correct(a: int, operator: str, b: int, c: int) -> bool:
  """Returns whether `a operator b` equals c."""
  match operator:
    case '+':
      return a + b == c
    case '-':
      return a - b == c
    case '*':
      return a * b == c
    case _:
      return b != 0 and b * c == a
