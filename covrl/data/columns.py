# SPDX-License-Identifier: Apache-2.0
"""Access to the columns of one row of a dataset file, with error messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.data.problems import abbreviate

_TYPE_NAMES = (
  (bool, 'true or false'),
  (int | float, 'a number'),
  (str, 'text'),
  (bytes, 'bytes'),
  (Mapping, 'an object'),
  (Sequence, 'a list'),
)


class Row:
  """Named columns and the location of the row in its file.

  Nested columns have dotted names: `reward_model.ground_truth`.

  >>> row = Row({'prompt': '1 + 1', 'extra': {'n': 3}}, 'row 1 of sums.jsonl')
  >>> row.value('extra.n'), row.has('answer')
  (3, False)
  >>> row.text('answer', 'solution')
  Traceback (most recent call last):
  ValueError: row 1 of sums.jsonl must have the column 'answer' or 'solution', got 'prompt', 'extra'

  Args:
    columns: the parsed row, a mapping from column names to values.
    location: file and row, for messages.

  Raises:
    ValueError: the row is not a mapping.
  """

  def __init__(self, columns: Any, location: str) -> None:
    self.location = location
    if not isinstance(columns, Mapping):
      raise ValueError(
        f'{self.location} must be an object with named columns,'
        f' got {type_name(columns)}'
      )
    self.columns = columns

  def has(self, name: str) -> bool:
    """Whether the column exists and is not null."""
    return self.value(name) is not None

  def value(self, name: str) -> Any:
    """Value of a column, or `None` if the column is missing."""
    value: Any = self.columns
    for part in name.split('.'):
      value = value.get(part) if isinstance(value, Mapping) else None
    return value

  def first_present(self, *names: str) -> str:
    """Name of the first of these columns that is present and not null.

    Raises:
      ValueError: all of them are missing or null.
    """
    for name in names:
      if self.has(name):
        return name
    for name in names:
      if self._is_null(name):
        raise self.error(name, 'hold a value')
    raise ValueError(
      f'{self.location} must have the column'
      f' {" or ".join(map(repr, names))},'
      f' got {", ".join(map(repr, self.columns)) or "none"}'
    )

  def text(self, *names: str) -> str:
    """Text of the first of these columns that is present.

    Raises:
      ValueError: all of them are missing, or the value is not text.
    """
    name = self.first_present(*names)
    value = self.value(name)
    if not isinstance(value, str):
      raise self.error(name, 'hold text')
    if not value.strip():
      raise self.error(name, 'hold text that is not blank')
    return value

  def check_encodable(self, name: str) -> None:
    """Checks that no text in a column has a lone surrogate.

    Raises:
      ValueError: there is one, or the value is nested too deeply to be checked.
    """
    value = self.value(name)
    try:
      if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
      value.encode()
    except UnicodeEncodeError as error:
      surrogate = error.object[error.start]
      raise self.error(
        name, f'hold valid Unicode without the lone surrogate {surrogate!r}'
      ) from None
    except (ValueError, RecursionError) as error:
      raise self.error(name, f'hold values of JSON ({error})') from None

  def error(self, name: str, requirement: str) -> ValueError:
    """Error that a column must meet a requirement, with its actual value.

    Args:
      name: the column.
      requirement: completes "column … must"; for example `'hold text'`.
    """
    value = self.value(name)
    shown = type_name(value)
    if isinstance(value, str | int | float):
      shown = abbreviate(str(value), 40)
    return ValueError(
      f'column {name!r} of {self.location} must {requirement}, got {shown}'
    )

  def _is_null(self, name: str) -> bool:
    """Whether a column is present, with the value null."""
    outer, _, inner = name.rpartition('.')
    parent = self.value(outer) if outer else self.columns
    return isinstance(parent, Mapping) and inner in parent


def type_name(value: Any) -> str:
  """The type of a JSON value, in words.

  >>> type_name(3), type_name(True), type_name([1]), type_name(None)
  ('a number', 'true or false', 'a list', 'null')
  """
  for kind, name in _TYPE_NAMES:
    if isinstance(value, kind):
      return name
  return 'null' if value is None else type(value).__name__
