# SPDX-License-Identifier: Apache-2.0
"""Named values and chains of equal values: `x = 5`, `256 + 37 = 293`, `√2 ≈ 1.41`."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import mpmath

from covrl.rewards.math import numeric
from covrl.rewards.math.ast import Node, number
from covrl.rewards.math.canonical import is_unknown
from covrl.rewards.math.evaluate import Undefined
from covrl.rewards.math.quantities import split

# Letters that usually name functions.
_FUNCTION_LETTERS = set('fghpqFGHPEV') | {'\\phi', '\\varphi'}
# Kinds of nodes whose symbols are those of their parts.
_COMPOSITE_KINDS = {
  *('sum', 'product', 'quotient', 'absolute', 'negative', 'tuple', 'call'),
  *('ratio', 'union', 'intersection'),
}
# Functions of a single unknown that make an unsolved equation.
_UNSOLVED_FUNCTIONS = {'ln', 'log', 'lg', 'exp', 'floor', 'ceil'}


class Chain(NamedTuple):
  """Values of a chain of equations.

  Attributes:
    name: the quantity that has the values; `None` for a chain of values only.
    value: the last exact value.
    approximation: a decimal after it, if there is one.
  """

  name: Node | None
  value: Node
  approximation: Node | None = None


def read_chain(
  node: Node, is_same: Callable[[Node, Node], bool | None]
) -> Chain | None:
  """Returns the values of a relation, if it is a true chain of equations.

  Args:
    node: an answer.
    is_same: whether two values are equal, with their percent or degree symbols.

  Returns:
    `None` for any other relation: an unsolved equation, or a false chain.
  """
  if node.kind != 'relation' or not set(node.value) <= {'=', 'approx'}:
    return None
  parts, signs = list(node.parts), list(node.value)
  name = None
  if is_name(parts[0]):
    name, parts = parts[0], parts[1:]
    # In A = B = 5 both have the value 5.
    while len(parts) > 1 and is_name(parts[0]):
      parts = parts[1:]
    signs = signs[len(signs) - len(parts) :]
    if signs[0] == 'approx' and len(parts) == 1:
      return Chain(name, parts[0])
    signs = signs[1:]
  elif len(parts) == 2 and parts[1].kind == 'symbol' and is_name(parts[1]):
    return Chain(parts[1], parts[0])
  # Decimals followed by an ellipsis are rounded, even after an equals sign.
  exact_count = 1
  while exact_count < len(parts) and signs[exact_count - 1] == '=':
    if _has_ellipsis(parts[exact_count]):
      break
    exact_count += 1
  exact, rounded = parts[:exact_count], parts[exact_count:]
  if name is not None:
    # A formula, as in V = πr²h = 16π, has no value of its own.
    exact = [part for part in exact[:-1] if not numeric.symbols(part)] + exact[
      -1:
    ]
  if len(parts) == 1:
    return Chain(name, parts[0])
  if name is None and all(part == parts[0] for part in parts):
    return None
  if not all(map(is_same, exact, exact[1:])):
    return None
  if not rounded:
    return Chain(name, exact[-1])
  if not all(_is_rounding(value, exact[-1]) for value in rounded):
    return None
  approximation = rounded[-1] if _significant_digits(rounded[-1]) > 1 else None
  return Chain(name, exact[-1], approximation)


def is_name(node: Node) -> bool:
  """Returns whether a node names a quantity: x, f(x), AB, a + b, but not 2x.

  A combination of distinct symbols without numbers is a quantity that a problem
  asks for; with numbers it is part of an unsolved equation, as is |x|.
  """
  if node.kind == 'negative' or _is_unsolved(node):
    return False
  names = symbol_names(node)
  return bool(names) and len(set(names)) == len(names) and '' not in names


def _is_unsolved(node: Node) -> bool:
  """Returns whether a node is a function of an unknown, as in |x| = 5."""
  if node.kind == 'absolute' or (
    node.kind == 'call' and node.value in _UNSOLVED_FUNCTIONS
  ):
    return is_unknown(node.parts[0])
  return False


def symbol_names(node: Node) -> list[str]:
  """Returns the symbols of an expression; an empty text for anything else."""
  if node.kind == 'symbol':
    return ['' if node.value in ('e', 'i', '\\pi') else node.value]
  if node.kind == 'text':
    return [node.value]
  if node.kind == 'power' and node.parts[0].kind == 'symbol':
    # An inverse function or matrix.
    is_inverse = node.parts[1].kind == 'negative'
    name = node.parts[0].value
    return [
      name
      if is_inverse and (name in _FUNCTION_LETTERS or name.isupper())
      else ''
    ]
  if node.kind == 'product' and node.value == 'applied':
    function, argument = node.parts
    # A value of a function, f(3) or f'(3).
    letter = str(function.value).rstrip("'").split('_')[0]
    if (
      letter in _FUNCTION_LETTERS
      and numeric.symbols(argument) <= _FUNCTION_LETTERS
    ):
      return symbol_names(function)
  if node.kind in _COMPOSITE_KINDS:
    return [name for part in node.parts for name in symbol_names(part)]
  return ['']


def _is_rounding(decimal: Node, exact: Node) -> bool:
  """Returns whether a decimal is a value, rounded or cut off at its last digit."""
  (decimal_value, decimal_unit), (exact_value, exact_unit) = (
    split(decimal),
    split(exact),
  )
  if decimal_value is not None and exact_value is not None:
    is_symbol = decimal_unit in ('percent', 'degree')
    if decimal_unit == 'percent' and not exact_unit:
      exact_value = Node('product', (exact_value, number(100)))
      decimal_unit = ''
    if decimal_unit == exact_unit or (not is_symbol and not exact_unit):
      decimal, exact = decimal_value, exact_value
  if _has_ellipsis(decimal):
    decimal = decimal.parts[0]
  try:
    rounded, value = numeric.real_value(decimal), numeric.real_value(exact)
  except Undefined:
    return False
  last_place = _last_place(decimal)
  if not last_place:
    return False
  place = mpmath.mpf(last_place.numerator) / last_place.denominator
  error = abs(value) - abs(rounded)
  return (
    rounded * value >= 0
    and -place / 2 <= error < place
    and abs(rounded) >= place
  )


def _has_ellipsis(node: Node) -> bool:
  """Returns whether a node is a decimal that is followed by an ellipsis."""
  return node.kind == 'product' and node.parts[1].value == '\\ldots'


def _significant_digits(decimal: Node) -> int:
  """Returns the number of digits of a decimal, at most 40."""
  value, _ = split(decimal)
  while value is not None and value.kind in ('negative', 'product'):
    value = value.parts[0]
  if value is None or value.kind != 'number':
    return 0
  place = _last_place(value)
  return len(str(int(value.value / place))) if place else 0


def _last_place(node: Node) -> Fraction | None:
  """Returns the place value of the last digit of a decimal, as 1/100 for 0.25."""
  if node.kind == 'negative':
    return _last_place(node.parts[0])
  if node.kind == 'product':
    # 1.23 × 10^4
    first = _last_place(node.parts[0])
    try:
      scale = numeric.real_value(node.parts[1])
    except Undefined:
      return None
    return first and first * Fraction(str(scale))
  if node.kind != 'number':
    return None
  place = Fraction(1)
  for _ in range(40):
    if (node.value / place).denominator == 1:
      return place
    place /= 10
  return None
