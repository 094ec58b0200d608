# SPDX-License-Identifier: Apache-2.0
"""Typed access to the metadata of a GGUF file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class Metadata:
  """The fields of the metadata of a GGUF file, whose types are checked.

  The methods take the name of a field; those for single values also take a default
  for an absent one.

  Attributes:
    file: name of the file, for errors.
    fields: numbers, texts, and lists of either, by name.

  Raises:
    ValueError: from every method, if the field has another type, or is absent
      without a default.

  >>> Metadata('a.gguf', {'llama.block_count': 'x'}).integer('llama.block_count')
  Traceback (most recent call last):
  ValueError: a.gguf: llama.block_count must be an integer, got x
  """

  file: str
  fields: Mapping[str, Any]

  @overload
  def integer(self, name: str, /) -> int: ...
  @overload
  def integer(self, name: str, default: _T, /) -> int | _T: ...
  def integer(self, name: str, /, *default: Any) -> Any:
    """Value of a field that is an integer of at least 0."""
    return self._get(name, 'an integer', _is_count, default)

  @overload
  def number(self, name: str, /) -> float: ...
  @overload
  def number(self, name: str, default: _T, /) -> float | _T: ...
  def number(self, name: str, /, *default: Any) -> Any:
    """Value of a field that is a finite number."""
    return self._get(name, 'a finite number', _is_number, default)

  @overload
  def flag(self, name: str, /) -> bool: ...
  @overload
  def flag(self, name: str, default: _T, /) -> bool | _T: ...
  def flag(self, name: str, /, *default: Any) -> Any:
    """Value of a field that is true or false."""
    return self._get(name, 'true or false', _is_flag, default)

  @overload
  def text(self, name: str, /) -> str: ...
  @overload
  def text(self, name: str, default: _T, /) -> str | _T: ...
  def text(self, name: str, /, *default: Any) -> Any:
    """Value of a field that is a text."""
    return self._get(name, 'a text', _is_text, default)

  def texts(self, name: str) -> list[str]:
    """Value of a field that is a list of texts."""
    return self._get(name, 'a list of texts', _is_list_of(_is_text), ())

  def integers(self, name: str) -> list[int]:
    """Value of a field that is a list of integers of at least 0."""
    return self._get(name, 'a list of integers', _is_list_of(_is_count), ())

  def numbers(self, name: str) -> list[float]:
    """Value of a field that is a list of finite numbers."""
    return self._get(name, 'a list of numbers', _is_list_of(_is_number), ())

  def error(self, name: str, requirement: str) -> ValueError:
    """The error for a field with an unsupported value."""
    value = str(self.fields.get(name, 'none'))[:80]
    return ValueError(f'{self.file}: {name} must be {requirement}, got {value}')

  def _get(
    self,
    name: str,
    requirement: str,
    is_valid: Callable[[Any], bool],
    default: tuple[Any, ...],
  ) -> Any:
    """A field of a valid type; the default, if there is one, for an absent field."""
    if name not in self.fields and default:
      return default[0]
    if name not in self.fields or not is_valid(self.fields[name]):
      raise self.error(name, requirement)
    return self.fields[name]


def _is_count(value: Any) -> bool:
  return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _is_flag(value: Any) -> bool:
  return type(value) is bool


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_list_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
  """Returns a function that checks for a list of valid values."""
  return lambda value: isinstance(value, list) and all(map(is_valid, value))
