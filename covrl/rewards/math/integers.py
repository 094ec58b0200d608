# SPDX-License-Identifier: Apache-2.0
"""Answers in integers: declared parameters, integer solutions, congruences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from covrl.rewards.math import numeric
from covrl.rewards.math.ast import Node
from covrl.rewards.math.evaluate import Undefined
from covrl.rewards.math.families import (
  INTEGER_PARAMETER,
  NATURAL_PARAMETER,
  rename_symbols,
)
from covrl.rewards.math.integer_sets import integer_solutions

_DOMAINS = {f'\\mathbb{{{letter}}}': letter for letter in 'ZNQC'}
# Subscripts of ℤ that make it the natural numbers, as in `\mathbb{Z}_{\ge 0}`.
_NATURAL_SUBSCRIPT = re.compile(r'\+|>0|\\(?:ge|geq|geqslant)(?:0|1)')
# Words after the name of a variable, as in `k is an integer`.
_IS_INTEGER = re.compile(
  r'(?:(?:is|are|be|being) )?(?:an? |any |some |arbitrary )*'
  r'(?P<kind>positive |non-?negative |natural )?(?:integers?|whole numbers?|numbers?)'
)
# Words before the name of a variable, as in `for any integer k`.
_ANY_INTEGER = re.compile(
  r'(?:for |where )?(?:an? |any |some |all |every |each |arbitrary )*'
  r'(?P<kind>positive |non-?negative |natural )?(?:integers?|whole numbers?|numbers?)'
  r'(?: values? of)?'
)
_INEQUALITIES = {'<', '>', 'le', 'ge', 'ne', '='}


def separate_declarations(
  items: Sequence[Node],
) -> tuple[list[Node], dict[str, str]]:
  """Separates conditions such as `k ∈ ℤ` from other elements.

  Returns:
    The other elements, and the domains of integer variables: 'Z' or 'N'.
    Conditions on rational and complex numbers are dropped.
  """
  other_items: list[Node] = []
  domains: dict[str, str] = {}
  for item in items:
    declaration = _declaration(item)
    if declaration is None:
      other_items.append(item)
    elif declaration[1] in ('Z', 'N'):
      domains[declaration[0]] = declaration[1]
  if not other_items:
    return list(items), {}
  return other_items, domains


def _declaration(node: Node) -> tuple[str, str] | None:
  """Returns name and domain of `k ∈ ℤ` or `k is an integer`."""
  if node.kind == 'relation' and node.value == ('in',):
    name, domain = node.parts
    symbol, _, subscript = str(domain.value).partition('_')
    domain_name = _DOMAINS.get(symbol)
    if domain_name == 'Z' and subscript:
      # Others, as of the integers modulo 5, or below 0, do not count.
      domain_name = 'N' if _NATURAL_SUBSCRIPT.fullmatch(subscript) else None
    if domain_name and name.kind == 'symbol':
      return name.value, domain_name
  if node.kind == 'product':
    left, right = node.parts
    for name, words, pattern in (
      (left, right, _IS_INTEGER),
      (right, left, _ANY_INTEGER),
    ):
      if name.kind != 'symbol' or words.kind != 'text':
        continue
      if match := pattern.fullmatch(words.value.lower().strip('., ')):
        kind = match.group('kind')
        is_whole = kind or 'integer' in words.value or 'whole' in words.value
        return (name.value, 'N' if kind else 'Z') if is_whole else None
  return None


def canonical_answer(
  items: list[Node],
  domains: dict[str, str],
  separator: str,
  zero_is_natural: bool,
) -> Node:
  """Returns an answer with integer variables as a set or family.

  Args:
    items: elements without declarations.
    domains: domains of the integer variables.
    separator: separator of the elements.
    zero_is_natural: whether ℕ contains 0.
  """
  for name, domain in domains.items():
    bounds = [item for item in items if _is_bound(item, name)]
    if not bounds:
      continue
    others = [item for item in items if item not in bounds]
    if len(others) > 1:
      continue
    symbol = Node('symbol', (), name)
    value = _name_and_value(others[0])[1] if others else symbol
    lowest = None if domain == 'Z' else 0 if zero_is_natural else 1
    elements = integer_solutions(name, bounds, value, lowest)
    if elements is None:
      answer = Node('list', tuple(items), separator)
      return Node('integer_only', (answer,), domain)
    if len(elements) == 1 and elements[0].kind == 'progression':
      return elements[0]
    return Node('set', tuple(elements))
  if family := _family(items, domains):
    return family
  names = {
    name: f'{INTEGER_PARAMETER if domain == "Z" else NATURAL_PARAMETER} {index}'
    for index, (name, domain) in enumerate(domains.items())
  }
  elements = [rename_symbols(item, names) for item in items]
  return (
    elements[0]
    if len(elements) == 1
    else Node('list', tuple(elements), separator)
  )


def set_builder_elements(node: Node) -> list[Node] | None:
  """Returns the elements of a list that describes a set of integers.

  Returns:
    `None` for `{x | …}` without integers.
  """
  template, condition = node.parts
  conditions = (
    list(condition.parts) if condition.kind == 'list' else [condition]
  )
  if condition.kind == 'list' and condition.value == 'or':
    conditions = [condition]
  if values := _listed_values(conditions):
    name, elements = values
    return [_substitute(template, name, element) for element in elements]
  if _declaration(template):
    conditions.append(template)
    template = template.parts[0]
  _, domains = separate_declarations([*conditions, template])
  if not domains:
    return None
  # ℕ has a smallest element without any other bound.
  infinity = Node('infinity')
  conditions += [
    Node('relation', (Node('symbol', (), name), infinity), ('<',))
    for name, domain in domains.items()
    if domain == 'N'
  ]
  if template.kind == 'symbol' and template.value in domains:
    return conditions
  if template.kind == 'symbol':
    # {x | x = kπ, k ∈ ℤ}
    return (
      conditions
      if any(_name_and_value(c)[0] == template for c in conditions)
      else None
    )
  return [template, *conditions]


def _listed_values(conditions: list[Node]) -> tuple[str, Sequence[Node]] | None:
  """Returns name and values of `n = 1, 2, 3` or `n ∈ {1, 2, 3}`."""
  first, *rest = conditions
  if first.kind != 'relation' or first.parts[0].kind != 'symbol':
    return None
  name, value = first.parts[0].value, first.parts[-1]
  if first.value == ('in',) and value.kind == 'set' and not rest:
    return name, value.parts
  if first.value == ('=',) and not any(map(numeric.symbols, (value, *rest))):
    is_list = all(part.kind in ('number', 'negative') for part in rest)
    return (name, (value, *rest)) if is_list else None
  return None


def _substitute(node: Node, name: str, value: Node) -> Node:
  """Replaces a symbol by an expression."""
  if node == Node('symbol', (), name):
    return value
  parts = tuple(_substitute(part, name, value) for part in node.parts)
  return dataclasses.replace(node, parts=parts)


def merge_congruences(items: list[Node]) -> list[Node]:
  """Rewrites `x ≡ 1, 3 (mod 8)` as one family."""
  if not items or items[-1].kind != 'congruence':
    return items
  modulus = items[-1].parts[1]
  try:
    if numeric.real_value(modulus) <= 0:
      return items
  except Undefined:
    return items
  values: list[Node] = []
  names: list[Node] = []
  for item in items:
    if item.kind == 'congruence':
      if item.parts[1] != modulus:
        return items
      item = item.parts[0]
    name, value = _name_and_value(item)
    names += [] if name is None else [name]
    multiple = Node('product', (modulus, Node('symbol', (), INTEGER_PARAMETER)))
    if value.kind == 'relation' or numeric.symbols(value):
      return items
    values.append(Node('sum', (value, multiple)))
  if len(set(names)) > 1:
    return items
  family = Node('family', tuple(values))
  if not names:
    return [family]
  return [Node('relation', (names[0], family), ('=',))]


def _family(items: list[Node], domains: dict[str, str]) -> Node | None:
  """Returns the family of values with one integer parameter each."""
  names: set[Node | None] = set()
  values: list[Node] = []
  for item in items:
    name, value = _name_and_value(item)
    symbols = numeric.symbols(value)
    if value.kind == 'relation' or len(symbols) != 1:
      return None
    (symbol,) = symbols
    if domains.get(symbol) != 'Z':
      return None
    names.add(name)
    values.append(rename_symbols(value, {symbol: INTEGER_PARAMETER}))
  if len(names) != 1:
    return None
  (name,) = names
  family = Node('family', tuple(values))
  return family if name is None else Node('relation', (name, family), ('=',))


def _name_and_value(item: Node) -> tuple[Node | None, Node]:
  """Returns name and value of `x = …` or `x ≡ …`; no name for other nodes."""
  if item.kind == 'relation' and set(item.value) <= {'=', 'equiv'}:
    first, *rest = item.parts
    if first.kind == 'symbol' or numeric.symbols(first):
      return first, rest[-1]
    return None, rest[-1]
  return None, item


def _is_bound(item: Node, name: str) -> bool:
  """Returns whether a relation bounds a variable."""
  return (
    item.kind == 'relation'
    and set(item.value) <= _INEQUALITIES
    and set(item.value) != {'='}
    and Node('symbol', (), name) in item.parts
  )
