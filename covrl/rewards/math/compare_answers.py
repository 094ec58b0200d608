# SPDX-License-Identifier: Apache-2.0
"""Comparison of single answers: expressions, quantities with units, or texts."""

from __future__ import annotations

import re

from covrl.rewards.math import numeric
from covrl.rewards.math.ast import Node
from covrl.rewards.math.units import unit

_NON_WORD = re.compile(r'[^\w+]+')
_LEADING_PHRASE = re.compile(
  r'^(?:(?:the )?(?:final )?(?:answer|option|choice)(?: is)? )?(?:(?:an?|the) )?'
  r'(?=.)'
)


def normalized_words(text: str) -> str:
  """Normalizes case, spaces and punctuation of a text.

  >>> normalized_words('The answer is (B).')
  'b'
  """
  return _LEADING_PHRASE.sub('', _NON_WORD.sub(' ', text).strip().casefold())


def same_quantities(left: Node, right: Node) -> bool | None:
  """Returns whether two values, quantities or texts are equal.

  A unit, a base, and the signs for percent and degrees may be omitted.

  Args:
    left: tree of one answer.
    right: tree of the other answer.

  Returns:
    `None` if this cannot be decided.
  """
  one, name = _value_and_unit(left)
  other, other_name = _value_and_unit(right)
  if one is None or other is None:
    return _same_words(left, right)
  if name and other_name and name != other_name:
    return _same_measures(one, name, other, other_name)
  if bool(name) != bool(other_name):
    if unit(name or other_name) is None:
      return False
    # A sign for percent or degrees may be part of the value or omitted.
    verdict = _same_values(left, right)
    if verdict:
      return True
  return _same_values(one, other)


def _same_measures(
  one: Node, name: str, other: Node, other_name: str
) -> bool | None:
  """Compares quantities in different units, such as 1 m and 100 cm."""
  measure, other_measure = unit(name), unit(other_name)
  if measure is None or other_measure is None:
    return False
  if measure[1] != other_measure[1]:
    return False
  factors = (
    Node('number', (), measure[0]),
    Node('number', (), other_measure[0]),
  )
  return _same_values(
    Node('product', (one, factors[0])),
    Node('product', (other, factors[1])),
  )


def _same_values(left: Node, right: Node) -> bool | None:
  if left == right:
    return True
  if 'based' in (left.kind, right.kind):
    return _same_digits(left, right)
  if any(_has_infinity(node) for node in (left, right)):
    return False
  return numeric.equal(left, right)


def _same_digits(left: Node, right: Node) -> bool:
  """Compares digits of numbers in a base, which one of them may omit."""
  digits = {
    str(node.value) if node.kind == 'number' else node.value[0]
    for node in (left, right)
    if node.kind in ('based', 'number')
  }
  bases = {node.value[1] for node in (left, right) if node.kind == 'based'}
  kinds = {left.kind, right.kind}
  return kinds <= {'based', 'number'} and len(digits) == len(bases) == 1


def _has_infinity(node: Node) -> bool:
  return node.kind == 'infinity' or any(map(_has_infinity, node.parts))


def _same_words(left: Node, right: Node) -> bool:
  texts = [
    normalized_words(node.value)
    for node in (left, right)
    if node.kind in ('text', 'symbol')
  ]
  return len(texts) == 2 and texts[0] == texts[1] != ''


def _value_and_unit(node: Node) -> tuple[Node | None, str]:
  """Splits a quantity into value and unit; a text has no value."""
  match node.kind:
    case 'text':
      return None, node.value
    case 'percent':
      return node.parts[0], 'percent'
    case 'degree':
      return node.parts[0], 'degree'
    case 'negative':
      value, name = _value_and_unit(node.parts[0])
      return value and Node('negative', (value,)), name
    case 'power':
      value, name = _value_and_unit(node.parts[0])
      if value is None and node.parts[1].kind == 'number':
        return None, f'{name}^{node.parts[1].value}'
    case 'product':
      (one, name), (other, other_name) = map(_value_and_unit, node.parts)
      if other is None:
        return one, f'{name} {other_name}'.strip()
      if one is None and name == '\\$':
        return other, name
    case 'quotient':
      (one, name), (other, other_name) = map(_value_and_unit, node.parts)
      if other is None:
        return one, f'{name}/{other_name}'
  return node, ''
