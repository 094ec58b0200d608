# SPDX-License-Identifier: Apache-2.0
"""Overrides of config fields from the command line."""

import copy
import difflib
from collections.abc import Iterator, Sequence

from covrl.config.errors import ConfigError
from covrl.config.fields import Config
from covrl.config.schema import Field, fields_by_name, sections

PREFIX = '--config.'


def apply(config: Config, overrides: Sequence[str]) -> Config:
  """Returns a copy of a configuration with fields overridden.

  Args:
    config: the configuration; it is not changed.
    overrides: `--config.FIELD=VALUE`, or `--config.FIELD` and `VALUE` as two
      arguments; `--config.FIELD` alone sets a bool to true.

  Raises:
    ConfigError: a field does not exist (the message names the nearest), or a
      value is of another type.

  >>> apply(Config(), ['--config.train.iterations=3', '--config.seed', '7']).seed
  7
  """
  config = copy.deepcopy(config)
  for name, text in _pairs(overrides):
    field = _find(name)
    value = _parse(field, text)
    section, _, leaf = name.rpartition('.')
    setattr(getattr(config, section) if section else config, leaf, value)
  return config


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str | None]]:
  """Yields field names and texts, `None` for a field without a value."""
  rest = list(overrides)
  while rest:
    option, equals, text = rest.pop(0).partition('=')
    if not option.startswith(PREFIX):
      raise ConfigError(
        f'overrides must look like --config.FIELD=VALUE, got {option!r}'
      )
    if equals:
      yield option.removeprefix(PREFIX), text
    elif rest and not rest[0].startswith('--'):
      yield option.removeprefix(PREFIX), rest.pop(0)
    else:
      yield option.removeprefix(PREFIX), None


def _find(name: str) -> Field:
  """Returns a field by its dotted name."""
  if name in fields_by_name():
    return fields_by_name()[name]
  for section in sections():
    if section.name == name:
      names = ', '.join(field.name for field in section.fields)
      raise ConfigError(f'{name} is a group of config fields: {names}')
  near = _nearest(name)
  hint = f'; did you mean {near}?' if near else ''
  raise ConfigError(f'there is no config field {name!r}{hint}')


def _nearest(name: str) -> str | None:
  """Returns the field with the most similar last part of its name.

  >>> _nearest('iterations'), _nearest('entropy.coeficient'), _nearest('xyzzy')
  ('train.iterations', 'entropy.coefficient', None)
  """
  group, _, leaf = name.rpartition('.')

  def similarity(known: str) -> tuple[float, float]:
    known_group, _, known_leaf = known.rpartition('.')
    return _ratio(leaf, known_leaf), _ratio(group, known_group)

  near = max(
    fields_by_name(),
    key=lambda known: similarity(known)[0] + 0.3 * similarity(known)[1],
  )
  return near if similarity(near)[0] > 0.6 else None


def _ratio(given: str, known: str) -> float:
  return difflib.SequenceMatcher(None, given, known).ratio()


def _parse(field: Field, text: str | None) -> bool | int | float | str:
  if text is None:
    if field.kind is bool:
      return True
    raise ConfigError(
      f'cannot apply {PREFIX}{field.name}: it needs a value, {field.type_name}'
    )
  try:
    return field.parse(text)
  except ValueError:
    raise ConfigError(
      f'cannot apply {PREFIX}{field.name}={text}: the value must be '
      f'{field.type_name}'
    ) from None
