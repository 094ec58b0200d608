# SPDX-License-Identifier: Apache-2.0
"""Quantities: splitting an expression into a value and a unit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from covrl.rewards.math import units
from covrl.rewards.math.ast import Node, make_sum, number

_CURRENCIES = (
  '\\$',
  'US\\$',
  '€',
  '£',
  '¥',
  '₹',
  'Rs',
  'Rs.',
  'USD',
  'EUR',
  '¢',
)
# Meanings of units that follow others, by the base unit of the first one.
_SUBSEQUENT_UNITS = {
  'second': {'m': 'min'},
  'degree': {
    **dict.fromkeys(('prime', 'minute', 'minutes', 'min'), 'arcminute'),
    **dict.fromkeys(('double prime', 'second', 'seconds', 's'), 'arcsecond'),
  },
  'prime': {'prime': 'foot', 'double prime': 'inch'},
}
# Letters that are units where the other answer has one.
_UNIT_LETTERS = frozenset((*'mshgtNJWVAKLlCF', '\\Omega'))


class Quantity(NamedTuple):
  """A value with a unit.

  Attributes:
    value: expression of the value; `None` for a unit or text without one.
    unit: name of the unit, empty without one.
  """

  value: Node | None
  unit: str


def split(node: Node) -> Quantity:
  """Splits an expression into value and unit.

  Sums of units of one kind, such as 1 hour 30 minutes, are in the last unit.
  """
  match node.kind:
    case 'text':
      return Quantity(None, node.value)
    case 'percent':
      return Quantity(node.parts[0], 'percent')
    case 'degree':
      return Quantity(node.parts[0], 'degree')
    case 'negative':
      value, name = split(node.parts[0])
      return Quantity(value and Node('negative', (value,)), name)
    case 'power':
      return _split_power(node)
    case 'product':
      return _split_product(node)
    case 'quotient':
      return _split_quotient(node)
    case 'sum':
      return add(list(map(split, node.parts))) or Quantity(node, '')
  return Quantity(node, '')


def _split_power(node: Node) -> Quantity:
  """Splits a power of a unit, such as m²."""
  value, name = split(node.parts[0])
  exponent, sign = node.parts[1], ''
  if exponent.kind == 'negative':
    exponent, sign = exponent.parts[0], '-'
  if value is None and exponent.kind == 'number':
    return Quantity(None, f'{name}^{sign}{exponent.value}')
  return Quantity(node, '')


def _split_product(node: Node) -> Quantity:
  """Splits a product into the product of values and that of units."""
  (left_value, left_unit), (right_value, right_unit) = map(split, node.parts)
  unit = f'{left_unit} {right_unit}'.strip()
  if right_value is None:
    return Quantity(left_value, unit)
  if left_value is None:
    is_prefix = left_unit.strip() in _CURRENCIES
    return Quantity(right_value, unit) if is_prefix else Quantity(node, '')
  if unit and not _is_sign(left_unit, right_unit):
    return Quantity(Node('product', (left_value, right_value)), unit)
  return Quantity(node, '')


def _split_quotient(node: Node) -> Quantity:
  """Splits a quotient into the quotient of values and that of units."""
  (left_value, left_unit), (right_value, right_unit) = map(split, node.parts)
  unit = f'{left_unit}/{right_unit}' if right_unit else left_unit
  if right_value is None:
    return Quantity(left_value, unit)
  if left_value is not None and unit and not _is_sign(left_unit, right_unit):
    return Quantity(Node('quotient', (left_value, right_value)), unit)
  return Quantity(node, '')


def _is_sign(*names: str) -> bool:
  """Returns whether a unit is a sign that is part of the value."""
  return any(
    name.split(' ')[0].rstrip('s') in ('percent', 'degree') for name in names
  )


def add(terms: Sequence[Quantity]) -> Quantity | None:
  """Returns the sum of quantities of one kind, in the unit of the last.

  Returns:
    `None` if they are of different kinds, or only some have a unit.
  """
  values = [value for value, _ in terms if value is not None]
  names = [name for _, name in terms]
  if len(values) != len(terms) or len(terms) < 2 or not names[-1]:
    return None
  if not any(names[:-1]) and names[-1] not in ('percent', 'degree'):
    return Quantity(make_sum(values), names[-1])
  if not names[0]:
    return None
  names = _unit_meanings(names)
  measures = [unit for name in names if (unit := units.unit(name)) is not None]
  bases = {base for _, base in measures}
  if len(measures) != len(names) or len(bases) != 1 or () in bases:
    return None
  last_factor = measures[-1].factor
  scaled = [
    value
    if factor == last_factor
    else Node('product', (value, number(Fraction(factor / last_factor))))
    for value, (factor, _) in zip(values, measures, strict=True)
  ]
  return Quantity(make_sum(scaled), names[-1])


def _unit_meanings(names: Sequence[str]) -> list[str]:
  """Returns the meanings of units after the first one: minutes of 30° 15′."""
  first = units.unit(names[0])
  meanings = _SUBSEQUENT_UNITS.get(
    first.powers[0][0] if first and first.powers else '', {}
  )
  return [meanings.get(name.strip('. '), name) for name in names]


def compound_quantity(items: Sequence[Node]) -> Node | None:
  """Reads a list such as `1 hour, 30 minutes` as one quantity.

  Returns:
    `None` if the units are not of one kind, from the largest to the smallest.
  """
  terms = list(map(split, items))
  if not all(name for _, name in terms):
    return None
  measures = [
    units.unit(name) for name in _unit_meanings([name for _, name in terms])
  ]
  known_units = [measure for measure in measures if measure is not None]
  if (
    not len(known_units) == len(terms) > 1
    or len({base for _, base in known_units}) != 1
  ):
    return None
  if any(
    low.factor >= high.factor for high, low in itertools.pairwise(known_units)
  ):
    return None
  total = add(terms)
  if total is None or total.value is None:
    return None
  return Node('product', (total.value, Node('text', (), total.unit)))


def letters_as_units(node: Node) -> Node:
  """Reads single letters such as m and s as units."""
  if node.kind == 'symbol' and node.value in _UNIT_LETTERS:
    name = 'Ω' if node.value == '\\Omega' else node.value
    return Node('text', (), name)
  if node.kind not in ('product', 'quotient', 'power', 'negative'):
    return node
  parts = tuple(map(letters_as_units, node.parts))
  return dataclasses.replace(node, parts=parts)
