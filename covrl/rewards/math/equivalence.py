# SPDX-License-Identifier: Apache-2.0
"""Equivalence of an answer and a reference.

The comparison is symmetric. A name (`x = 5` and `5`), a unit, a base and a percent
sign may be omitted; a relation never equals a number; tuples, sets and matrices
differ from each other, and order matters in tuples and matrices only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from covrl.rewards.math import numeric, real_sets
from covrl.rewards.math.ast import Node
from covrl.rewards.math.canonical import canonicalize
from covrl.rewards.math.compare_answers import same_quantities

MAX_ELEMENTS = 64

Verdict: TypeAlias = bool | None
"""Whether two answers agree; `None` if this cannot be decided."""

_FUNCTIONS = set('fghpqFGHPEV') | {'\\phi', '\\varphi'}
_COMBINATIONS = {
  *('sum', 'product', 'quotient', 'absolute', 'negative', 'tuple', 'call')
}
_ORDERED = ('tuple', 'matrix', 'vmatrix', 'cases', 'congruence')


class _Assignment(NamedTuple):
  """A name and its value."""

  name: Node
  value: Node


def equivalent(reference: Node, answer: Node) -> Verdict:
  """Returns whether two answers are equivalent.

  Args:
    reference: tree of the correct answer.
    answer: tree of the answer to grade.
  """
  return _same(canonicalize(reference), canonicalize(answer))


def _same(left: Node, right: Node) -> Verdict:
  if left == right:
    return True
  one, other = _assignment(left), _assignment(right)
  if one or other:
    return _same_named((left, one), (right, other))
  if real_sets.is_set(left) or real_sets.is_set(right):
    return _same_sets(left, right)
  if 'relation' in (left.kind, right.kind):
    return _same_relations(left, right)
  if {left.kind, right.kind} & {'set', 'list'}:
    return _same_collections(left, right)
  if {left.kind, right.kind} & set(_ORDERED):
    return _same_ordered(left, right)
  if left.kind == right.kind == 'ratio':
    return _same_ratios(left.parts, right.parts)
  return same_quantities(_quotient(left), _quotient(right))


# Names.


def _assignment(node: Node) -> _Assignment | None:
  """Returns name and value of `x = 5`, `5 = x` and `x = 10/2 = 5`."""
  if node.kind != 'relation' or set(node.value) != {'='}:
    return None
  first, *rest = node.parts
  if not _is_name(first):
    if len(rest) == 1 and rest[0].kind == 'symbol' and _is_name(rest[0]):
      return _Assignment(rest[0], first)
    return None
  if any(not _same(rest[-1], value) for value in rest[:-1]):
    return None
  return _Assignment(first, rest[-1])


def _is_name(node: Node) -> bool:
  """Returns whether a node names a quantity: x, f(x), AB, a + b, but not 2x.

  A combination of distinct symbols without numbers is a quantity that a problem
  asks for; with numbers it is part of an unsolved equation.
  """
  if node.kind == 'negative':
    return False
  names = _symbol_names(node)
  return bool(names) and len(set(names)) == len(names) and '' not in names


def _symbol_names(node: Node) -> list[str]:
  """Returns the symbols of an expression; an empty text for anything else."""
  if node.kind == 'symbol':
    return ['' if node.value in ('e', 'i', '\\pi') else node.value]
  if node.kind == 'text':
    return [node.value]
  if node.kind == 'power' and node.parts[0].kind == 'symbol':
    # An inverse function.
    is_inverse = node.parts[1].kind == 'negative'
    return [node.parts[0].value if is_inverse else '']
  if node.kind == 'product' and node.value == 'applied':
    function, argument = node.parts
    # A value of a function, f(3).
    if function.value in _FUNCTIONS and not numeric.symbols(argument):
      return _symbol_names(function)
  if node.kind in _COMBINATIONS:
    return [name for part in node.parts for name in _symbol_names(part)]
  return ['']


def _same_named(
  left: tuple[Node, _Assignment | None],
  right: tuple[Node, _Assignment | None],
) -> Verdict:
  """Compares two answers, at least one of which names a quantity."""
  (whole, one), (other_whole, other) = left, right
  if one and other:
    if one.name == other.name:
      return _same(one.value, other.value)
    return _same_relations(whole, other_whole)
  if not one:
    return _same_named(right, left)
  if other_whole.kind != 'relation':
    return _same(one.value, other_whole)
  # 2x = 10 is unsolved; y = 2x and 2x − y = 0 are the same line.
  is_solved = not numeric.symbols(one.value)
  return False if is_solved else _same_relations(whole, other_whole)


# Relations and sets.


def _same_relations(left: Node, right: Node) -> Verdict:
  if left.kind != right.kind:
    return False
  if len(left.value) == len(right.value) == 1:
    (sign, one), (other_sign, other) = _difference(left), _difference(right)
    if sign != other_sign:
      return False
    if sign in ('=', '<', 'le'):
      verdict = numeric.proportional(one, other, positive=sign != '=')
      if verdict is not None:
        return verdict
  candidates = [_reverse(right), right]
  return any(
    left.value == node.value and _all_same(left.parts, node.parts)
    for node in candidates
  )


def _difference(relation: Node) -> tuple[str, Node]:
  """Rewrites a relation as a sign and an expression compared with 0."""
  sign = relation.value[0]
  if sign in ('>', 'ge'):
    return _difference(_reverse(relation))
  low, high = relation.parts
  return sign, Node('sum', (low, Node('negative', (high,))))


def _reverse(relation: Node) -> Node:
  """Returns the relation read from right to left."""
  flip = {'<': '>', '>': '<', 'le': 'ge', 'ge': 'le'}
  signs = tuple(flip.get(sign, sign) for sign in reversed(relation.value))
  return Node('relation', relation.parts[::-1], signs)


def _same_sets(left: Node, right: Node) -> Verdict:
  names = real_sets.variables(left), real_sets.variables(right)
  if all(names) and names[0] != names[1]:
    return False
  verdict = real_sets.same_set(left, right)
  if verdict is not None:
    return verdict
  if left.kind == right.kind == 'relation':
    return _same_relations(left, right)
  # The ends are not numbers: compare them as expressions.
  pieces, others = _intervals(left), _intervals(right)
  if pieces == [left] and others == [right]:
    return False
  return _same_elements(pieces, others)


def _intervals(node: Node) -> list[Node]:
  """Returns the intervals of a union; inequalities become intervals."""
  if node.kind in ('union', 'list'):
    return [piece for part in node.parts for piece in _intervals(part)]
  if node.kind == 'builder':
    return _intervals(node.parts[1])
  if node.kind == 'relation' and len(node.parts) == 2:
    (name, end), (sign,) = node.parts, node.value
    far = Node('infinity')
    if name.kind == 'symbol' and sign in ('<', 'le'):
      ends = Node('negative', (far,)), end
      return [Node('tuple', ends, '(]' if sign == 'le' else '()')]
    if name.kind == 'symbol' and sign in ('>', 'ge'):
      return [Node('tuple', (end, far), '[)' if sign == 'ge' else '()')]
  if node.kind == 'relation' and len(node.parts) == 3:
    if node.value[0] in ('>', 'ge'):
      node = _reverse(node)
    if set(node.value) <= {'<', 'le'} and node.parts[1].kind == 'symbol':
      opening = '[' if node.value[0] == 'le' else '('
      closing = ']' if node.value[1] == 'le' else ')'
      ends = (node.parts[0], node.parts[2])
      return [Node('tuple', ends, opening + closing)]
  return [node]


# Collections.


def _same_collections(left: Node, right: Node) -> Verdict:
  for one, other in ((left, right), (right, left)):
    if one.kind == 'list' and (names := _values_by_name(one)):
      if other.kind == 'tuple' and other.value == '()':
        values = [names[name] for name in sorted(names)]
        return _all_same(values, other.parts)
      if other.kind != 'list' or not _values_by_name(other):
        return False
  if not {left.kind, right.kind} <= {'set', 'list'}:
    return False
  if max(len(left.parts), len(right.parts)) > MAX_ELEMENTS:
    return _all_same(left.parts, right.parts)
  repeats = 'set' in (left.kind, right.kind)
  return _same_elements(left.parts, right.parts, repeats=repeats)


def _values_by_name(node: Node) -> dict[str, Node]:
  """Returns values by name if a list assigns different quantities."""
  found: dict[str, Node] = {}
  for part in node.parts:
    assigned = _assignment(part)
    if assigned is None or assigned.name.kind != 'symbol':
      return {}
    found[assigned.name.value] = assigned.value
  # x_1 and x_2 are two values of x.
  letters = {name.split('_')[0] for name in found}
  return found if len(letters) == len(node.parts) > 1 else {}


def _same_elements(
  left: Sequence[Node],
  right: Sequence[Node],
  *,
  repeats: bool = False,
) -> Verdict:
  """Returns whether elements pair up; with `repeats`, as sets."""
  if not repeats and len(left) != len(right):
    return False
  rest, unknown = list(right), False
  for element in left:
    verdicts = [_same(element, other) for other in rest]
    if True in verdicts:
      if not repeats:
        del rest[verdicts.index(True)]
    elif None in verdicts:
      unknown = True
    else:
      return False
  if repeats:
    back = _same_elements(right, left) if len(left) == len(right) else None
    if back is None:
      back = all(
        any(_same(element, other) for other in left) for element in right
      )
    return None if unknown and back else back
  return None if unknown else True


def _same_ordered(left: Node, right: Node) -> Verdict:
  if (left.kind, left.value) != (right.kind, right.value):
    return False
  return _all_same(left.parts, right.parts)


def _all_same(left: Sequence[Node], right: Sequence[Node]) -> Verdict:
  """Returns whether elements agree in order."""
  if len(left) != len(right):
    return False
  verdicts = [_same(one, other) for one, other in zip(left, right, strict=True)]
  if False in verdicts:
    return False
  return None if None in verdicts else True


def _same_ratios(left: Sequence[Node], right: Sequence[Node]) -> Verdict:
  """Returns whether a : b : c and d : e : f are the same ratio."""
  if len(left) != len(right):
    return False
  if _all_same(left, right):
    return True
  crossed = [
    [Node('product', (one, base)) for one in parts]
    for parts, base in ((left, right[0]), (right, left[0]))
  ]
  return _all_same(*crossed)


def _quotient(node: Node) -> Node:
  """Returns a ratio of two numbers as a quotient."""
  if node.kind == 'ratio' and len(node.parts) == 2:
    return Node('quotient', node.parts)
  return node
