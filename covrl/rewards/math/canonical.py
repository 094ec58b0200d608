# SPDX-License-Identifier: Apache-2.0
"""Canonical form of syntax trees, in which answers are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from covrl.rewards.math import ast
from covrl.rewards.math.ast import Node

_NUMBER_SETS = {'\\mathbb{Z}', '\\mathbb{N}', '\\mathbb{Q}', '\\mathbb{C}'}
_FLIPPED = {'<': '>', '>': '<', 'le': 'ge', 'ge': 'le'}
_EMPTY_SET = {'no solution', 'no solutions', 'empty set', 'the empty set'}
_ALL_REALS = {'all real numbers', 'all reals', 'real numbers', 'all real x'}


def canonicalize(node: Node) -> Node:
  """Expands abbreviations of an answer.

  `x = ±1` and `x = 1, −1` become `x = 1, x = −1`; `x ∈ S` becomes S; conditions
  such as `k ∈ ℤ` are dropped; factors are moved into matrices and tuples.

  Args:
    node: the tree of a whole answer.
  """
  node = _rewrite(node)
  items = [item for part in _items(node) for item in _expand_plus_minus(part)]
  if len(items) == 1:
    (item,) = items
    return _without_membership(item)
  stated = [item for item in items if not _is_condition(item)]
  separator = node.value if node.kind == 'list' else 'or'
  kept = _name_unnamed(stated or items)
  return kept[0] if len(kept) == 1 else Node('list', tuple(kept), separator)


def _items(node: Node) -> Iterator[Node]:
  """Yields the elements of (nested) lists, or the node itself."""
  if node.kind != 'list':
    yield node
    return
  for part in node.parts:
    yield from _items(part)


def _without_membership(node: Node) -> Node:
  """Returns the set of `x ∈ S`, or the node itself."""
  if node.value != ('in',) or _is_condition(node):
    return node
  return node.parts[1]


def _is_condition(node: Node) -> bool:
  """Returns whether a node is a condition such as k ∈ ℤ."""
  return (
    node.kind == 'relation'
    and node.value[-1] == 'in'
    and str(node.parts[-1].value).split('_')[0].split('^')[0] in _NUMBER_SETS
  )


def _name_unnamed(items: list[Node]) -> list[Node]:
  """Applies the name of an equation to the following unnamed elements."""
  found: list[Node] = []
  name: Node | None = None
  for item in items:
    if item.kind == 'relation':
      name = item.parts[0] if item.value == ('=',) else None
    elif name is not None and name.kind == 'symbol':
      item = Node('relation', (name, item), ('=',))
    found.append(item)
  return found


def _expand_plus_minus(node: Node) -> list[Node]:
  """Returns both readings of ±, which hold for all signs of the answer."""
  if not _has(node, 'plus_minus'):
    return [node]
  return [_choose_sign(node, '\\pm'), _choose_sign(node, '\\mp')]


def _choose_sign(node: Node, plus: str) -> Node:
  """Replaces ± and ∓: `plus` is the sign that means plus."""
  parts = tuple(_choose_sign(part, plus) for part in node.parts)
  if node.kind != 'plus_minus':
    return dataclasses.replace(node, parts=parts)
  first, second = parts
  if node.value != plus:
    second = Node('negative', (second,))
  if first == ast.number(0):
    return second
  return Node('sum', (first, second))


def _has(node: Node, kind: str) -> bool:
  return node.kind == kind or any(_has(part, kind) for part in node.parts)


def _rewrite(node: Node) -> Node:
  """Rewrites words for sets, single-element brackets and scaled rows."""
  parts = tuple(map(_rewrite, node.parts))
  node = dataclasses.replace(node, parts=parts)
  match node.kind:
    case 'text' if node.value.lower().rstrip('.!') in _EMPTY_SET:
      return Node('set')
    case 'text' if node.value.lower().rstrip('.!') in _ALL_REALS:
      return Node('reals')
    case 'tuple' if len(parts) == 1:
      return parts[0]
    case 'cases' if node.value[1] == 1:
      return Node('list', parts, 'and')
    case 'relation' if len(parts) == 2:
      return _without_absolute_value(node)
    case 'negative' if parts[0].kind in ('matrix', 'tuple'):
      return _scale(ast.number(-1), parts[0])
    case 'product' if parts[1].kind in ('matrix', 'tuple'):
      return _scale(*parts) if _is_scalar(parts[0]) else node
    case 'quotient' if parts[0].kind in ('matrix', 'tuple'):
      inverse = Node('quotient', (ast.number(1), parts[1]))
      return _scale(inverse, parts[0])
  return node


def _without_absolute_value(relation: Node) -> Node:
  """Rewrites |x| < 3 as −3 < x < 3, and |x| > 3 as x < −3 or x > 3."""
  (left, right), (sign,) = relation.parts, relation.value
  if right.kind == 'absolute' and sign in _FLIPPED:
    left, right, sign = right, left, _FLIPPED[sign]
  if left.kind != 'absolute' or left.parts[0].kind != 'symbol':
    return relation
  name, low = left.parts[0], Node('negative', (right,))
  if sign in ('<', 'le'):
    return Node('relation', (low, name, right), (sign, sign))
  if sign in ('>', 'ge'):
    below = Node('relation', (name, low), (_FLIPPED[sign],))
    above = Node('relation', (name, right), (sign,))
    return Node('list', (below, above), 'or')
  return relation


def _is_scalar(node: Node) -> bool:
  return not any(_has(node, kind) for kind in ('matrix', 'tuple', 'text'))


def _scale(factor: Node, rows: Node) -> Node:
  """Multiplies every element of a matrix or tuple by a factor."""
  parts = tuple(Node('product', (factor, part)) for part in rows.parts)
  return dataclasses.replace(rows, parts=parts)
