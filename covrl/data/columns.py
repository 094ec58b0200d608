# SPDX-License-Identifier: Apache-2.0
"""One row of a file, asked for its columns; what is wrong is one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = (
  (bool, 'true or false'),
  (int | float, 'a number'),
  (str, 'text'),
  (Mapping, 'an object'),
  (Sequence, 'a list'),
)


class Row:
  """Named columns, and where they are.

  Columns within columns have dotted names: `reward_model.ground_truth`.

  >>> row = Row({'prompt': '1 + 1', 'extra': {'n': 3}}, 'row 1 of sums.jsonl')
  >>> row.value('extra.n'), row.has('answer')
  (3, False)
  >>> row.text('answer', 'solution')
  Traceback (most recent call last):
  ValueError: Row 1 of sums.jsonl must have the column 'answer' or 'solution', got 'prompt', 'extra'.

  Args:
    columns: of the row.
    place: for sentences.

  Raises:
    ValueError: the row is no object with named columns.
  """

  def __init__(self, columns: Any, place: str) -> None:
    self.place = place
    if not isinstance(columns, Mapping):
      raise ValueError(
        f'{self._there} must be an object with named columns, got'
        f' {kind_of(columns)}.'
      )
    self.columns = columns

  def has(self, name: str) -> bool:
    """Whether the column is there, and not empty."""
    return self.value(name) is not None

  def value(self, name: str) -> Any:
    """What the column holds; `None` where it is not there."""
    value: Any = self.columns
    for part in name.split('.'):
      value = value.get(part) if isinstance(value, Mapping) else None
    return value

  def column(self, *names: str) -> str:
    """The first of some columns that is there.

    Raises:
      ValueError: none is.
    """
    for name in names:
      if self.has(name):
        return name
    for name in names:
      if self._is_null(name):
        raise self.refusal(name, 'hold something')
    raise ValueError(
      f'{self._there} must have the column {" or ".join(map(repr, names))},'
      f' got {", ".join(map(repr, self.columns)) or "none"}.'
    )

  def text(self, *names: str) -> str:
    """The text of the first of some columns that is there.

    Raises:
      ValueError: none is, or it holds no text.
    """
    name = self.column(*names)
    value = self.value(name)
    if not isinstance(value, str):
      raise self.refusal(name, 'hold text')
    if not value.strip():
      raise self.refusal(name, 'hold some text')
    return value

  def refusal(self, name: str, wanted: str) -> ValueError:
    """That a column must do something, and what it holds instead."""
    value = self.value(name)
    shown = kind_of(value)
    if isinstance(value, str | int | float):
      text = str(value)
      shown = repr(text if len(text) <= 40 else f'{text[:40]}…')
    return ValueError(
      f'Column {name!r} of {self.place} must {wanted}, got {shown}.'
    )

  def _is_null(self, name: str) -> bool:
    outer, _, inner = name.rpartition('.')
    inside = self.value(outer) if outer else self.columns
    return isinstance(inside, Mapping) and inner in inside

  @property
  def _there(self) -> str:
    return f'{self.place[0].upper()}{self.place[1:]}'


def kind_of(value: Any) -> str:
  """The type of a JSON value, in words.

  >>> kind_of(3), kind_of(True), kind_of([1]), kind_of(None)
  ('a number', 'true or false', 'a list', 'nothing')
  """
  for kind, name in _KINDS:
    if isinstance(value, kind):
      return name
  return 'nothing' if value is None else type(value).__name__
