# SPDX-License-Identifier: Apache-2.0
"""Sets of integers in builder form, and sequences with dots."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

from covrl.rewards.math import ast
from covrl.rewards.math.ast import Node
from covrl.rewards.math.evaluate import Undefined, evaluate

# Larger sets are described by first element, step and last element.
MAX_ELEMENTS = 64
DOTS = Node('symbol', (), '\\ldots')
# The sign of the same relation with its sides exchanged.
_REVERSED_SIGNS = {'<': '>', '>': '<', 'le': 'ge', 'ge': 'le', '=': '='}


def expand_dots(items: Sequence[Node]) -> list[Node] | None:
  """Returns the elements of `1, 2, …, 10`, or one 'progression' node.

  Returns:
    `None` if there are no dots, or the elements are not a progression.
  """
  if items.count(DOTS) != 1:
    return None
  position = list(items).index(DOTS)
  before, after = items[:position], items[position + 1 :]
  try:
    leading = list(map(_rational, before))
  except Undefined:
    return None
  step = _common_step(leading) if len(leading) > 1 else Fraction(1)
  if leading and not step:
    return _geometric_elements(leading, after)
  if not leading or not step:
    return None
  if not after:
    end = Node('infinity')
    if step < 0:
      end = Node('negative', (end,))
    return [progression(leading[0], step, end)]
  try:
    trailing = list(map(_rational, after))
  except Undefined:
    return (
      [progression(leading[0], step, after[0])] if len(after) == 1 else None
    )
  if _common_step(trailing) not in (None, step):
    return None
  return _progression_elements(leading[0], step, trailing[-1])


def _geometric_elements(
  leading: list[Fraction], after: Sequence[Node]
) -> list[Node] | None:
  """Returns the elements of 1, 2, 4, …, 1024."""
  if len(leading) < 3 or 0 in leading or len(after) != 1:
    return None
  ratios = {later / value for value, later in itertools.pairwise(leading)}
  try:
    last = _rational(after[0])
  except Undefined:
    return None
  if len(ratios) != 1:
    return None
  (ratio,) = ratios
  terms = [leading[0]]
  while terms[-1] != last:
    if len(terms) == MAX_ELEMENTS:
      return None
    terms.append(terms[-1] * ratio)
  return [ast.number(value) for value in terms]


def progression(first: Fraction, step: Fraction, last: Node) -> Node:
  """Returns a progression whose last element may be infinite or symbolic."""
  return Node('progression', (ast.number(first), ast.number(step), last))


def integer_solutions(
  name: str, conditions: Sequence[Node], expression: Node, lowest: int | None
) -> list[Node] | None:
  """Returns the values of an expression for the integers within bounds.

  Args:
    name: the integer variable.
    conditions: relations of the variable with numbers.
    expression: expression in the variable.
    lowest: smallest value of the variable, if there is any.

  Returns:
    `None` if a condition is of another kind, or nothing bounds the integers.
  """
  low: Fraction | int | None = lowest
  high: Fraction | int | None = None
  excluded: set[Fraction] = set()
  try:
    for condition in conditions:
      for sign, bound in _bounds(name, condition):
        is_integer = bound.denominator == 1
        if sign == 'ne':
          excluded.add(bound)
        elif sign in ('>', 'ge', '='):
          nearest_integer = (
            math.floor(bound) + 1 if sign == '>' else math.ceil(bound)
          )
          low = nearest_integer if low is None else max(low, nearest_integer)
        if sign in ('<', 'le', '='):
          nearest_integer = (
            math.ceil(bound) - 1 if sign == '<' else math.floor(bound)
          )
          high = nearest_integer if high is None else min(high, nearest_integer)
        if sign == '=' and not is_integer:
          return []
    return _expression_values(name, expression, low, high, excluded)
  except Undefined:
    return None


def _expression_values(
  name: str,
  expression: Node,
  low: Fraction | int | None,
  high: Fraction | int | None,
  excluded: set[Fraction],
) -> list[Node] | None:
  """Returns the values of an expression for all integers within bounds."""

  def value_at(value: Fraction | int) -> Fraction:
    return _rational_at(expression, {name: Fraction(value)})

  if low is not None and high is not None and high - low < MAX_ELEMENTS:
    return [
      ast.number(value_at(value))
      for value in range(int(low), int(high) + 1)
      if value not in excluded
    ]
  start = low if low is not None else high
  if start is None or excluded:
    return None
  direction = 1 if low is not None else -1
  step = value_at(start + direction) - value_at(start)
  if any(
    value_at(start + direction * n) - value_at(start) != n * step
    for n in range(2, 6)
  ):
    return None
  if low is not None and high is not None:
    return _progression_elements(value_at(low), step, value_at(high))
  end = Node('infinity')
  if step < 0:
    end = Node('negative', (end,))
  return [progression(value_at(start), step, end)]


def _progression_elements(
  first: Fraction, step: Fraction, last: Fraction
) -> list[Node] | None:
  """Returns a finite progression: its elements, or one 'progression' node.

  Returns:
    The node if there are more than `MAX_ELEMENTS` elements; `None` if `last` is not
    one of them.
  """
  count = (last - first) / step + 1
  if count.denominator != 1 or count < 1:
    return None
  if count > MAX_ELEMENTS:
    ascending = (first, step, last) if step > 0 else (last, -step, first)
    return [progression(ascending[0], ascending[1], ast.number(ascending[2]))]
  return [ast.number(first + index * step) for index in range(int(count))]


def _bounds(name: str, condition: Node) -> list[tuple[str, Fraction]]:
  """Returns signs and bounds of 1 ≤ x < 3, with the variable on the left."""
  symbol = Node('symbol', (), name)
  parts = condition.parts
  if condition.kind != 'relation' or parts.count(symbol) != 1:
    raise Undefined('not a bound of the variable')
  position = parts.index(symbol)
  if not 1 <= len(parts) - 1 <= 2 or (len(parts) == 3 and position != 1):
    raise Undefined('not a bound of the variable')
  bounds: list[tuple[str, Fraction]] = []
  for index, sign in enumerate(condition.value):
    if sign not in (*_REVERSED_SIGNS, 'ne'):
      raise Undefined('not a bound of the variable')
    bound = parts[index if index < position else index + 1]
    if bound.kind == 'infinity' or bound == Node(
      'negative', (Node('infinity'),)
    ):
      continue
    flipped = _REVERSED_SIGNS.get(sign, sign) if index < position else sign
    bounds.append((str(flipped), _rational(bound)))
  return bounds


def _common_step(values: Sequence[Fraction]) -> Fraction | None:
  """Returns the difference of neighbours, if they are all equal."""
  steps = {later - value for value, later in itertools.pairwise(values)}
  return steps.pop() if len(steps) == 1 else None


def _rational(node: Node) -> Fraction:
  return _rational_at(node, {})


def _rational_at(node: Node, point: dict[str, Fraction]) -> Fraction:
  """Returns the value of an expression at a point, which must be rational."""
  value = evaluate(node, point, 60)
  if not isinstance(value, Fraction):
    raise Undefined('not a rational number')
  return value
