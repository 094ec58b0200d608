# SPDX-License-Identifier: Apache-2.0
"""Whether expressions are equal: if their values are, at many points.

What a simplifier would prove, this finds in a time that is known beforehand, with
more digits than the answers have.
"""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Sequence
from fractions import Fraction
from types import FrameType
from typing import Any

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

MAX_DIGITS = 1000
_AGAIN = 0.1  # seconds from one ring of the clock to the next

# Where symbols are put: (smallest, largest); each range is tried in turn.
_RANGES = ((0.1, 1), (1, 5), (-1, 1), (-5, 5), (0.1, 3), (2, 40), (-9, -1))
_CONSTANTS = {'e', 'i', '\\pi'}


class OutOfTime(Exception):
  """Comparing took longer than allowed."""


class TimeLimit:
  """Lets what is done within compute for so long, wherever it is by then.

  By a timer of the process, whose signal interrupts regular expressions, too. It
  counts what is computed, not what others of the machine are waited for, and
  only rings in a main thread: a worker's. It rings until it is heard. (SIGPROF,
  the obvious one, is also what libtpu rings with, as soon as someone listens.)

  Raises:
    OutOfTime: it is over.
  """

  def __init__(self, seconds: float) -> None:
    self._seconds = seconds
    self._before: Any = None

  def __enter__(self) -> None:
    self._before = signal.signal(signal.SIGVTALRM, _ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds, _AGAIN)

  def __exit__(self, *_: object) -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    # A ring may still be on its way, and would end a process without a handler.
    if self._before is not signal.SIG_DFL:
      signal.signal(signal.SIGVTALRM, self._before)


def _ring(_: int, frame: FrameType | None) -> None:
  """Raises, but not where that would be lost, or leave the timer running.

  What a callback of the garbage collector raises is lost; JAX has one.
  """
  if not any(signal.getitimer(signal.ITIMER_VIRTUAL)):
    return
  callbacks = (TimeLimit.__enter__, TimeLimit.__exit__, *gc.callbacks)
  silent = {getattr(callback, '__code__', None) for callback in callbacks}
  while frame is not None:
    if frame.f_code in silent:
      return
    frame = frame.f_back
  raise OutOfTime


def equal(left: Node, right: Node) -> bool | None:
  """Whether two expressions have the same value, wherever both have one.

  Args:
    left: an expression.
    right: another.

  Returns:
    `None` where it cannot be told: too few points at which both are defined.
  """
  bare_logarithm = any(_has_bare_logarithm(node) for node in (left, right))
  verdict = None
  # `log` is to base 10 or e; if both agree in one way of reading it, they do.
  for natural in (False, True) if bare_logarithm else (False,):
    verdict = _equal(left, right, natural)
    if verdict:
      break
  return verdict


def proportional(left: Node, right: Node, *, positive: bool) -> bool | None:
  """Whether one expression is a constant other than 0 times the other.

  Args:
    left: an expression.
    right: another.
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
        evaluate(node, point, precision) for node in (left, right)
      )
    except Undefined:
      continue
    if is_close(below, 0, precision) or is_close(above, 0, precision):
      if not is_close(above, below, precision):
        return False
      continue
    with mpmath.workdps(precision):
      ratio = as_number(above) / as_number(below)
    if factor is None:
      factor = ratio
    if not is_close(factor, ratio, precision):
      return False
    seen += 1
  if seen < 3 or factor is None:
    return None
  return not positive or bool(mpmath.re(factor) > 0)


def constant(node: Node) -> Value:
  """The real value of an expression without symbols.

  Raises:
    Undefined: it has symbols, or is not real.
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
  """Names in an expression that stand for any number."""
  if node.kind == 'symbol':
    return {node.value} - _CONSTANTS
  return {name for part in node.parts for name in symbols(part)}


def _equal(left: Node, right: Node, natural: bool) -> bool | None:
  precision = _precision(left, right)
  names = sorted(symbols(left) | symbols(right))
  imaginary = any(_has_symbol(node, 'i') for node in (left, right))
  seen, unreal = 0, 0
  for point in _points(names):
    try:
      values = [
        evaluate(node, point, precision, natural=natural)
        for node in (left, right)
      ]
    except OutOfBounds:
      if not names:
        return False
      continue
    except Undefined:
      continue
    one, other = values
    same = is_close(one, other, precision)
    if names and not imaginary and (is_complex(one) or is_complex(other)):
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
  digits = max(map(_digits, nodes))
  if digits > MAX_DIGITS:
    raise OutOfBounds('too many digits')
  return 60 + 2 * digits


def _digits(node: Node) -> int:
  """Of the longest number in an expression."""
  own = 0
  if node.kind == 'number':
    own = sum(map(int.bit_length, node.value.as_integer_ratio())) * 3 // 10 + 1
  return max(own, *map(_digits, node.parts), 0)


def _has_symbol(node: Node, name: str) -> bool:
  if node.kind == 'symbol' and node.value == name:
    return True
  return any(_has_symbol(part, name) for part in node.parts)


def _has_bare_logarithm(node: Node) -> bool:
  if node.kind == 'call' and node.value == 'log' and len(node.parts) == 1:
    return True
  return any(map(_has_bare_logarithm, node.parts))
