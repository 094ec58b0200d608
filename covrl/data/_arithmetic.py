# SPDX-License-Identifier: Apache-2.0
"""Random arithmetic over the whole numbers, written with few parentheses."""

from __future__ import annotations

import random

OPERATORS = ('+', '-', '*', '/')


def random_expression(
  rng: random.Random, *, count: int, min_value: int, max_value: int
) -> tuple[list[int], int, str]:
  """Random numbers joined from left to right by random operators.

  A division that leaves a remainder, whichever of the numbers to come is
  taken, becomes a subtraction.

  >>> random_expression(random.Random(1), count=3, min_value=1, max_value=9)
  ([3, 2, 5], 1, '( 3 + 2 ) / 5')

  Args:
    rng: where the randomness is from.
    count: how many numbers.
    min_value: the smallest number.
    max_value: the largest number.

  Returns:
    The numbers in the order of the expression, its value, and the expression.
  """
  numbers = [rng.randint(min_value, max_value) for _ in range(count)]
  value, text, is_sum = numbers[0], str(numbers[0]), False
  for place in range(1, count):
    operator = rng.choice(OPERATORS)
    if operator == '/' and not _bring_divisor(rng, numbers, place, value):
      operator = '-'
    if operator in '*/' and is_sum:
      text = f'( {text} )'
    text = f'{text} {operator} {numbers[place]}'
    is_sum = operator in '+-'
    value = _apply(operator, value, numbers[place])
  return numbers, value, text


def _bring_divisor(
  rng: random.Random, numbers: list[int], place: int, value: int
) -> bool:
  """Swaps a number that divides `value` into `place`, if any is left."""
  divisors = [
    other for other in range(place, len(numbers)) if value % numbers[other] == 0
  ]
  if not divisors:
    return False
  other = rng.choice(divisors)
  numbers[place], numbers[other] = numbers[other], numbers[place]
  return True


def _apply(operator: str, left: int, right: int) -> int:
  match operator:
    case '+':
      return left + right
    case '-':
      return left - right
    case '*':
      return left * right
    case _:
      return left // right
