# SPDX-License-Identifier: Apache-2.0
"""Comparison of single answers: expressions, quantities with units, or texts."""

from __future__ import annotations

import re

from covrl.rewards.math import numeric, quantities, units
from covrl.rewards.math.ast import Node, number
from covrl.rewards.math.quantities import Quantity

_NON_WORD = re.compile(r'[^\w+]+')
_LEADING_PHRASE = re.compile(
  r'^\W*(?:(?:the\s+)?(?:final\s+)?(?:answer|option|choice)(?:\s+is)?\b\W*)?'
  # An article, but not the first of several options: A, C.
  r'(?:(?:an?|the)\s+(?=\w{2}))?(?=\W*\w)'
)
# Units whose names are also those of a currency.
_AMBIGUOUS_CURRENCIES = {'sterling': ('pound', '£'), 'yuan': ('¥', '元')}


def normalized_words(text: str) -> str:
  """Normalizes case, spaces and punctuation of a text.

  >>> normalized_words('The answer is (B).')
  'b'
  """
  return _NON_WORD.sub(' ', _LEADING_PHRASE.sub('', text.casefold())).strip()


def same_quantities(
  left: Node, right: Node, *, strict: bool = False
) -> bool | None:
  """Returns whether two values, quantities or texts are equal.

  A unit, a base, and the signs for percent and degrees may be omitted.

  Args:
    left: tree of one answer.
    right: tree of the other answer.
    strict: whether only units of measure may be omitted, as between the sides
      of an equation.

  Returns:
    `None` if this cannot be decided.
  """
  if 'based' in (left.kind, right.kind) and not strict:
    return left == right or _same_digits(left, right)
  left_quantity, right_quantity = (
    quantities.split(left),
    quantities.split(right),
  )
  verdict = _same_split_answers(
    left, right, left_quantity, right_quantity, strict
  )
  if verdict or not (left_quantity.unit or right_quantity.unit):
    return verdict
  # Letters may be units: 5 m equals 500 cm.
  with_units = (
    quantities.letters_as_units(left),
    quantities.letters_as_units(right),
  )
  if with_units == (left, right):
    return verdict
  left_quantity, right_quantity = map(quantities.split, with_units)
  if (
    not (left_quantity.unit and right_quantity.unit)
    or left_quantity.value is None
    or right_quantity.value is None
  ):
    return verdict
  return _same_measures(left_quantity, right_quantity)


def _same_split_answers(
  left: Node,
  right: Node,
  left_quantity: Quantity,
  right_quantity: Quantity,
  strict: bool,
) -> bool | None:
  """Compares two answers, given their trees and their values with units."""
  if left_quantity.value is None or right_quantity.value is None:
    return _same_words(left, right)
  if left_quantity.unit and right_quantity.unit:
    if left_quantity.unit == right_quantity.unit:
      return _same_values(left_quantity.value, right_quantity.value, strict)
    return _same_measures(left_quantity, right_quantity)
  if left_quantity.unit or right_quantity.unit:
    return _same_without_unit(
      left, right, left_quantity, right_quantity, strict
    )
  return _same_values(left_quantity.value, right_quantity.value, strict)


def _same_without_unit(
  left: Node,
  right: Node,
  left_quantity: Quantity,
  right_quantity: Quantity,
  strict: bool,
) -> bool | None:
  """Compares a quantity with a value whose unit is omitted."""
  with_unit, without_unit = (
    (left_quantity, right_quantity)
    if left_quantity.unit
    else (right_quantity, left_quantity)
  )
  assert with_unit.value is not None
  assert without_unit.value is not None
  measure = units.unit(with_unit.unit)
  if measure is None:
    return False
  # A sign for percent or degrees may be part of the value or omitted.
  if _same_values(left, right, strict):
    return True
  if units.bases(with_unit.unit) == {'degree'}:
    angle = Node('product', (with_unit.value, number(measure.factor)))
    if _same_values(Node('degree', (angle,)), without_unit.value):
      return True
  scale = units.multiplier(with_unit.unit)
  if scale != 1:
    scaled = Node('product', (with_unit.value, number(scale)))
    if _same_values(scaled, without_unit.value, strict):
      return True
  if strict and (scale != 1 or with_unit.unit == 'degree'):
    return False
  return _same_values(with_unit.value, without_unit.value, strict)


def _same_measures(left: Quantity, right: Quantity) -> bool | None:
  """Compares quantities in different units, such as 1 m and 100 cm."""
  assert left.value is not None
  assert right.value is not None
  names = left.unit, right.unit
  if any(units.bases(name) == {'degree'} for name in names) and any(
    map(units.is_temperature, names)
  ):
    return _same_values(left.value, right.value)
  measure, other_measure = units.unit(left.unit), units.unit(right.unit)
  if measure is None or other_measure is None:
    return False
  if measure.powers != other_measure.powers:
    for currency, (word, sign) in _AMBIGUOUS_CURRENCIES.items():
      renamed = [
        Quantity(value, re.sub(rf'{word}s?|{sign}', currency, name))
        for value, name in (left, right)
      ]
      if any(currency in units.bases(name) for _, name in (left, right)) and (
        renamed != [left, right]
      ):
        return _same_measures(*renamed)
    return False
  return _same_values(
    Node('product', (left.value, number(measure.factor))),
    Node('product', (right.value, number(other_measure.factor))),
  )


def _same_values(left: Node, right: Node, strict: bool = False) -> bool | None:
  """Returns whether two expressions are equal; infinity equals only itself."""
  if left == right:
    return True
  if any(_has_infinity(node) for node in (left, right)):
    return False
  return numeric.equal(left, right)


def _same_digits(left: Node, right: Node) -> bool:
  """Compares digits of numbers in a base, which one of them may omit."""
  bases = {node.value[1] for node in (left, right) if node.kind == 'based'}
  digits = {_digits(node) for node in (left, right)}
  return len(bases) == len(digits) == 1 and '' not in digits


def _digits(node: Node) -> str:
  """Returns the digits of a number as written, such as 1A3; or an empty text."""
  match node.kind:
    case 'based':
      return node.value[0]
    case 'number':
      return str(node.value)
    case 'symbol' | 'text' if node.value.isalnum():
      return node.value
    case 'product' if node.value is None:
      one, other = map(_digits, node.parts)
      return one and other and one + other
  return ''


def _has_infinity(node: Node) -> bool:
  return node.kind == 'infinity' or any(map(_has_infinity, node.parts))


def _same_words(left: Node, right: Node) -> bool:
  """Returns whether two texts or symbols have the same words."""
  texts = [
    normalized_words(node.value)
    for node in (left, right)
    if node.kind in ('text', 'symbol')
  ]
  return len(texts) == 2 and texts[0] == texts[1] != ''
