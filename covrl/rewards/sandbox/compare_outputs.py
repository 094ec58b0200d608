# SPDX-License-Identifier: Apache-2.0
"""Whether what came out of a sandbox is what was asked for.

It is compared here, by the judge, as bytes or as values that JSON has made: no
object of the program's own takes part.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

TOLERANCE = 1e-6
"""Relative, for floats; printed ones may be off by it absolutely, too."""

_NEAR_ZERO = 1e-9
_FRACTION = re.compile(rb'[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?')
_LONGEST = 4000


def same_output(printed: bytes, expected: bytes) -> bool:
  """Whether a program printed what it should have.

  Whitespace at the end of lines, and empty lines at the end, do not count.
  Where a decimal fraction is expected, one that is close to it will do.

  >>> same_output(b'1 2  \\n3', b'1 2\\n3\\n')
  True
  >>> same_output(b'0.3333333333', b'0.333333')
  True
  >>> same_output(b'1.0', b'1')
  False
  """
  lines, wanted = _lines(printed), _lines(expected)
  return lines == wanted or (
    len(lines) == len(wanted) and all(map(_same_line, lines, wanted))
  )


def same_value(value: Any, expected: Any) -> bool:
  """Whether a call returned what it should have, both made by JSON.

  A bool is a bool only, an integer an integer only. Where a float is expected,
  any number close to it will do; a NaN is the same as a NaN.

  >>> same_value([1, 2.0000000001], [1, 2.0])
  True
  >>> [same_value(value, 1) for value in (1, True, 1.0)]
  [True, False, False]
  """
  if isinstance(expected, float):
    return _is_number(value) and _close(value, expected, _NEAR_ZERO)
  if type(value) is not type(expected):
    return False
  if isinstance(expected, list):
    return len(value) == len(expected) and all(map(same_value, value, expected))
  if isinstance(expected, dict):
    return value.keys() == expected.keys() and all(
      same_value(value[key], expected[key]) for key in expected
    )
  return value == expected


def read_json(text: bytes) -> Any:
  """A value that came out of a sandbox.

  Raises:
    ValueError: it is not one JSON value, or one that is absurd.
  """
  try:
    return json.loads(text, parse_int=_integer)
  except RecursionError:
    raise ValueError('it is nested too deeply') from None


def _lines(text: bytes) -> list[bytes]:
  lines = [line.rstrip() for line in text.split(b'\n')]
  while lines and not lines[-1]:
    lines.pop()
  return lines


def _same_line(line: bytes, wanted: bytes) -> bool:
  if line == wanted:
    return True
  # With what separates them, for that may be a picture.
  parts, wanted_parts = re.split(rb'(\s+)', line), re.split(rb'(\s+)', wanted)
  return len(parts) == len(wanted_parts) and all(
    part == other or _same_fraction(part, other)
    for part, other in zip(parts, wanted_parts, strict=True)
  )


def _same_fraction(part: bytes, wanted: bytes) -> bool:
  """Whether both are numbers, the one wanted with a point or exponent."""
  if not _FRACTION.fullmatch(wanted) or len(part) > 400:
    return False
  if not (_FRACTION.fullmatch(part) or re.fullmatch(rb'[+-]?\d+', part)):
    return False
  return _close(float(part), float(wanted), TOLERANCE)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _close(value: float, expected: float, near_zero: float) -> bool:
  if math.isnan(expected):
    return math.isnan(value)
  try:
    return math.isclose(value, expected, rel_tol=TOLERANCE, abs_tol=near_zero)
  except OverflowError:
    return False


def _integer(digits: str) -> int:
  if len(digits) > _LONGEST:
    raise ValueError(f'an integer of {len(digits)} digits')
  return int(digits)
