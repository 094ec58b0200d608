# SPDX-License-Identifier: Apache-2.0
"""Equality of huge integers and fractions, by residues and magnitude.

Values of more than `evaluate.MAX_BITS` bits are not computed. They are equal, up to
a negligible probability, if they agree modulo primes and in their leading digits.
"""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath

from covrl.rewards.math.ast import Node
from covrl.rewards.math.evaluate import Undefined, Value, evaluate

# Exponents beyond this bound are refused.
MAX_EXPONENT = 10**15
# Factorials of larger numbers are refused.
MAX_FACTORIAL = 20_000
# Decimal digits of magnitudes.
_DIGITS = 80
# Leading digits in which the magnitudes of equal values agree.
_EQUAL_DIGITS = 40
# Decimal digits in which an exponent is evaluated.
_EXPONENT_DIGITS = 60
# Primes p for which (p − 1) / 2 is prime, too: no small power of a number is 1.
_PRIMES = (
  2305843009213691579,
  9223372036854771239,
  4611686018427377339,
)


def huge_values_are_equal(left: Node, right: Node) -> bool | None:
  """Returns whether two rational numbers are equal.

  Args:
    left: tree of one expression, without symbols.
    right: tree of the other expression.

  Returns:
    `None` if one is not a rational number within bounds.
  """
  try:
    if any(_residue(left, p) != _residue(right, p) for p in _PRIMES):
      return False
    with mpmath.workdps(_DIGITS):
      first, second = _magnitude(left), _magnitude(right)
      size = max(abs(first), abs(second))
      return bool(
        abs(first - second) <= size * mpmath.mpf(10) ** -_EQUAL_DIGITS
      )
  except (Undefined, ArithmeticError, ValueError, MemoryError):
    return None


def _exponent(node: Node) -> int:
  """Evaluates an exponent, which must be an integer within bounds."""
  value = evaluate(node, {}, _EXPONENT_DIGITS)
  if not isinstance(value, Fraction) or value.denominator != 1:
    raise Undefined('an integer exponent is required')
  if abs(value) > MAX_EXPONENT:
    raise Undefined('too large a power')
  return int(value)


def _residue(node: Node, prime: int) -> int:
  """Returns the value modulo a prime."""
  match node.kind:
    case 'number':
      top, bottom = node.value.as_integer_ratio()
      return top * pow(bottom, -1, prime) % prime
    case 'negative':
      return -_residue(node.parts[0], prime) % prime
    case 'sum':
      return sum(_residue(part, prime) for part in node.parts) % prime
    case 'product':
      return math.prod(_residue(part, prime) for part in node.parts) % prime
    case 'quotient':
      top, bottom = (_residue(part, prime) for part in node.parts)
      return top * pow(bottom, -1, prime) % prime
    case 'power':
      base, exponent = node.parts
      return pow(_residue(base, prime), _exponent(exponent), prime)
    case 'factorial':
      product = 1
      for factor in range(2, _factorial_argument(node) + 1):
        product = product * factor % prime
      return product
  raise Undefined(f'a {node.kind} is not a huge number')


def _magnitude(node: Node) -> Value:
  """Returns the value in floating point, of any exponent."""
  match node.kind:
    case 'number':
      return mpmath.mpf(node.value.numerator) / node.value.denominator
    case 'negative':
      return -_magnitude(node.parts[0])
    case 'sum':
      return mpmath.fsum(_magnitude(part) for part in node.parts)
    case 'product':
      return _magnitude(node.parts[0]) * _magnitude(node.parts[1])
    case 'quotient':
      return _magnitude(node.parts[0]) / _magnitude(node.parts[1])
    case 'power':
      base, exponent = node.parts
      return _magnitude(base) ** _exponent(exponent)
    case 'factorial':
      return mpmath.factorial(_factorial_argument(node))
  raise Undefined(f'a {node.kind} is not a huge number')


def _factorial_argument(node: Node) -> int:
  """Evaluates the argument of a factorial, an integer within bounds."""
  value = _exponent(node.parts[0])
  if not 0 <= value <= MAX_FACTORIAL:
    raise Undefined('a factorial out of bounds')
  return value
