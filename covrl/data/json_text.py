# SPDX-License-Identifier: Apache-2.0
"""Parsing of JSON from users: rows of files and requests."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any


class LongNumber(float):
  """A number whose text has digits that a float of 64 bits does not hold."""


def _number(text: str) -> float:
  """Parses a number with a point or an exponent.

  >>> _number('0.1'), type(_number('3.14159265358979323846')).__name__
  (0.1, 'LongNumber')
  """
  value = float(text)
  # Less than half of a unit in the 17th digit is what writing a float cuts.
  is_exact = len(text) <= 17 or Decimal(repr(value)) == Decimal(text)
  return value if is_exact or len(_digits(text)) <= 17 else LongNumber(value)


def _digits(text: str) -> str:
  """Returns the significant digits of a number."""
  mantissa = text.lower().partition('e')[0]
  return mantissa.lstrip('-').replace('.', '').strip('0')


def parse_json(text: bytes | bytearray, subject: str) -> Any:
  """Parses JSON, in which no object may have a name twice.

  A number with more digits than a float holds is a `LongNumber`.

  Args:
    text: the text.
    subject: description of the text, for errors.

  Raises:
    ValueError: it cannot be parsed, or an object has a name twice.

  >>> parse_json(b'{"a": 1, "a": 2}', 'a row')
  Traceback (most recent call last):
  ValueError: a row must have every name once, got 'a' twice
  """
  repeated: list[str] = []

  def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
      if name in fields:
        repeated.append(name)
      fields[name] = value
    return fields

  try:
    content = json.loads(text, object_pairs_hook=to_object, parse_float=_number)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'{subject} must be JSON, got {str(error)[:200]}'
    ) from None
  if repeated:
    raise ValueError(
      f'{subject} must have every name once, got {repeated[0][:100]!r} twice'
    )
  return content
