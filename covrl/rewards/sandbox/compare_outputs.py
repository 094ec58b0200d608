# SPDX-License-Identifier: Apache-2.0
"""Comparison of printed output and returned values with the expected ones.

The judge compares bytes or values decoded from JSON; no object of the program
takes part.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

TOLERANCE = 1e-6
"""Relative tolerance for floats; for printed ones also absolute."""

_NEAR_ZERO = 1e-9
_FRACTION = re.compile(rb'[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?')
_LONGEST = 4000


def same_output(printed: bytes, expected: bytes) -> bool:
  """Returns whether printed output matches the expected one.

  Trailing whitespace of lines and trailing empty lines are ignored. An expected
  decimal fraction matches any number close to it.

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
  """Returns whether a returned value matches the expected one (both JSON).

  Booleans match booleans only, integers match integers only. An expected float
  matches any number close to it; NaN matches NaN.

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
  """Decodes a value that came out of a sandbox.

  Raises:
    ValueError: if the text is not JSON, is nested too deeply, or has an integer
      of too many digits.
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
  # Separators are compared, too, since output may be a drawing.
  parts, wanted_parts = re.split(rb'(\s+)', line), re.split(rb'(\s+)', wanted)
  return len(parts) == len(wanted_parts) and all(
    part == other or _same_fraction(part, other)
    for part, other in zip(parts, wanted_parts, strict=True)
  )


def _same_fraction(part: bytes, wanted: bytes) -> bool:
  """Returns whether a number is close to an expected decimal fraction."""
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
