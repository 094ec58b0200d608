# SPDX-License-Identifier: Apache-2.0
"""Equality of expressions, by evaluation at many points.

Unlike symbolic simplification it takes a bounded time. It computes with more
digits than the answers have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import mpmath

from covrl.rewards.math.ast import Node
from covrl.rewards.math.evaluate import (
  OutOfBounds,
  Undefined,
  Value,
  as_number,
  evaluate,
  is_close,
  is_complex,
)
from covrl.rewards.math.modular import huge_values_are_equal

MAX_DIGITS = 1000

# Ranges of the values of symbols, (smallest, largest); each gives one point.
_RANGES = ((0.1, 1), (1, 5), (-1, 1), (-5, 5), (0.1, 3), (2, 40), (-9, -1))
_CONSTANTS = {'e', 'i', '\\pi'}


def equal(left: Node, right: Node) -> bool | None:
  """Returns whether two expressions are equal wherever both are defined.

  Args:
    left: tree of one expression.
    right: tree of the other expression.

  Returns:
    `None` if undecided: both are defined at too few points.
  """
  ambiguous_log = any(_has_log_without_base(node) for node in (left, right))
  verdict = None
  # `log` has base 10 or e: equality for one of them suffices.
  for natural_log in (False, True) if ambiguous_log else (False,):
    verdict = _equal(left, right, natural_log)
    if verdict:
      break
  return verdict


def proportional(left: Node, right: Node, *, positive: bool) -> bool | None:
  """Returns whether one expression is a nonzero constant times the other.

  Args:
    left: tree of one expression.
    right: tree of the other expression.
    positive: whether the constant must be positive.

  Returns:
    `None` if undecided: both have no symbols, or nonzero values at too few points.
  """
  names = sorted(symbols(left) | symbols(right))
  if not names:
    return None
  factor, compared_points = None, 0
  precision = _precision(left, right)
  for point in _points(names):
    try:
      numerator, denominator = (
        evaluate(node, point, precision) for node in (left, right)
      )
    except Undefined:
      continue
    if is_close(denominator, 0, precision) or is_close(numerator, 0, precision):
      if not is_close(numerator, denominator, precision):
        return False
      continue
    with mpmath.workdps(precision):
      ratio = as_number(numerator) / as_number(denominator)
    if factor is None:
      factor = ratio
    if not is_close(factor, ratio, precision):
      return False
    compared_points += 1
  if compared_points < 3 or factor is None:
    return None
  return not positive or bool(mpmath.re(factor) > 0)


def real_value(node: Node) -> Value:
  """Returns the real value of an expression without symbols.

  Raises:
    Undefined: if it has symbols, or is not real.
  """
  if symbols(node):
    raise Undefined('it has symbols')
  precision = _precision(node)
  value = evaluate(node, {}, precision)
  with mpmath.workdps(precision):
    value = as_number(value)
  if not is_close(mpmath.im(value), 0, precision):
    raise Undefined('it is not real')
  return mpmath.re(value)


def symbols(node: Node) -> set[str]:
  """Returns the variables of an expression."""
  if node.kind == 'symbol':
    return {node.value} - _CONSTANTS
  return {name for part in node.parts for name in symbols(part)}


def _equal(left: Node, right: Node, natural_log: bool) -> bool | None:
  """Returns whether two expressions are equal, with one meaning of `log`."""
  precision = _precision(left, right)
  names = sorted(symbols(left) | symbols(right))
  has_imaginary_unit = any(_has_symbol(node, 'i') for node in (left, right))
  equal_real_points, equal_complex_points = 0, 0
  for point in _points(names):
    try:
      values = [
        evaluate(node, point, precision, natural_log=natural_log)
        for node in (left, right)
      ]
    except OutOfBounds:
      if not names:
        return bool(huge_values_are_equal(left, right))
      continue
    except Undefined:
      continue
    one, other = values
    same = is_close(one, other, precision)
    if (
      names
      and not has_imaginary_unit
      and (is_complex(one) or is_complex(other))
    ):
      # Outside the real domain, equal expressions may differ by branches.
      equal_complex_points += same
      continue
    if not same:
      return False
    equal_real_points += 1
  if not names:
    return True if equal_real_points else None
  return True if equal_real_points >= 2 or equal_complex_points >= 3 else None


def _points(names: Sequence[str]) -> list[dict[str, Fraction]]:
  """Returns the points of comparison; one point without symbols."""
  if not names:
    return [{}]
  points: list[dict[str, Fraction]] = []
  for index, (low, high) in enumerate(_RANGES):
    generators = {name: random.Random(f'{index} {name}') for name in names}
    points.append(
      {
        name: Fraction(round(rng.uniform(low, high) * 1009), 1009)
        for name, rng in generators.items()
      }
    )
  # Factorials and signs such as (−1)^n are defined for integers only. Common
  # divisors distinguish gcd(a, b) from 1.
  for factor in (1, 6):
    for index in range(4):
      generators = {
        name: random.Random(f'whole {index} {name}') for name in names
      }
      points.append(
        {
          name: factor * Fraction(rng.randint(2, 9))
          for name, rng in generators.items()
        }
      )
  return points


def _precision(*nodes: Node) -> int:
  """Returns the precision: more digits than any number in the answers."""
  digits = max(map(_digits, nodes))
  if digits > MAX_DIGITS:
    raise OutOfBounds('too many digits')
  return 60 + 2 * digits


def _digits(node: Node) -> int:
  """Returns the digits of the longest number in an expression."""
  digits_of_node = 0
  if node.kind == 'number':
    digits_of_node = (
      sum(map(int.bit_length, node.value.as_integer_ratio())) * 3 // 10 + 1
    )
  return max(digits_of_node, *map(_digits, node.parts), 0)


def _has_symbol(node: Node, name: str) -> bool:
  if node.kind == 'symbol' and node.value == name:
    return True
  return any(_has_symbol(part, name) for part in node.parts)


def _has_log_without_base(node: Node) -> bool:
  if node.kind == 'call' and node.value == 'log' and len(node.parts) == 1:
    return True
  return any(map(_has_log_without_base, node.parts))
