# SPDX-License-Identifier: Apache-2.0
"""Equivalence of an answer and a reference.

The comparison is symmetric. A name (`x = 5` and `5`), a unit, a base and a percent
sign may be omitted; a relation never equals a number; tuples, sets and matrices
differ from each other, and order matters in tuples and matrices only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

from covrl.rewards.math import numeric, real_sets
from covrl.rewards.math.ast import Node, number
from covrl.rewards.math.canonical import canonicalize
from covrl.rewards.math.chains import Chain, read_chain
from covrl.rewards.math.clock import is_full_hour, same_time
from covrl.rewards.math.compare_answers import same_quantities
from covrl.rewards.math.families import (
  INTEGER_PARAMETER,
  rename_symbols,
  same_family,
  undeclared_parameter,
)
from covrl.rewards.math.quantities import compound_quantity

MAX_ELEMENTS = 64  # of a set that is compared with another one
# Kinds of nodes that are not single quantities.
_COLLECTIONS = (
  *('tuple', 'set', 'list', 'matrix', 'ratio', 'relation', 'clock', 'union'),
  *('family', 'progression', 'reals', 'builder', 'text', 'infinity'),
)

Verdict: TypeAlias = bool | None
"""Whether two answers agree; `None` if this cannot be decided."""

# Kinds of nodes whose parts are compared in order.
_ORDERED = (
  *('tuple', 'matrix', 'cases', 'congruence', 'progression', 'integer_only'),
)


def equivalent(reference: Node, answer: Node) -> Verdict:
  """Returns whether two answers are equivalent.

  Args:
    reference: tree of the correct answer.
    answer: tree of the answer to grade.
  """
  verdict = _equivalent(canonicalize(reference), canonicalize(answer))
  if not verdict and any(map(_has_naturals, (reference, answer))):
    return _equivalent(
      canonicalize(reference, zero_is_natural=True),
      canonicalize(answer, zero_is_natural=True),
    )
  return verdict


def _has_naturals(node: Node) -> bool:
  """Returns whether an answer contains ℕ."""
  return '\\mathbb{N}' in str(node.value) or any(map(_has_naturals, node.parts))


def _equivalent(left: Node, right: Node) -> Verdict:
  """Returns whether two canonical answers are equivalent."""
  if left == right:
    return True
  if left.kind == right.kind == 'clock':
    return same_time(left, right)
  left, right = (
    Node('ratio', node.parts) if node.kind == 'clock' and node.parts else node
    for node in (left, right)
  )
  left_chain, right_chain = (
    read_chain(node, _same_strictly) for node in (left, right)
  )
  if left_chain or right_chain:
    return _same_chains((left, left_chain), (right, right_chain))
  if 'family' in (left.kind, right.kind):
    return _same_families(left, right)
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
  if 'clock' in (left.kind, right.kind):
    return is_full_hour(left, right) or is_full_hour(right, left)
  return same_quantities(_quotient(left), _quotient(right))


def _same_strictly(left: Node, right: Node) -> Verdict:
  """Returns whether the two sides of an equation are equal."""
  if any(node.kind in _COLLECTIONS for node in (left, right)):
    return _equivalent(left, right)
  return same_quantities(_quotient(left), _quotient(right), strict=True)


# Names and chains.


def _same_chains(
  left: tuple[Node, Chain | None], right: tuple[Node, Chain | None]
) -> Verdict:
  """Compares two answers, at least one of which is a chain of equations."""
  (answer, chain), (other_answer, other_chain) = left, right
  if chain and other_chain and not _may_be_same(chain.name, other_chain.name):
    return _same_relations(answer, other_answer)
  if chain and other_chain:
    return _any_same(_values(chain), _values(other_chain))
  if not chain:
    return _same_chains(right, left)
  if other_answer.kind != 'relation':
    return _any_same(_values(chain), [other_answer])
  if chain.name is None:
    return False
  # 2x = 10 is unsolved; y = 2x and 2x − y = 0 are the same line, and so are
  # x + y = 1 and x + y − 1 = 0.
  is_solved = not numeric.symbols(chain.value) and chain.name.kind != 'sum'
  return False if is_solved else _same_relations(answer, other_answer)


def _may_be_same(left: Node | None, right: Node | None) -> bool:
  """Returns whether two names agree; x_1 is a value of x."""
  if left is None or right is None or left == right:
    return True
  if not left.kind == right.kind == 'symbol':
    return False
  letters = left.value.split('_')[0], right.value.split('_')[0]
  return letters[0] == letters[1] and (
    left.value in letters or right.value in letters
  )


def _values(chain: Chain) -> list[Node]:
  """Returns the exact value of a chain, and its approximation."""
  rounded = chain.approximation
  return [chain.value] if rounded is None else [chain.value, rounded]


def _any_same(left: Sequence[Node], right: Sequence[Node]) -> Verdict:
  """Returns whether a value on the left equals one on the right."""
  verdicts = [_equivalent(one, other) for one in left for other in right]
  if True in verdicts:
    return True
  return None if None in verdicts else False


def _same_families(left: Node, right: Node) -> Verdict:
  """Compares families with an integer parameter, declared by at least one."""
  sides: list[Sequence[Node]] = []
  for node in (left, right):
    if node.kind == 'family':
      sides.append(node.parts)
      continue
    parts = node.parts if node.kind in ('list', 'set') else (node,)
    parameters = [undeclared_parameter(part) for part in parts]
    if None in parameters or not parts:
      return False
    sides.append(
      [
        rename_symbols(part, {parameter: INTEGER_PARAMETER})
        for part, parameter in zip(parts, parameters, strict=True)
        if parameter is not None
      ]
    )
  verdict = same_family(*sides)
  return _same_elements(*sides) if verdict is None else verdict


# Relations and sets.


def _same_relations(left: Node, right: Node) -> Verdict:
  """Compares two equations or inequalities."""
  if left.kind != right.kind:
    return False
  left, right = map(_with_equals_signs, (left, right))
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


def _with_equals_signs(relation: Node) -> Node:
  signs = tuple('=' if sign == 'approx' else sign for sign in relation.value)
  return dataclasses.replace(relation, value=signs)


def _difference(relation: Node) -> tuple[str, Node]:
  """Rewrites a relation as a sign and an expression compared with 0."""
  sign = relation.value[0]
  if sign in ('>', 'ge'):
    return _difference(_reverse(relation))
  low, high = relation.parts
  return sign, Node('sum', (low, Node('negative', (high,))))


def _reverse(relation: Node) -> Node:
  """Returns the relation read from right to left."""
  flipped = {'<': '>', '>': '<', 'le': 'ge', 'ge': 'le'}
  signs = tuple(flipped.get(sign, sign) for sign in reversed(relation.value))
  return Node('relation', relation.parts[::-1], signs)


def _same_sets(left: Node, right: Node) -> Verdict:
  """Compares two sets of real numbers."""
  names = real_sets.variables(left), real_sets.variables(right)
  if all(names) and names[0] != names[1]:
    return False
  verdict = real_sets.same_set(left, right)
  if verdict is not None:
    return verdict
  if left.kind == right.kind == 'relation':
    return _same_relations(left, right)
  # The ends are not numbers: compare them as expressions.
  left_intervals, right_intervals = _intervals(left), _intervals(right)
  if left_intervals == [left] and right_intervals == [right]:
    return False
  # A, B are two answers, A ∪ B is one.
  if left.kind != right.kind and any(
    part.kind == 'symbol' for part in (*left_intervals, *right_intervals)
  ):
    return False
  return _same_elements(left_intervals, right_intervals)


def _intervals(node: Node) -> list[Node]:
  """Returns the intervals of a union; inequalities become intervals."""
  if node.kind in ('union', 'list'):
    return [interval for part in node.parts for interval in _intervals(part)]
  if node.kind == 'builder':
    return _intervals(node.parts[1])
  if node.kind == 'relation' and len(node.parts) == 2:
    (name, end), (sign,) = node.parts, node.value
    infinity = Node('infinity')
    if name.kind == 'symbol' and sign in ('<', 'le'):
      ends = Node('negative', (infinity,)), end
      return [Node('tuple', ends, '(]' if sign == 'le' else '()')]
    if name.kind == 'symbol' and sign in ('>', 'ge'):
      return [Node('tuple', (end, infinity), '[)' if sign == 'ge' else '()')]
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
  """Compares two lists or sets, or one with a tuple or a quantity."""
  for one, other in ((left, right), (right, left)):
    if one.kind == 'list' and (values_by_name := _values_by_name(one)):
      if other.kind == 'tuple' and other.value == '()':
        values = [values_by_name[name] for name in sorted(values_by_name)]
        return _all_same(values, other.parts)
      if other.kind != 'list' or not _values_by_name(other):
        return False
  # 1 hour, 30 minutes is one quantity.
  compounds = [
    compound_quantity(node.parts) if node.kind == 'list' else None
    for node in (left, right)
  ]
  if any(compounds) and not all(compounds):
    one, other = (
      quantity or node
      for quantity, node in zip(compounds, (left, right), strict=True)
    )
    if {one.kind, other.kind} & {'set', 'list'}:
      return False
    return same_quantities(one, other)
  for one, other in ((left, right), (right, left)):
    # One value in two spellings, ½ or 0.5.
    is_one = one.kind == 'list' and one.value == 'or'
    if is_one and other.kind not in ('set', 'list'):
      return _all_same(one.parts, [other] * len(one.parts))
  if not {left.kind, right.kind} <= {'set', 'list'}:
    return False
  if max(len(left.parts), len(right.parts)) > MAX_ELEMENTS:
    return _all_same(left.parts, right.parts)
  as_sets = 'set' in (left.kind, right.kind)
  return _same_elements(left.parts, right.parts, as_sets=as_sets)


def _values_by_name(node: Node) -> dict[str, Node]:
  """Returns values by name if a list assigns different quantities."""
  values: dict[str, Node] = {}
  for part in node.parts:
    chain = read_chain(part, _same_strictly)
    if chain is None or chain.name is None:
      return {}
    if chain.name.kind != 'symbol':
      return {}
    values[chain.name.value] = chain.value
  # x_1 and x_2 are two values of x.
  letters = {name.split('_')[0] for name in values}
  return values if len(letters) == len(node.parts) > 1 else {}


def _same_elements(
  left: Sequence[Node],
  right: Sequence[Node],
  *,
  as_sets: bool = False,
) -> Verdict:
  """Returns whether elements pair up; with `as_sets`, repeated ones count once."""
  if not as_sets and len(left) != len(right):
    return False
  unmatched, is_undecided = list(right), False
  for element in left:
    verdicts = [_equivalent(element, other) for other in unmatched]
    if True in verdicts:
      if not as_sets:
        del unmatched[verdicts.index(True)]
    elif None in verdicts:
      is_undecided = True
    else:
      return False
  if as_sets:
    reverse_verdict = (
      _same_elements(right, left) if len(left) == len(right) else None
    )
    if reverse_verdict is None:
      reverse_verdict = all(
        any(_equivalent(element, other) for other in left) for element in right
      )
    return None if is_undecided and reverse_verdict else reverse_verdict
  return None if is_undecided else True


def _same_ordered(left: Node, right: Node) -> Verdict:
  if (left.kind, left.value) != (right.kind, right.value):
    return False
  return _all_same(left.parts, right.parts)


def _all_same(left: Sequence[Node], right: Sequence[Node]) -> Verdict:
  """Returns whether elements agree in order."""
  if len(left) != len(right):
    return False
  verdicts = [
    _equivalent(one, other) for one, other in zip(left, right, strict=True)
  ]
  if False in verdicts:
    return False
  return None if None in verdicts else True


def _same_ratios(left: Sequence[Node], right: Sequence[Node]) -> Verdict:
  """Returns whether a : b : c and d : e : f are the same ratio."""
  if len(left) != len(right):
    return False
  if _all_same(left, right):
    return True
  # With a term of 0 all products are equal.
  if any(map(_may_be_zero, (*left, *right))):
    return False
  cross_products = [
    [Node('product', (one, base)) for one in parts]
    for parts, base in ((left, right[0]), (right, left[0]))
  ]
  return _all_same(*cross_products)


def _may_be_zero(node: Node) -> bool:
  return numeric.equal(node, number(0)) is not False


def _quotient(node: Node) -> Node:
  """Returns a ratio of two numbers, none of which is 0, as a quotient."""
  if (
    node.kind == 'ratio'
    and len(node.parts) == 2
    and not any(map(_may_be_zero, node.parts))
  ):
    return Node('quotient', node.parts)
  return node
