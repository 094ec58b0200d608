# SPDX-License-Identifier: Apache-2.0
"""Random arithmetic expressions over integers, in a canonical form."""

from __future__ import annotations

import random
from typing import NamedTuple

OPERATORS = ('+', '-', '*', '/')


class _Term(NamedTuple):
  """An operand of a sum or product, with the operator before it."""

  operator: str
  value: int
  text: str


class Expression:
  """A chain of operations, written in a canonical order of its operands.

  Sums begin with the added terms, the largest first, and products with the
  parenthesised factors, so that a policy trained on it need not guess an order.

  >>> chain = Expression(3)
  >>> for operator, number in [('+', 7), ('*', 2), ('-', 5), ('+', 30)]:
  ...   chain.apply(operator, number)
  >>> chain.value, str(chain)
  (45, '30 + ( 7 + 3 ) * 2 - 5')

  Attributes:
    value: value of the expression.
  """

  def __init__(self, number: int) -> None:
    self.value = number
    self._operators = '+-'
    self._terms = [_Term('+', number, str(number))]

  def apply(self, operator: str, number: int) -> None:
    """Appends an operation: `(chain) operator number`."""
    operators = '+-' if operator in '+-' else '*/'
    if operators != self._operators:
      text = str(self)
      if operators == '*/' and len(self._terms) > 1:
        text = f'( {text} )'
      self._terms = [_Term(operators[0], self.value, text)]
      self._operators = operators
    self._terms.append(_Term(operator, number, str(number)))
    self.value = _apply(operator, self.value, number)

  def __str__(self) -> str:
    """The expression with as few parentheses as possible."""
    main_operator = self._operators[0]
    sorted_terms = sorted(
      self._terms,
      key=lambda term: (
        term.operator != main_operator,
        main_operator == '*' and not term.text.startswith('('),
        -term.value,
      ),
    )
    return ' '.join(f'{term.operator} {term.text}' for term in sorted_terms)[2:]


def random_expression(
  rng: random.Random, *, count: int, min_value: int, max_value: int
) -> tuple[list[int], int, str]:
  """Draws random numbers and joins them from left to right by random operators.

  A division takes one of the remaining numbers that divides the value so far;
  without one, it becomes a subtraction.

  >>> random_expression(random.Random(1), count=3, min_value=1, max_value=9)
  ([3, 2, 5], 1, '( 3 + 2 ) / 5')

  Args:
    rng: random number generator.
    count: number of numbers.
    min_value: smallest number.
    max_value: largest number.

  Returns:
    The numbers, the expression's value, and the expression in canonical form.
  """
  numbers = [rng.randint(min_value, max_value) for _ in range(count)]
  expression = Expression(numbers[0])
  for index in range(1, count):
    operator = rng.choice(OPERATORS)
    if operator == '/' and not _swap_in_divisor(
      rng, numbers, index, expression.value
    ):
      operator = '-'
    expression.apply(operator, numbers[index])
  return numbers, expression.value, str(expression)


def _swap_in_divisor(
  rng: random.Random, numbers: list[int], index: int, value: int
) -> bool:
  """Swaps a remaining divisor of `value` to `index`; false without one."""
  divisor_indices = [
    divisor_index
    for divisor_index in range(index, len(numbers))
    if value % numbers[divisor_index] == 0
  ]
  if not divisor_indices:
    return False
  divisor_index = rng.choice(divisor_indices)
  numbers[index], numbers[divisor_index] = (
    numbers[divisor_index],
    numbers[index],
  )
  return True


def _apply(operator: str, left: int, right: int) -> int:
  """The result of one operation; divisions have no remainder."""
  match operator:
    case '+':
      return left + right
    case '-':
      return left - right
    case '*':
      return left * right
    case _:
      return left // right
