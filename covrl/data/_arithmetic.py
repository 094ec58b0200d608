# SPDX-License-Identifier: Apache-2.0
"""Random arithmetic over the whole numbers, written in one canonical way."""

from __future__ import annotations

import random
from typing import NamedTuple

OPERATORS = ('+', '-', '*', '/')


class _Term(NamedTuple):
  """A part of a sum or of a product, with the operator before it."""

  operator: str
  value: int
  text: str


class Expression:
  """A chain of operations, in the canonical one of its many orders.

  Sums begin with what is added, the largest first, and products with what is
  in parentheses: a policy that imitates it has no order to guess.

  >>> chain = Expression(3)
  >>> for operator, number in [('+', 7), ('*', 2), ('-', 5), ('+', 30)]:
  ...   chain.apply(operator, number)
  >>> chain.value, str(chain)
  (45, '30 + ( 7 + 3 ) * 2 - 5')

  Attributes:
    value: of the expression.
  """

  def __init__(self, number: int) -> None:
    self.value = number
    self._operators = '+-'
    self._terms = [_Term('+', number, str(number))]

  def apply(self, operator: str, number: int) -> None:
    """Continues the chain: the whole of it, then `operator number`."""
    operators = '+-' if operator in '+-' else '*/'
    if operators != self._operators:
      whole = str(self)
      if operators == '*/' and len(self._terms) > 1:
        whole = f'( {whole} )'
      self._terms = [_Term(operators[0], self.value, whole)]
      self._operators = operators
    self._terms.append(_Term(operator, number, str(number)))
    self.value = _apply(operator, self.value, number)

  def __str__(self) -> str:
    """The expression, with few parentheses."""
    first = self._operators[0]
    ordered = sorted(
      self._terms,
      key=lambda term: (
        term.operator != first,
        first == '*' and not term.text.startswith('('),
        -term.value,
      ),
    )
    return ' '.join(f'{term.operator} {term.text}' for term in ordered)[2:]


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
    The numbers, the expression's value, and the expression in canonical form.
  """
  numbers = [rng.randint(min_value, max_value) for _ in range(count)]
  expression = Expression(numbers[0])
  for place in range(1, count):
    operator = rng.choice(OPERATORS)
    if operator == '/' and not _bring_divisor(
      rng, numbers, place, expression.value
    ):
      operator = '-'
    expression.apply(operator, numbers[place])
  return numbers, expression.value, str(expression)


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
