# SPDX-License-Identifier: Apache-2.0
"""Bounded evaluation of expressions: huge powers and factorials are refused.

Rational arithmetic is exact; everything else has a given number of digits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath

from covrl.rewards.math.ast import Node

# Rows of a determinant.
MAX_DETERMINANT_ROWS = 6
# Bounds of intermediate values: a number lies in 2**±MAX_BITS, and numerator and
# denominator of a fraction have at most MAX_BITS bits.
MAX_BITS = 20_000

Value: TypeAlias = Any
"""A `Fraction`, or a real or complex number of mpmath."""


class Undefined(ArithmeticError):
  """An expression has no value within bounds."""


class OutOfBounds(Undefined):
  """The value of an expression exceeds the bounds."""


def evaluate(
  node: Node,
  point: Mapping[str, Fraction],
  precision: int,
  *,
  natural_log: bool = False,
) -> Value:
  """Evaluates an expression at a point.

  Args:
    node: the expression.
    point: values of its symbols.
    precision: decimal digits.
    natural_log: whether a logarithm without base is natural.

  Raises:
    Undefined: if it has no value, or is not an expression.
  """

  def value(node: Node) -> Value:
    match node.kind:
      case 'number':
        return node.value
      case 'symbol':
        return _symbol(node.value, point)
      case 'tuple' if len(node.parts) == 1:
        return value(node.parts[0])
      case 'based':
        digits, base = node.value
        return Fraction(int(digits, base))
      case 'determinant':
        return _determinant([value(part) for part in node.parts], node.value)
      case 'call':
        return _call(
          node.value, [value(part) for part in node.parts], natural_log
        )
    if node.kind not in _OPERATIONS:
      raise Undefined(f'a {node.kind} is not an expression')
    return _OPERATIONS[node.kind](*(value(part) for part in node.parts))

  with mpmath.workdps(precision):
    try:
      return _bounded(value(node))
    except Undefined:
      raise
    except (ArithmeticError, ValueError, TypeError, LookupError) as error:
      raise Undefined(str(error)) from error


def is_close(left: Value, right: Value, precision: int) -> bool:
  """Returns whether two values of a given precision are equal."""
  if isinstance(left, Fraction) and isinstance(right, Fraction):
    return left == right
  with mpmath.workdps(precision):
    left, right = as_number(left), as_number(right)
    size = max(abs(left), abs(right))
    # Rounding error of a value that is 0; its power is the relative tolerance.
    noise = mpmath.mpf(10) ** (20 - precision)
    return bool(
      size < noise or abs(left - right) < size * noise ** mpmath.mpf('0.6')
    )


def is_complex(value: Value) -> bool:
  """Returns whether a value has an imaginary part."""
  return not isinstance(value, Fraction) and bool(
    abs(mpmath.im(value)) > 1e-20 * (1 + abs(mpmath.re(value)))
  )


def as_number(value: Value) -> Value:
  """Converts a value to an mpmath number."""
  if isinstance(value, Fraction):
    return mpmath.mpf(value.numerator) / value.denominator
  return mpmath.mpmathify(value)


def _bounded(value: Value) -> Value:
  """Returns a value; raises `OutOfBounds` if it is too large or too small."""
  if isinstance(value, Fraction):
    if max(map(int.bit_length, value.as_integer_ratio())) > MAX_BITS:
      raise OutOfBounds('too many digits')
  elif not mpmath.isfinite(value) or (
    value != 0 and abs(mpmath.mag(value)) > MAX_BITS
  ):
    raise OutOfBounds('too large or too small')
  return value


def _add(*values: Value) -> Value:
  return functools.reduce(functools.partial(_apply, lambda a, b: a + b), values)


def _multiply(left: Value, right: Value) -> Value:
  return _apply(lambda a, b: a * b, left, right)


def _divide(left: Value, right: Value) -> Value:
  return _apply(lambda a, b: a / b, left, right)


def _apply(
  operation: Callable[[Value, Value], Value], left: Value, right: Value
) -> Value:
  """Applies an operation, exactly to fractions."""
  if isinstance(left, Fraction) and isinstance(right, Fraction):
    return _bounded(operation(left, right))
  return _bounded(operation(as_number(left), as_number(right)))


def _power(base: Value, exponent: Value) -> Value:
  """Returns a power; exact for a fraction with an integer exponent."""
  if isinstance(exponent, Fraction) and exponent.denominator == 1:
    if isinstance(base, Fraction):
      bits = max(map(int.bit_length, base.as_integer_ratio()))
      if (bits - 1) * abs(exponent) > MAX_BITS:
        raise OutOfBounds('too large a power')
      return _bounded(base ** int(exponent))
    exponent = int(exponent)
  base, exponent = as_number(base), as_number(exponent)
  if base == 0 and mpmath.re(exponent) <= 0:
    raise Undefined('a non-positive power of 0')
  if base == 0:
    return Fraction(0)
  if abs(exponent) * (1 + abs(mpmath.log(base))) > MAX_BITS:
    raise OutOfBounds('too large a power')
  return _bounded(mpmath.power(base, exponent))


def _root(radicand: Value, index: Value) -> Value:
  """Returns a root; real for an odd root of a negative fraction."""
  if not isinstance(index, Fraction) or index.denominator != 1 or index == 0:
    raise Undefined('a root of an invalid index')
  if isinstance(radicand, Fraction) and radicand < 0 and index % 2:
    return _multiply(Fraction(-1), _power(-radicand, 1 / index))
  return _power(radicand, 1 / index)


def _factorial(value: Value) -> Value:
  if not isinstance(value, Fraction) or value.denominator != 1:
    raise Undefined('a factorial of a non-integer')
  if not 0 <= value <= 1500:
    raise OutOfBounds('a factorial out of bounds')
  return Fraction(math.factorial(int(value)))


def _absolute(value: Value) -> Value:
  return abs(value)


def _degree(value: Value) -> Value:
  return as_number(value) * mpmath.pi / 180


def _determinant(cells: list[Value], size: int) -> Value:
  """Returns a determinant, by expansion along the first row."""
  if size > MAX_DETERMINANT_ROWS:
    raise OutOfBounds('too large a determinant')
  if size == 1:
    return cells[0]
  total: Value = Fraction(0)
  for column in range(size):
    minor = [
      cells[row * size + other]
      for row in range(1, size)
      for other in range(size)
      if other != column
    ]
    term = _multiply(cells[column], _determinant(minor, size - 1))
    total = _add(total, term if column % 2 == 0 else -term)
  return total


def _symbol(name: str, point: Mapping[str, Fraction]) -> Value:
  """Returns the value of a constant or of a symbol at the point."""
  match name:
    case '\\pi':
      return +mpmath.pi
    case 'e':
      return +mpmath.e
    case 'i':
      return mpmath.mpc(0, 1)
  return point[name]


def _call(name: str, values: list[Value], natural_log: bool) -> Value:
  """Returns the value of a function of the tables below, or of a logarithm."""
  if name in _EXACT_FUNCTIONS:
    return _EXACT_FUNCTIONS[name](values)
  if name == 'log' and len(values) == 1:
    base: Value = mpmath.e if natural_log else Fraction(10)
    values = [values[0], base]
  if name == 'log':
    argument, base = map(as_number, values)
    return _bounded(_logarithm(argument) / _logarithm(base))
  if name not in _FUNCTIONS or len(values) != 1:
    raise Undefined(f'unknown function {name}')
  return _bounded(_FUNCTIONS[name](as_number(values[0])))


def _logarithm(value: Value) -> Value:
  if value == 0:
    raise Undefined('the logarithm of 0')
  return mpmath.log(value)


def _exponential(value: Value) -> Value:
  if abs(value) > MAX_BITS:
    raise OutOfBounds('too large a power')
  return mpmath.exp(value)


def _reals(values: list[Value]) -> list[Value]:
  """Returns the real parts of values, which must be real."""
  if any(map(is_complex, values)):
    raise Undefined('not real')
  return [v if isinstance(v, Fraction) else mpmath.re(v) for v in values]


def _integers(values: list[Value]) -> list[int]:
  """Returns values as integers, which they must be."""
  if any(not isinstance(v, Fraction) or v.denominator != 1 for v in values):
    raise Undefined('integers are required')
  return [int(value) for value in values]


def _binomial(values: list[Value]) -> Value:
  top, bottom = _integers(values)
  if not 0 <= bottom <= 1000 or not 0 <= top < 1 << 64:
    raise OutOfBounds('a binomial out of bounds')
  if bottom * top.bit_length() > MAX_BITS:
    raise OutOfBounds('a binomial out of bounds')
  return Fraction(math.comb(top, bottom))


def _permutations(values: list[Value]) -> Value:
  total, chosen = _integers(values)
  if not 0 <= chosen <= total <= 1000:
    raise OutOfBounds('permutations out of bounds')
  return Fraction(math.perm(total, chosen))


def _floor(values: list[Value]) -> Value:
  (value,) = _reals(values)
  nearest = Fraction(int(mpmath.nint(as_number(value))))
  whole = (
    nearest if is_close(value, nearest, 60) else mpmath.floor(as_number(value))
  )
  return Fraction(int(whole))


_TRIGONOMETRIC = 'sin cos tan cot sec csc sinh cosh tanh coth'
_EXACT_FUNCTIONS: dict[str, Callable[[list[Value]], Value]] = {
  'binom': _binomial,
  'perm': _permutations,
  'floor': _floor,
  'ceil': lambda values: -_floor([-value for value in values]),
  'max': lambda values: max(_reals(values)),
  'min': lambda values: min(_reals(values)),
  'gcd': lambda values: Fraction(math.gcd(*_integers(values))),
  'lcm': lambda values: Fraction(math.lcm(*_integers(values))),
}
_FUNCTIONS: dict[str, Callable[[Value], Value]] = {
  **{name: getattr(mpmath, name) for name in _TRIGONOMETRIC.split()},
  'arcsin': mpmath.asin,
  'arccos': mpmath.acos,
  'arctan': mpmath.atan,
  'arccot': mpmath.acot,
  'arcsec': mpmath.asec,
  'arccsc': mpmath.acsc,
  'arcsinh': mpmath.asinh,
  'arccosh': mpmath.acosh,
  'arctanh': mpmath.atanh,
  'ln': _logarithm,
  'lg': lambda value: _logarithm(value) / mpmath.log(10),
  'exp': _exponential,
  'Re': mpmath.re,
  'Im': mpmath.im,
  'arg': mpmath.arg,
  'cis': lambda value: mpmath.expj(value),
}
_OPERATIONS: dict[str, Callable[..., Value]] = {
  'sum': _add,
  'product': _multiply,
  'quotient': _divide,
  'power': _power,
  'root': _root,
  'negative': lambda value: -value,
  'factorial': _factorial,
  'percent': lambda value: _divide(value, Fraction(100)),
  'degree': _degree,
  'absolute': _absolute,
}
