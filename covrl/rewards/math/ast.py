# SPDX-License-Identifier: Apache-2.0
"""Syntax trees of answers, and constructors of nodes."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from typing import Any

MAX_DIGITS = 1000  # longest decimal


class ParseError(ValueError):
  """An answer is outside of the supported grammar."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
  """A node of a syntax tree.

  Attributes:
    kind: node type, such as 'number', 'sum', 'tuple' or 'relation'.
    parts: child nodes.
    value: other data: a number, a name, brackets or relation signs.
  """

  kind: str
  parts: tuple[Node, ...] = ()
  value: Any = None


def number(value: Fraction | int) -> Node:
  """Returns a number node."""
  return Node('number', (), Fraction(value))


def with_sign(sign: str, node: Node) -> Node:
  """Returns a node with a sign applied."""
  return Node('negative', (node,)) if sign == '-' else node


def make_sum(terms: list[Node]) -> Node:
  """Returns the sum of terms; 0 without any."""
  if not terms:
    return number(0)
  return terms[0] if len(terms) == 1 else Node('sum', tuple(terms))


def juxtaposed(left: Node, right: Node) -> Node:
  r"""Returns the product of adjacent factors; 1\frac{1}{2} is one number."""
  if right.kind == 'number' and left.kind in ('number', 'negative'):
    raise ParseError('two adjacent numbers')
  if left.kind == 'number' and right.kind in ('percent', 'degree'):
    return Node(right.kind, (juxtaposed(left, right.parts[0]),))
  if left.kind == 'number' and right.kind == 'quotient':
    top, bottom = (part.value for part in right.parts)
    numbers = all(part.kind == 'number' for part in right.parts)
    if numbers and left.value.denominator == 1 and 0 < top < bottom:
      return number(left.value + Fraction(top) / bottom)
  return Node('product', (left, right))


def is_quantity(node: Node) -> bool:
  """Returns whether a node is a number with a unit, or a sum of such numbers."""
  if node.kind in ('product', 'sum'):
    last = node.parts[-1]
    has_value = node.kind == 'sum' or node.parts[0].kind != 'text'
    is_unit = last.kind == 'text' and node.kind == 'product'
    return has_value and (is_unit or is_quantity(last))
  return node.kind == 'degree'


def compound(left: Node, right: Node) -> Node:
  """Returns a quantity of several units: 1 hour 30 minutes, 36° 52′."""
  if not is_quantity(right):
    return Node('product', (left, right))
  return Node(
    'sum', (left, *(right.parts if right.kind == 'sum' else (right,)))
  )


def determinant(matrix: Node) -> Node:
  """Returns the determinant of a square matrix."""
  rows, columns = matrix.value
  if rows != columns:
    raise ParseError('a determinant of a matrix that is not square')
  return Node('determinant', matrix.parts, rows)


def in_base(digits: Node, base: Node) -> Node:
  """Returns a number whose base is a subscript."""
  whole = all(_is_whole(node) for node in (digits, base))
  if not whole or not 2 <= base.value <= 36:
    raise ParseError('the subscript of a number must be a base')
  if base.value == 10:
    return digits
  return Node('based', (), (str(digits.value), int(base.value)))


def transpose(matrix: Node) -> Node:
  """Returns the transposed matrix."""
  rows, columns = matrix.value
  cells = tuple(
    matrix.parts[row * columns + column]
    for column in range(columns)
    for row in range(rows)
  )
  return Node('matrix', cells, (columns, rows))


def is_number(node: Node, value: int) -> bool:
  """Returns whether a node is a given number, sign included."""
  if node.kind == 'negative':
    return is_number(node.parts[0], -value)
  return node.kind == 'number' and node.value == value


def _is_whole(node: Node) -> bool:
  """Returns whether a node is an integer."""
  return node.kind == 'number' and node.value.denominator == 1


def checked_fraction(top: int, bottom: int) -> Fraction:
  """Returns a fraction; raises `ParseError` for a zero denominator."""
  if not bottom:
    raise ParseError('a zero denominator')
  return Fraction(top, bottom)


def parse_decimal(text: str) -> Fraction:
  """Returns the exact value of a decimal, with repeating digits if any."""
  if len(text) > MAX_DIGITS:
    raise ParseError('too many digits')
  match = re.fullmatch(r'(\d*)\.(\d*)\((\d+)\)', text)
  if not match:
    return Fraction(text.rstrip('.') or '0')
  whole, fixed, repeated = match.groups()
  value = int(whole + fixed + repeated or '0') - int(whole + fixed or '0')
  return Fraction(value, 10 ** len(fixed) * (10 ** len(repeated) - 1))
