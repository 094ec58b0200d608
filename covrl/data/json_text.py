# SPDX-License-Identifier: Apache-2.0
"""Parsing of JSON from users: rows of files and requests."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: bytes | bytearray, subject: str) -> Any:
  """Parses JSON, in which no object may have a name twice.

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
    content = json.loads(text, object_pairs_hook=to_object)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'{subject} must be JSON, got {str(error)[:200]}'
    ) from None
  if repeated:
    raise ValueError(
      f'{subject} must have every name once, got {repeated[0][:100]!r} twice'
    )
  return content
