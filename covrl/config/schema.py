# SPDX-License-Identifier: Apache-2.0
"""Types, bounds and meanings of all config fields, by dotted name."""

import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from covrl.config.bounds import MAX_MAGNITUDES, Bounds
from covrl.config.errors import ConfigError
from covrl.config.fields import Config

_KINDS = {
  bool: 'true or false',
  int: 'an integer',
  float: 'a number',
  str: 'text',
}


@dataclasses.dataclass(frozen=True)
class Field:
  """A config field.

  Attributes:
    name: dotted name, such as `train.iterations`.
    kind: `bool`, `int`, `float` or `str`.
    choices: allowed values; empty if there is no list of them.
    bounds: bounds of numbers; `None` if all finite numbers are allowed.
    meaning: description, from the docstring of its dataclass.
  """

  name: str
  kind: type
  choices: tuple[str, ...]
  bounds: Bounds | None
  meaning: str

  def parse(self, text: str) -> bool | int | float | str:
    """Returns the value written as `text`.

    Raises:
      ValueError: the text is not a value of the field's type.
    """
    if self.kind is bool:
      values = {'true': True, '1': True, 'false': False, '0': False}
      if text.lower() not in values:
        raise ValueError(text)
      return values[text.lower()]
    return self.kind(text)

  def check(self, value: object) -> None:
    """Checks a value's type, choices and bounds.

    Raises:
      ConfigError: the value is invalid.
    """
    allowed = (int, float) if self.kind is float else (self.kind,)
    if type(value) not in allowed:
      raise ConfigError(f'{self.name} must be {self.type_name}, got {value!r}')
    if self.choices and value not in self.choices:
      raise ConfigError(
        f'{self.name} must be one of {self.choices}, got {value!r}'
      )
    if isinstance(value, int | float) and self.kind is not bool:
      bounds = self.bounds or Bounds(-math.inf)
      if not bounds.contains(value):
        requirement = (
          self.bounds.requirement if self.bounds else 'must be finite'
        )
        raise ConfigError(f'{self.name} {requirement}, got {_number(value)}')
      largest = MAX_MAGNITUDES[self.kind]
      if math.isinf(bounds.high) and abs(value) > largest:
        raise ConfigError(
          f'{self.name} must be at most {largest:.10g} in magnitude, got '
          f'{_number(value)}'
        )

  @property
  def type_name(self) -> str:
    """The type in words, as in errors."""
    return _KINDS[self.kind]


@dataclasses.dataclass(frozen=True)
class Section:
  """The fields of one dataclass.

  Attributes:
    name: its name in `Config`; empty for the fields of `Config` itself.
    title: first line of its docstring.
    fields: its fields, in order.
  """

  name: str
  title: str
  fields: tuple[Field, ...]


def _number(value: float) -> str:
  """Formats a number; integers of up to 64 bits keep all digits.

  >>> _number(0.5), _number(4294967296), _number(10**400)
  ('0.5', '4294967296', 'an integer of 1329 bits')
  """
  if not isinstance(value, int):
    return f'{value:g}'
  bits = value.bit_length()
  return str(value) if bits <= 64 else f'an integer of {bits} bits'


@functools.cache
def sections() -> tuple[Section, ...]:
  """Returns the sections of a configuration; the first has no name."""
  nested = {
    field.name: kind
    for field in dataclasses.fields(Config)
    if dataclasses.is_dataclass(kind := get_type_hints(Config)[field.name])
  }
  return (
    _section('', Config),
    *(_section(name, kind) for name, kind in nested.items()),
  )


@functools.cache
def fields_by_name() -> dict[str, Field]:
  """Returns all fields by dotted name."""
  return {
    field.name: field for section in sections() for field in section.fields
  }


def _section(name: str, kind: Any) -> Section:
  """Returns the section of a dataclass."""
  title, meanings = _documentation(kind.__doc__ or '')
  return Section(name, title, tuple(_fields(name, kind, meanings)))


def _fields(
  section: str, kind: Any, meanings: dict[str, str]
) -> Iterator[Field]:
  """Yields the fields of a dataclass that are not sections themselves."""
  hints = get_type_hints(kind, include_extras=True)
  for name in (field.name for field in dataclasses.fields(kind)):
    hint, bounds = hints[name], None
    if get_origin(hint) is Annotated:
      hint, bounds = get_args(hint)
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    if not dataclasses.is_dataclass(hint):
      dotted = f'{section}.{name}' if section else name
      yield Field(
        dotted,
        str if choices else hint,
        choices,
        bounds,
        # Absent under `python -OO`, which strips docstrings.
        meanings.get(name, ''),
      )


def _documentation(docstring: str) -> tuple[str, dict[str, str]]:
  """Splits a docstring into its first line and its attributes' descriptions.

  >>> _documentation('Title.\\n\\nAttributes:\\n  a: one\\n    two.\\n  b: c.')
  ('Title.', {'a': 'one two.', 'b': 'c.'})
  """
  head, _, rest = inspect.cleandoc(docstring).partition('Attributes:\n')
  entries = re.findall(r'^  (\w+): (.*(?:\n {4,}.*)*)', rest, re.MULTILINE)
  return head.partition('\n')[0], {
    name: ' '.join(text.split()) for name, text in entries
  }
