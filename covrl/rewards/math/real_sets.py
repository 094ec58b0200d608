# SPDX-License-Identifier: Apache-2.0
"""Equality of sets of real numbers in any notation.

Intervals, unions and differences of them, inequalities, `\\{x | …\\}`, finite sets
and ℝ are described by boundary points. The boundary points of both answers divide
the real line into points and gaps ("cells"); sets are equal if they contain the
same cells.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import TypeAlias

from covrl.rewards.math.ast import Node
from covrl.rewards.math.evaluate import Undefined, Value, is_close
from covrl.rewards.math.numeric import real_value

_INEQUALITIES = {'<', '>', 'le', 'ge', 'ne'}
# The same inequality with its sides exchanged.
_REVERSED_SIGNS = {'<': '>', '>': '<', 'le': 'ge', 'ge': 'le', 'ne': 'ne'}
# Decimal digits that boundary points are computed with, to compare them.
DIGITS = 60

Cells: TypeAlias = frozenset[int]
"""Indices of cells: gap before the first cut (0), the cut (1), next gap (2), …"""


def is_set(node: Node) -> bool:
  """Returns whether a node must be a set of reals (an interval may be a point)."""
  if node.kind in ('union', 'intersection', 'difference', 'reals', 'builder'):
    return True
  if node.kind == 'list':
    return all(part.kind == 'relation' and is_set(part) for part in node.parts)
  return node.kind == 'relation' and all(
    sign in _INEQUALITIES for sign in node.value
  )


def variables(node: Node) -> set[str]:
  """Returns the variables of inequalities."""
  if node.kind == 'relation':
    return {part.value for part in node.parts if part.kind == 'symbol'}
  if node.kind in ('list', 'union', 'intersection'):
    return {name for part in node.parts for name in variables(part)}
  return set()


def same_set(left: Node, right: Node) -> bool | None:
  """Returns whether two answers are the same set of real numbers.

  Args:
    left: tree of one answer.
    right: tree of the other answer.

  Returns:
    `None` if one is not a set, or has boundary points that are not numbers.
  """
  try:
    line = _Line([*_boundary_points(left), *_boundary_points(right)])
    return _cells(left, line) == _cells(right, line)
  except Undefined:
    return None


class _Line:
  """The real line, divided at some numbers."""

  def __init__(self, numbers: list[Value]) -> None:
    cuts: list[Value] = []
    for number in sorted(numbers):
      if not cuts or not is_close(cuts[-1], number, DIGITS):
        cuts.append(number)
    self._cuts = cuts
    self.all: Cells = frozenset(range(2 * len(cuts) + 1))

  def cell_of(self, number: Value) -> int:
    """Returns the cell of a boundary point."""
    position = bisect.bisect_left(self._cuts, number)
    for index in (position, position - 1):
      if 0 <= index < len(self._cuts) and is_close(
        self._cuts[index], number, DIGITS
      ):
        return 2 * index + 1
    raise Undefined('an unknown boundary point')


def _boundary_points(node: Node) -> list[Value]:
  """Returns the boundary points of a set."""
  if node.kind in ('tuple', 'set'):
    return [real_value(part) for part in node.parts if not _infinity_sign(part)]
  if node.kind == 'relation':
    bounds = [part for part in node.parts if part.kind != 'symbol']
    if node.value == ('in',):
      return _boundary_points(node.parts[1])
    return [real_value(part) for part in bounds if not _infinity_sign(part)]
  if node.kind == 'builder':
    return _boundary_points(node.parts[1])
  return [end for part in node.parts for end in _boundary_points(part)]


def _cells(node: Node, line: _Line) -> Cells:
  """Returns the cells that a set contains."""

  def cells(node: Node) -> Cells:
    return _cells(node, line)

  match node.kind:
    case 'reals':
      return line.all
    case 'set':
      return frozenset(line.cell_of(real_value(part)) for part in node.parts)
    case 'tuple' if len(node.parts) == 2:
      low, high = node.parts
      return _half_line(low, node.value[0] == '[', '>', line) & _half_line(
        high, node.value[1] == ']', '<', line
      )
    case 'union':
      return cells(node.parts[0]) | cells(node.parts[1])
    case 'intersection':
      return cells(node.parts[0]) & cells(node.parts[1])
    case 'difference':
      return cells(node.parts[0]) - cells(node.parts[1])
    case 'builder':
      return cells(node.parts[1])
    case 'relation' if node.value == ('in',):
      return cells(node.parts[1])
    case 'relation':
      return _inequality(node, line)
    case 'list':
      return _combine(node.value, list(map(cells, node.parts)))
  raise Undefined(f'a {node.kind} is not a set of numbers')


def _inequality(node: Node, line: _Line) -> Cells:
  """Returns the cells in which a chain such as 1 < x ≤ 3 holds."""
  positions = [i for i, part in enumerate(node.parts) if part.kind == 'symbol']
  if len(positions) != 1 or not set(node.value) <= {*_INEQUALITIES, '='}:
    raise Undefined('an inequality of one variable is required')
  (variable_index,) = positions
  if len(node.parts) > 3 or (len(node.parts) == 3 and variable_index != 1):
    raise Undefined('an inequality of one variable is required')
  cells_in_bounds = line.all
  for index, sign in enumerate(node.value):
    bound = node.parts[index if index < variable_index else index + 1]
    # The sign of the same inequality with the variable on the left.
    sign = _REVERSED_SIGNS.get(sign, sign) if index < variable_index else sign
    if sign == '=':
      cells_in_bounds &= {line.cell_of(real_value(bound))}
    elif sign == 'ne':
      cells_in_bounds -= {line.cell_of(real_value(bound))}
    else:
      is_closed = sign in ('le', 'ge')
      side = '<' if sign in ('<', 'le') else '>'
      cells_in_bounds &= _half_line(bound, is_closed, side, line)
  return cells_in_bounds


def _half_line(bound: Node, is_closed: bool, side: str, line: _Line) -> Cells:
  """Returns the cells above or below a bound."""
  sign = _infinity_sign(bound)
  if sign:
    # All numbers are above −∞ and below ∞.
    return line.all if (sign < 0) == (side == '>') else frozenset()
  cut = line.cell_of(real_value(bound))
  is_on_side: Callable[[int], bool] = cut.__lt__ if side == '>' else cut.__gt__
  cells_in_bounds = frozenset(filter(is_on_side, line.all))
  return cells_in_bounds | {cut} if is_closed else cells_in_bounds


def _combine(separator: str, parts: list[Cells]) -> Cells:
  """The union for `or`; else the intersection, or the union if that is empty."""
  common = frozenset.intersection(*parts)
  if separator == 'or' or not common:
    return frozenset.union(*parts)
  return common


def _infinity_sign(node: Node) -> int:
  """Returns the sign of an infinity; 0 for anything else."""
  if node.kind == 'negative':
    return -_infinity_sign(node.parts[0])
  return int(node.kind == 'infinity')
