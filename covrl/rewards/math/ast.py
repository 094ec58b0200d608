# SPDX-License-Identifier: Apache-2.0
"""Trees of answers, and how their parts are put together."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from typing import Any

MAX_DIGITS = 1000


class Unreadable(ValueError):
  """An answer is beyond what can be read here."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
  """A part of an answer.

  Attributes:
    kind: what it is, such as 'number', 'sum', 'tuple' or 'relation'.
    parts: what it is made of.
    value: what is not a part: a number, a name, brackets, relation signs.
  """

  kind: str
  parts: tuple[Node, ...] = ()
  value: Any = None


def number(value: Fraction | int) -> Node:
  """A number as a node."""
  return Node('number', (), Fraction(value))


def signed(sign: str, node: Node) -> Node:
  """A node behind a sign."""
  return Node('negative', (node,)) if sign == '-' else node


def total(terms: list[Node]) -> Node:
  """Several terms, or one, or none."""
  if not terms:
    return number(0)
  return terms[0] if len(terms) == 1 else Node('sum', tuple(terms))


def beside(left: Node, right: Node) -> Node:
  r"""Two factors without a sign between them; 1\frac{1}{2} is one number."""
  if right.kind == 'number' and left.kind in ('number', 'negative'):
    raise Unreadable('two numbers beside each other')
  if left.kind == 'number' and right.kind in ('percent', 'degree'):
    return Node(right.kind, (beside(left, right.parts[0]),))
  if left.kind == 'number' and right.kind == 'quotient':
    top, bottom = (part.value for part in right.parts)
    numbers = all(part.kind == 'number' for part in right.parts)
    if numbers and left.value.denominator == 1 and 0 < top < bottom:
      return number(left.value + Fraction(top) / bottom)
  return Node('product', (left, right))


def based(digits: Node, base: Node) -> Node:
  """A number with its base as subscript."""
  whole = all(_is_whole(node) for node in (digits, base))
  if not whole or not 2 <= base.value <= 36:
    raise Unreadable('a subscript of a number is no base')
  if base.value == 10:
    return digits
  return Node('based', (), (str(digits.value), int(base.value)))


def transposed(matrix: Node) -> Node:
  """Rows for columns."""
  rows, columns = matrix.value
  cells = tuple(
    matrix.parts[row * columns + column]
    for column in range(columns)
    for row in range(rows)
  )
  return Node('matrix', cells, (columns, rows))


def is_number(node: Node, value: int) -> bool:
  """Whether a node is a certain number, with its sign."""
  if node.kind == 'negative':
    return is_number(node.parts[0], -value)
  return node.kind == 'number' and node.value == value


def _is_whole(node: Node) -> bool:
  return node.kind == 'number' and node.value.denominator == 1


def fraction(top: int, bottom: int) -> Fraction:
  """A fraction that may be none."""
  if not bottom:
    raise Unreadable('a fraction of nought')
  return Fraction(top, bottom)


def decimal(text: str) -> Fraction:
  """The exact value of a decimal, its digits perhaps repeating."""
  if len(text) > MAX_DIGITS:
    raise Unreadable('too many digits')
  match = re.fullmatch(r'(\d*)\.(\d*)\((\d+)\)', text)
  if not match:
    return Fraction(text.rstrip('.') or '0')
  whole, fixed, repeated = match.groups()
  value = int(whole + fixed + repeated or '0') - int(whole + fixed or '0')
  return Fraction(value, 10 ** len(fixed) * (10 ** len(repeated) - 1))
