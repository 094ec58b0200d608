# SPDX-License-Identifier: Apache-2.0
"""What an expression is worth, within bounds: towers and factorials stop early.

Rational arithmetic is exact; all else has more digits than the answers have.
Two expressions are equal if they are so at many points: what a simplifier would
prove, this finds in a time that is known beforehand.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath

from covrl.rewards.maths.reading import Node

# No intermediate value is beyond 2**±MAX_BITS, nor is a fraction longer.
MAX_BITS = 20_000
MAX_DIGITS = 1000

# Where symbols are put: (smallest, largest); each range is tried in turn.
_RANGES = ((0.1, 1), (1, 5), (-1, 1), (-5, 5), (0.1, 3), (2, 40), (-9, -1))
_CONSTANTS = {'e', 'i', '\\pi'}

Value: TypeAlias = Any
"""A `Fraction`, or a real or complex number of mpmath."""


class Undefined(ArithmeticError):
  """An expression has no value, or none within bounds."""


class OutOfBounds(Undefined):
  """An expression has a value that is beyond what is computed."""


class OutOfTime(Exception):
  """Comparing took longer than allowed."""


class Clock:
  """Seconds of computing that are left; those of other processes do not count.

  Args:
    seconds: from now on.
  """

  def __init__(self, seconds: float) -> None:
    self._end = time.process_time() + seconds

  def check(self) -> None:
    """Raises `OutOfTime` where none are."""
    if time.process_time() > self._end:
      raise OutOfTime


def equal(left: Node, right: Node, clock: Clock) -> bool | None:
  """Whether two expressions have the same value, wherever both have one.

  Args:
    left: an expression.
    right: another.
    clock: the time there is.

  Returns:
    `None` where it cannot be told: too few points at which both are defined.
  """
  bare_logarithm = any(_has_bare_logarithm(node) for node in (left, right))
  verdict = None
  # `log` is to base 10 or e; if both agree in one way of reading it, they do.
  for natural in (False, True) if bare_logarithm else (False,):
    verdict = _equal(left, right, clock, natural)
    if verdict:
      break
  return verdict


def proportional(
  left: Node, right: Node, clock: Clock, *, positive: bool
) -> bool | None:
  """Whether one expression is a constant other than 0 times the other.

  Args:
    left: an expression.
    right: another.
    clock: the time there is.
    positive: whether the constant must be positive.
  """
  names = sorted(symbols(left) | symbols(right))
  if not names:
    return None
  factor, seen = None, 0
  precision = _precision(left, right)
  for point in _points(names):
    try:
      above, below = (
        evaluate(node, point, clock, precision) for node in (left, right)
      )
    except Undefined:
      continue
    if _is_close(below, 0, precision) or _is_close(above, 0, precision):
      if not _is_close(above, below, precision):
        return False
      continue
    with mpmath.workdps(precision):
      ratio = _number(above) / _number(below)
    if factor is None:
      factor = ratio
    if not _is_close(factor, ratio, precision):
      return False
    seen += 1
  if seen < 3 or factor is None:
    return None
  return not positive or bool(mpmath.re(factor) > 0)


def constant(node: Node, clock: Clock) -> Value:
  """The real value of an expression without symbols.

  Raises:
    Undefined: it has symbols, or is not real.
  """
  if symbols(node):
    raise Undefined('it has symbols')
  value = evaluate(node, {}, clock, _precision(node))
  if isinstance(value, Fraction):
    return value
  if not _is_close(mpmath.im(value), 0, _precision(node)):
    raise Undefined('it is not real')
  return mpmath.re(value)


def is_close(left: Value, right: Value) -> bool:
  """Whether two values are equal but for rounding."""
  return _is_close(left, right, 60)


def symbols(node: Node) -> set[str]:
  """Names in an expression that stand for any number."""
  if node.kind == 'symbol':
    return {node.value} - _CONSTANTS
  return {name for part in node.parts for name in symbols(part)}


def evaluate(
  node: Node,
  point: Mapping[str, Fraction],
  clock: Clock,
  precision: int,
  *,
  natural: bool = False,
) -> Value:
  """The value of an expression at a point.

  Args:
    node: the expression.
    point: what its symbols are.
    clock: the time there is.
    precision: in decimal digits.
    natural: whether a logarithm without base is natural.

  Raises:
    Undefined: it has none, or is no expression.
    OutOfTime: it takes too long.
  """

  def value(node: Node) -> Value:
    clock.check()
    match node.kind:
      case 'number':
        return node.value
      case 'symbol':
        return _symbol(node.value, point)
      case 'tuple' if len(node.parts) == 1:
        return value(node.parts[0])
      case 'based':
        digits, base = node.value
        return _whole(lambda: int(digits, base))
      case 'call':
        return _call(node.value, [value(part) for part in node.parts], natural)
    if node.kind not in _OPERATIONS:
      raise Undefined(f'a {node.kind} is no expression')
    return _OPERATIONS[node.kind](*(value(part) for part in node.parts))

  with mpmath.workdps(precision):
    try:
      return _bounded(value(node))
    except Undefined:
      raise
    except (ArithmeticError, ValueError, TypeError, LookupError) as error:
      raise Undefined(str(error)) from error


def _equal(left: Node, right: Node, clock: Clock, natural: bool) -> bool | None:
  precision = _precision(left, right)
  names = sorted(symbols(left) | symbols(right))
  imaginary = any(_has_symbol(node, 'i') for node in (left, right))
  seen, unreal = 0, 0
  for point in _points(names):
    try:
      values = [
        evaluate(node, point, clock, precision, natural=natural)
        for node in (left, right)
      ]
    except OutOfBounds:
      if not names:
        return False
      continue
    except Undefined:
      continue
    same = _is_close(*values, precision)
    if names and not imaginary and any(map(_is_complex, values)):
      # Beyond the domain of reals, branches may differ without meaning it.
      unreal += same
      continue
    if not same:
      return False
    seen += 1
  if not names:
    return True if seen else None
  return True if seen >= 2 or unreal >= 3 else None


def _points(names: Sequence[str]) -> list[dict[str, Fraction]]:
  """Where to compare expressions; one point where there are no symbols."""
  if not names:
    return [{}]
  points: list[dict[str, Fraction]] = []
  for place, (low, high) in enumerate(_RANGES):
    draws = {name: random.Random(f'{place} {name}') for name in names}
    points.append(
      {
        name: Fraction(round(draw.uniform(low, high) * 1009), 1009)
        for name, draw in draws.items()
      }
    )
  # Factorials and signs such as (−1)^n are defined for whole numbers alone.
  for place in range(4):
    draws = {name: random.Random(f'whole {place} {name}') for name in names}
    points.append(
      {name: Fraction(draw.randint(2, 9)) for name, draw in draws.items()}
    )
  return points


def _precision(*nodes: Node) -> int:
  """Digits to compare with: more than any number in an answer has."""
  digits = sum(map(_digits, nodes))
  if digits > MAX_DIGITS:
    raise OutOfBounds('too many digits')
  return 60 + 2 * digits


def _digits(node: Node) -> int:
  own = 0
  if node.kind == 'number':
    own = len(f'{node.value.numerator}{node.value.denominator}')
  return own + sum(map(_digits, node.parts))


def _is_close(left: Value, right: Value, precision: int) -> bool:
  if isinstance(left, Fraction | int) and isinstance(right, Fraction | int):
    return left == right
  with mpmath.workdps(precision):
    left, right = _number(left), _number(right)
    size = max(abs(left), abs(right))
    noise = mpmath.mpf(10) ** (20 - precision)
    return bool(
      size < noise or abs(left - right) < size * noise ** mpmath.mpf('0.6')
    )


def _is_complex(value: Value) -> bool:
  return not isinstance(value, Fraction) and bool(
    abs(mpmath.im(value)) > 1e-20 * (1 + abs(mpmath.re(value)))
  )


def _has_symbol(node: Node, name: str) -> bool:
  if node.kind == 'symbol' and node.value == name:
    return True
  return any(_has_symbol(part, name) for part in node.parts)


def _has_bare_logarithm(node: Node) -> bool:
  if node.kind == 'call' and node.value == 'log' and len(node.parts) == 1:
    return True
  return any(map(_has_bare_logarithm, node.parts))


# Operations, on exact and on inexact numbers.


def _number(value: Value) -> Value:
  """The same number as one of mpmath's."""
  if isinstance(value, Fraction):
    return mpmath.mpf(value.numerator) / value.denominator
  return mpmath.mpmathify(value)


def _bounded(value: Value) -> Value:
  if isinstance(value, Fraction):
    if max(map(int.bit_length, value.as_integer_ratio())) > MAX_BITS:
      raise OutOfBounds('too many digits')
  elif not mpmath.isfinite(value) or (
    value != 0 and abs(mpmath.mag(value)) > MAX_BITS
  ):
    raise OutOfBounds('too large or too small')
  return value


def _add(*values: Value) -> Value:
  return functools.reduce(
    functools.partial(_exactly, lambda a, b: a + b), values
  )


def _multiply(left: Value, right: Value) -> Value:
  return _exactly(lambda a, b: a * b, left, right)


def _divide(left: Value, right: Value) -> Value:
  return _exactly(lambda a, b: a / b, left, right)


def _exactly(
  operation: Callable[[Value, Value], Value], left: Value, right: Value
) -> Value:
  if isinstance(left, Fraction) and isinstance(right, Fraction):
    return _bounded(operation(left, right))
  return _bounded(operation(_number(left), _number(right)))


def _power(base: Value, exponent: Value) -> Value:
  if isinstance(exponent, Fraction) and exponent.denominator == 1:
    if isinstance(base, Fraction):
      bits = max(map(int.bit_length, base.as_integer_ratio()))
      if (bits - 1) * abs(exponent) > MAX_BITS:
        raise OutOfBounds('too large a power')
      return _bounded(base ** int(exponent))
    exponent = int(exponent)
  base, exponent = _number(base), _number(exponent)
  if base == 0 and mpmath.re(exponent) <= 0:
    raise Undefined('a power of nought')
  if base == 0:
    return Fraction(0)
  if abs(exponent) * (1 + abs(mpmath.log(base))) > MAX_BITS:
    raise OutOfBounds('too large a power')
  return _bounded(mpmath.power(base, exponent))


def _root(radicand: Value, index: Value) -> Value:
  if not isinstance(index, Fraction) or index.denominator != 1 or index == 0:
    raise Undefined('a root of a strange index')
  if isinstance(radicand, Fraction) and radicand < 0 and index % 2:
    return _multiply(Fraction(-1), _power(-radicand, 1 / index))
  return _power(radicand, 1 / index)


def _factorial(value: Value) -> Value:
  if not isinstance(value, Fraction) or value.denominator != 1:
    raise Undefined('a factorial of no whole number')
  if not 0 <= value <= 1500:
    raise OutOfBounds('a factorial out of bounds')
  return Fraction(math.factorial(int(value)))


def _absolute(value: Value) -> Value:
  return abs(value)


def _degree(value: Value) -> Value:
  return _number(value) * mpmath.pi / 180


def _symbol(name: str, point: Mapping[str, Fraction]) -> Value:
  match name:
    case '\\pi':
      return +mpmath.pi
    case 'e':
      return +mpmath.e
    case 'i':
      return mpmath.mpc(0, 1)
  return point[name]


def _call(name: str, values: list[Value], natural: bool) -> Value:
  if name in _EXACT:
    return _EXACT[name](values)
  if name == 'log' and len(values) == 1:
    base: Value = mpmath.e if natural else Fraction(10)
    values = [values[0], base]
  if name == 'log':
    argument, base = map(_number, values)
    return _bounded(_logarithm(argument) / _logarithm(base))
  if name not in _FUNCTIONS or len(values) != 1:
    raise Undefined(f'{name} is not known')
  return _bounded(_FUNCTIONS[name](_number(values[0])))


def _logarithm(value: Value) -> Value:
  if value == 0:
    raise Undefined('the logarithm of nought')
  return mpmath.log(value)


def _exponential(value: Value) -> Value:
  if abs(value) > MAX_BITS:
    raise OutOfBounds('too large a power')
  return mpmath.exp(value)


def _whole(make: Callable[[], int]) -> Fraction:
  return Fraction(make())


def _reals(values: list[Value]) -> list[Value]:
  if any(map(_is_complex, values)):
    raise Undefined('not real')
  return [v if isinstance(v, Fraction) else mpmath.re(v) for v in values]


def _integers(values: list[Value]) -> list[int]:
  if any(not isinstance(v, Fraction) or v.denominator != 1 for v in values):
    raise Undefined('no whole numbers')
  return [int(value) for value in values]


def _binomial(values: list[Value]) -> Value:
  top, bottom = _integers(values)
  if not 0 <= bottom <= 1000 or not 0 <= top < 1 << 64:
    raise OutOfBounds('a binomial out of bounds')
  if bottom * top.bit_length() > MAX_BITS:
    raise OutOfBounds('a binomial out of bounds')
  return Fraction(math.comb(top, bottom))


def _floor(values: list[Value]) -> Value:
  (value,) = _reals(values)
  nearest = Fraction(int(mpmath.nint(_number(value))))
  whole = nearest if is_close(value, nearest) else mpmath.floor(_number(value))
  return Fraction(int(whole))


_EXACT: dict[str, Callable[[list[Value]], Value]] = {
  'binom': _binomial,
  'floor': _floor,
  'ceil': lambda values: -_floor([-value for value in values]),
  'max': lambda values: max(_reals(values)),
  'min': lambda values: min(_reals(values)),
  'gcd': lambda values: Fraction(math.gcd(*_integers(values))),
  'lcm': lambda values: Fraction(math.lcm(*_integers(values))),
}
_FUNCTIONS: dict[str, Callable[[Value], Value]] = {
  **{
    name: getattr(mpmath, name)
    for name in 'sin cos tan cot sec csc sinh cosh tanh coth'.split()
  },
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
