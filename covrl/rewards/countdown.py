# SPDX-License-Identifier: Apache-2.0
"""Countdown reward: 1 for a full score by reasoning-gym's scorer, else 0.

reasoning-gym's scorer evaluates any text with sympy, which takes milliseconds, or
for ever for `9**9**9`, and gives 0.01 or 0.05 for wrong answers, which
group-relative advantages would amplify. Therefore only answers that are arithmetic
in the given numbers with the target as value reach the scorer, and only a full
score counts.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

# Characters of the longest answer that is evaluated; sensible ones are far shorter.
MAX_LENGTH = 256

COUNTDOWN_EXAMPLE = ('( 1 + 2 ) * 3', {'numbers': [1, 2, 3], 'target': 9})
"""A response and its reference, to warm workers up."""

_NUMBER = re.compile(r'[0-9]+')
_PERMITTED_TEXT = re.compile(r'[0-9+\-*/() ]*')


def score_countdown(response: str, reference: Mapping[str, Any]) -> float:
  """Scores whether a response reaches the target with all numbers, once each.

  >>> score_countdown('9**9**9', {'numbers': [9, 9, 9], 'target': 9})
  0.0

  Args:
    response: an arithmetic expression.
    reference: `numbers` and `target` of the problem.

  Returns:
    1 for a full score by reasoning-gym's scorer, else 0.
  """
  response = response.strip()
  if not may_be_correct(response, reference):
    return 0.0
  score = _scorer().score_answer(response, {'metadata': dict(reference)})
  return 1.0 if score >= 1.0 else 0.0


def may_be_correct(response: str, reference: Mapping[str, Any]) -> bool:
  """Checks a cheap necessary condition of a full score; never slow, never raises.

  >>> may_be_correct('7 * 3 - 5', {'numbers': [3, 5, 7], 'target': 16})
  True
  >>> may_be_correct('7 * 3', {'numbers': [3, 5, 7], 'target': 21})
  False

  Args:
    response: any text.
    reference: `numbers` and `target` of the problem.

  Returns:
    Whether the response is an expression of `+ - * /`, parentheses and exactly
    the given numbers, whose exact value equals the target up to a tolerance
    larger than the scorer's.
  """
  if len(response) > MAX_LENGTH or not _PERMITTED_TEXT.fullmatch(response):
    return False
  used_numbers = [int(digits) for digits in _NUMBER.findall(response)]
  if sorted(used_numbers) != sorted(reference['numbers']):
    return False
  try:
    expression = ast.parse(response, mode='eval').body
    error = abs(_value(expression) - reference['target'])
  except (SyntaxError, ValueError, ZeroDivisionError):
    return False
  return error <= Fraction(1, 1000) * max(1, abs(reference['target']))


def _value(node: ast.expr) -> Fraction:
  """Returns the exact value of an expression of plain arithmetic."""
  match node:
    case ast.Constant(value=int(value)):
      return Fraction(value)
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      return -_value(operand)
    case ast.UnaryOp(op=ast.UAdd(), operand=operand):
      return _value(operand)
    case ast.BinOp(left=left, op=ast.Add(), right=right):
      return _value(left) + _value(right)
    case ast.BinOp(left=left, op=ast.Sub(), right=right):
      return _value(left) - _value(right)
    case ast.BinOp(left=left, op=ast.Mult(), right=right):
      return _value(left) * _value(right)
    case ast.BinOp(left=left, op=ast.Div(), right=right):
      return _value(left) / _value(right)
    case _:
      raise ValueError(
        f'an expression must be plain arithmetic, got {ast.dump(node)}'
      )


@functools.cache
def _scorer() -> Any:
  """Returns reasoning-gym's Countdown data set, which has the scorer."""
  import reasoning_gym

  return reasoning_gym.create_dataset('countdown', seed=0, size=1)
