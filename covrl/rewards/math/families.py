# SPDX-License-Identifier: Apache-2.0
"""Families of numbers with an integer parameter: kπ, 2nπ ± π/3, 3 + 7k.

A family in which an expression grows by the same amount every few integers is a
union of residue classes; two families are equal if their classes are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import mpmath

from covrl.rewards.math import numeric
from covrl.rewards.math.ast import Node
from covrl.rewards.math.evaluate import Undefined, Value, as_number, evaluate

# Letters that may be integer parameters without a declaration such as k ∈ ℤ.
PARAMETER_LETTERS = frozenset('knmlpqrstj')
# Names of an integer and of a natural parameter after renaming.
INTEGER_PARAMETER = 'integer parameter'
NATURAL_PARAMETER = 'natural parameter'
# Largest number of steps of the parameter in which an expression grows by its period.
_MAX_STEPS = 6
_DIGITS = 60  # decimal digits of values
_TOLERANCE = 1e-30  # difference of values that are equal
_MAX_RESIDUES = 500  # residues of a family modulo the common period


class _ResidueClass(NamedTuple):
  """The numbers that differ from a residue by multiples of a period."""

  residue: Value
  period: Value


def same_family(left: Sequence[Node], right: Sequence[Node]) -> bool | None:
  """Returns whether two families have the same members.

  Args:
    left: expressions of one family, in the symbol `INTEGER_PARAMETER`.
    right: expressions of the other family.

  Returns:
    `None` if one is not a union of residue classes.
  """
  with mpmath.workdps(_DIGITS):
    try:
      classes = [
        [
          residue_class
          for expression in side
          for residue_class in _residue_classes(expression)
        ]
        for side in (left, right)
      ]
      period = _common_period([c.period for side in classes for c in side])
      one, other = (_residues(side, period) for side in classes)
    except (Undefined, ArithmeticError, ValueError):
      return None
    return _covers(one, other, period) and _covers(other, one, period)


def rename_symbols(node: Node, names: dict[str, str]) -> Node:
  """Renames symbols of an expression."""
  if node.kind == 'symbol' and node.value in names:
    return dataclasses.replace(node, value=names[node.value])
  parts = tuple(rename_symbols(part, names) for part in node.parts)
  return dataclasses.replace(node, parts=parts)


def undeclared_parameter(node: Node) -> str | None:
  """Returns the only symbol of an expression, if it may be an integer."""
  names = numeric.symbols(node)
  if len(names) == 1 and names <= PARAMETER_LETTERS:
    return min(names)
  return None


def _residue_classes(expression: Node) -> list[_ResidueClass]:
  """Returns the residue classes that an expression runs through."""
  values = [
    as_number(evaluate(expression, {INTEGER_PARAMETER: Fraction(k)}, _DIGITS))
    for k in range(-_MAX_STEPS, 2 * _MAX_STEPS + 1)
  ]
  if any(abs(mpmath.im(value)) > _TOLERANCE for value in values):
    raise Undefined('not real')
  values = [mpmath.re(value) for value in values]
  for steps in range(1, _MAX_STEPS + 1):
    differences = [
      later - value
      for value, later in zip(values, values[steps:], strict=False)
    ]
    period = differences[0]
    if abs(period) < _TOLERANCE:
      continue
    if all(
      abs(other - period) < _TOLERANCE * (1 + abs(period))
      for other in differences
    ):
      return [_ResidueClass(value, abs(period)) for value in values[:steps]]
  raise Undefined('not a union of residue classes')


def _common_period(periods: list[Value]) -> Value:
  """Returns the least common multiple of periods with rational ratios."""
  first = periods[0]
  multiple = Fraction(1)
  for period in periods:
    ratio = Fraction(str(mpmath.nstr(period / first, 40))).limit_denominator(
      1000
    )
    if ratio <= 0 or abs(
      first * ratio.numerator / ratio.denominator - period
    ) > (_TOLERANCE * period):
      raise Undefined('periods without a common multiple')
    multiple = Fraction(
      math.lcm(multiple.numerator, ratio.numerator),
      math.gcd(multiple.denominator, ratio.denominator),
    )
  return first * multiple.numerator / multiple.denominator


def _residues(classes: list[_ResidueClass], period: Value) -> list[Value]:
  """Returns all residues of classes modulo a multiple of their periods."""
  residues: list[Value] = []
  for residue, class_period in classes:
    count = int(mpmath.nint(period / class_period))
    if len(residues) + count > _MAX_RESIDUES:
      raise Undefined('too many residues')
    for index in range(count):
      value = residue + index * class_period
      residues.append(value - period * mpmath.floor(value / period))
  return residues


def _covers(one: list[Value], other: list[Value], period: Value) -> bool:
  """Returns whether every residue of `other` is one of `one`."""

  def is_near(value: Value, residue: Value) -> bool:
    distance = abs(value - residue)
    return min(distance, abs(period - distance)) < _TOLERANCE * (1 + period)

  return all(any(is_near(value, residue) for residue in one) for value in other)
