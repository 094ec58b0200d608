# SPDX-License-Identifier: Apache-2.0
"""Canonical form of syntax trees, in which answers are compared."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from covrl.rewards.math import ast, integers, numeric
from covrl.rewards.math.ast import Node
from covrl.rewards.math.clock import named_time
from covrl.rewards.math.integer_sets import DOTS, expand_dots

# The sign of the same relation with its sides exchanged.
_REVERSED_SIGNS = {'<': '>', '>': '<', 'le': 'ge', 'ge': 'le', '=': '='}
_NO_SOLUTION = re.compile(
  r'(?:the )?(?:empty set|null set|无解|无实数解|无实根)'
  r'|none'
  r'|(?:there (?:is|are|exists?) |(?:it|(?:the|this) (?:equation|system|inequality))'
  r' has |has )?no'
  r'(?: (?:real|integer|such|possible|valid|other|rational|positive))*'
  r' (?:solutions?|roots?|values?|numbers?|integers?|pairs?|triples?|x|n)'
  r'(?: (?:exists?|for x|in r|in the reals|in real numbers|over the reals|is possible))?'
)
_ALL_REALS = re.compile(
  r'(?:x (?:is|can be) )?(?:all|any|every|the set of all|the set of)?'
  r' ?(?:real numbers?|reals|real values?)(?: of x| x)?'
)
# Names of functions that count choices.
_CHOICES = {'C': 'binom', 'P': 'perm'}
# The constant of integration, and variables of functions that it is added to.
_CONSTANT, _CAPITAL_CONSTANT = Node('symbol', (), 'c'), Node('symbol', (), 'C')
_VARIABLES = {'x', 'y', 'z', 't', 'u', '\\theta'}
_SYNONYMS = {
  **dict.fromkeys(('dne', "doesn't exist", 'not exist'), 'does not exist'),
  **dict.fromkeys(('infinite', 'infinitely many'), 'infinitely many solutions'),
  'infinite number of solutions': 'infinitely many solutions',
  'infinite solutions': 'infinitely many solutions',
}


def canonicalize(node: Node, *, zero_is_natural: bool = False) -> Node:
  """Expands abbreviations of an answer.

  `x = ±1` and `x = 1, −1` become `x = 1, x = −1`; `x ∈ S` becomes S; an answer in
  integers becomes a set or family; factors are moved into matrices and tuples.

  Args:
    node: the tree of a whole answer.
    zero_is_natural: whether ℕ contains 0.
  """
  node = _rewrite(node, zero_is_natural)
  separator = node.value if node.kind == 'list' else 'or'
  items = [
    item
    for part in _items(node)
    for item in _expand_plus_minus(_with_capital_constant(part))
  ]
  if len(items) == 1:
    (item,) = items
    return _without_membership(item)
  items, domains = integers.separate_declarations(items)
  items = _name_unnamed(items)
  if domains:
    return integers.canonical_answer(items, domains, separator, zero_is_natural)
  elements = integers.merge_congruences(items)
  return (
    elements[0]
    if len(elements) == 1
    else Node('list', tuple(elements), separator)
  )


def _items(node: Node) -> Iterator[Node]:
  """Yields the elements of (nested) lists, or the node itself."""
  if node.kind != 'list':
    yield node
    return
  for part in node.parts:
    yield from _items(part)


def _without_membership(node: Node) -> Node:
  """Returns the set of `x ∈ S`; a congruence as a family; or the node itself."""
  if node.value == ('in',):
    return node.parts[1]
  (congruence,) = integers.merge_congruences([node])
  return congruence


def _name_unnamed(items: list[Node]) -> list[Node]:
  """Applies the name of an equation to the following unnamed elements."""
  elements: list[Node] = []
  name: Node | None = None
  for item in items:
    if item.kind == 'relation':
      name = item.parts[0] if item.value == ('=',) else None
    elif name is not None and name.kind == 'symbol':
      item = Node('relation', (name, item), ('=',))
    elements.append(item)
  return elements


def _with_capital_constant(node: Node) -> Node:
  """Writes the constant of integration in x² + c as C.

  It is a term of the answer, or of the right side of an equation, that is nowhere
  else, beside a function of a variable: c beside the letters a and b is a side of a
  triangle or a coefficient.
  """
  value = node.parts[-1] if node.value == ('=',) else node
  if value.kind != 'sum' or value.parts.count(_CONSTANT) != 1:
    return node
  terms = [term for term in value.parts if term != _CONSTANT]
  is_left = node is not value
  others = numeric.symbols(Node('list', (*terms, *node.parts[:-1] * is_left)))
  names = numeric.symbols(Node('list', tuple(terms)))
  if not names & _VARIABLES or others & {'c', 'C'}:
    return node
  value = ast.make_sum([*terms, _CAPITAL_CONSTANT])
  return (
    dataclasses.replace(node, parts=(*node.parts[:-1], value))
    if is_left
    else value
  )


def _expand_plus_minus(node: Node) -> list[Node]:
  """Returns both readings of ±, which hold for all signs of the answer."""
  if not _contains_kind(node, 'plus_minus'):
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


def _contains_kind(node: Node, kind: str) -> bool:
  """Returns whether a tree contains a node of a kind."""
  return node.kind == kind or any(
    _contains_kind(part, kind) for part in node.parts
  )


def _rewrite(node: Node, zero_is_natural: bool) -> Node:
  """Rewrites words for sets, sets of integers, brackets and scaled rows."""
  parts = tuple(_rewrite(part, zero_is_natural) for part in node.parts)
  node = dataclasses.replace(node, parts=parts)
  match node.kind:
    case 'text':
      return _interpret_words(node)
    case 'list' if parts.count(DOTS) and parts[0].value == ('=',):
      # x = 1, 2, …, 10
      name, first = parts[0].parts[0], parts[0].parts[-1]
      elements = expand_dots([first, *parts[1:]])
      if elements is None:
        return node
      return Node(
        'list',
        tuple(Node('relation', (name, item), ('=',)) for item in elements),
        node.value,
      )
    case 'set' | 'list' if (elements := expand_dots(parts)) is not None:
      is_progression = [item.kind for item in elements] == ['progression']
      return (
        elements[0] if is_progression else Node(node.kind, tuple(elements), ',')
      )
    case 'builder' if (
      items := integers.set_builder_elements(node)
    ) is not None:
      members = canonicalize(
        Node('list', tuple(items), ','), zero_is_natural=zero_is_natural
      )
      return members.parts[1] if members.kind == 'relation' else members
    case 'tuple' if len(parts) == 1:
      return parts[0]
    case 'cases' if node.value[1] == 1:
      return Node('list', parts, 'and')
    case 'relation' if len(parts) == 2:
      return _without_absolute_value(node)
    case 'negative' if parts[0].kind in ('matrix', 'tuple'):
      return _scale(ast.number(-1), parts[0])
    case 'product' if node.value == 'applied' and _is_choice(*parts):
      name = _CHOICES[parts[0].value]
      return Node('call', parts[1].parts, name)
    case 'product' if parts[0].kind == 'reals' and parts[1].kind == 'symbol':
      return parts[0]
    case 'product' if parts[1].kind in ('matrix', 'tuple'):
      return _scale(*parts) if _is_scalar(parts[0]) else node
    case 'quotient' if parts[0].kind in ('matrix', 'tuple'):
      inverse = Node('quotient', (ast.number(1), parts[1]))
      return _scale(inverse, parts[0])
  return node


def _interpret_words(node: Node) -> Node:
  """Returns the set, the time or the common synonym that words stand for."""
  words = ' '.join(node.value.lower().replace('{', '').replace('}', '').split())
  words = words.rstrip('.!')
  if _NO_SOLUTION.fullmatch(words):
    return Node('set')
  if _ALL_REALS.fullmatch(words) and 'real' in words:
    return Node('reals')
  if words in _SYNONYMS:
    return Node('text', (), _SYNONYMS[words])
  return named_time(words) or node


def _without_absolute_value(relation: Node) -> Node:
  """Rewrites |x| < 3 as −3 < x < 3, |x| > 3 as x < −3 or x > 3, |x| = 3 as ±3."""
  (left, right), (sign,) = relation.parts, relation.value
  if right.kind == 'absolute' and sign in _REVERSED_SIGNS:
    left, right, sign = right, left, _REVERSED_SIGNS[sign]
  if left.kind != 'absolute' or left.parts[0].kind != 'symbol':
    return relation
  name, low = left.parts[0], Node('negative', (right,))
  if sign == '=' and is_unknown(name) and not numeric.symbols(right):
    ends = tuple(Node('relation', (name, end), ('=',)) for end in (low, right))
    return Node('list', ends, 'or')
  if sign in ('<', 'le'):
    return Node('relation', (low, name, right), (sign, sign))
  if sign in ('>', 'ge'):
    below = Node('relation', (name, low), (_REVERSED_SIGNS[sign],))
    above = Node('relation', (name, right), (sign,))
    return Node('list', (below, above), 'or')
  return relation


def _is_choice(function: Node, argument: Node) -> bool:
  """Returns whether C(5, 2) or P(5, 2) counts combinations or permutations."""
  return (
    function.kind == 'symbol'
    and function.value in _CHOICES
    and argument.kind == 'tuple'
    and [part.kind for part in argument.parts] == ['number', 'number']
    and argument.parts[0].value >= argument.parts[1].value >= 0
  )


def is_unknown(node: Node) -> bool:
  """Returns whether a symbol stands for the real unknown of an equation.

  z and w usually stand for complex ones.
  """
  return (
    node.kind == 'symbol'
    and len(node.value) == 1
    and node.value.islower()
    and node.value not in 'zw'
  )


def _is_scalar(node: Node) -> bool:
  """Returns whether a tree has no matrix, tuple or text in it."""
  return not any(
    _contains_kind(node, kind) for kind in ('matrix', 'tuple', 'text')
  )


def _scale(factor: Node, array: Node) -> Node:
  """Multiplies every element of a matrix or tuple by a factor."""
  parts = tuple(Node('product', (factor, part)) for part in array.parts)
  return dataclasses.replace(array, parts=parts)
