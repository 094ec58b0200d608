# SPDX-License-Identifier: Apache-2.0
"""Conversion of a configuration to and from plain values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from covrl.config.errors import ConfigError
from covrl.config.fields import Config


def from_dict(fields: Mapping[str, Any]) -> Config:
  """Returns a `Config` from nested plain values, as in `config.json`.

  Fields that are missing have their defaults; unknown ones are left out, see
  `unknown_fields`.

  Raises:
    ConfigError: a value is of another type than the field.
  """

  def build(default: Any, values: Mapping[str, Any], prefix: str = '') -> Any:
    """Returns a dataclass with values replaced, recursively."""
    changes = {}
    for name, value in values.items():
      field_default = getattr(default, name, None)
      if not hasattr(default, name):
        continue
      _check_type(f'{prefix}{name}', field_default, value)
      changes[name] = (
        build(field_default, value, f'{prefix}{name}.')
        if dataclasses.is_dataclass(field_default)
        else value
      )
    return dataclasses.replace(default, **changes)

  return build(Config(), fields)


def unknown_fields(fields: Mapping[str, Any]) -> list[str]:
  """Returns the dotted names of saved fields that `Config` does not have.

  >>> unknown_fields({'seed': 1, 'train': {'later': 2}})
  ['train.later']
  """

  def names(default: Any, values: Mapping[str, Any], prefix: str) -> list[str]:
    """Returns the dotted names of unknown fields, recursively."""
    result: list[str] = []
    for name, value in values.items():
      if not hasattr(default, name):
        result.append(f'{prefix}{name}')
      elif dataclasses.is_dataclass(getattr(default, name)):
        result += names(getattr(default, name), value, f'{prefix}{name}.')
    return result

  return names(Config(), fields, '')


def missing_fields(fields: Mapping[str, Any]) -> list[str]:
  """Returns the dotted names of fields of `Config` that were not saved.

  A section without any is named as a whole.

  >>> missing_fields(dataclasses.asdict(Config()) | {'mesh': {'data': 1}})
  ['mesh.fsdp', 'mesh.tensor', 'mesh.expert', 'mesh.context']
  """

  def names(default: Any, values: Mapping[str, Any], prefix: str) -> list[str]:
    """Returns the dotted names of missing fields, recursively."""
    result: list[str] = []
    for name in (field.name for field in dataclasses.fields(default)):
      if name not in values:
        result.append(f'{prefix}{name}')
      elif dataclasses.is_dataclass(getattr(default, name)):
        result += names(
          getattr(default, name), values[name], f'{prefix}{name}.'
        )
    return result

  return names(Config(), fields, '')


def version_difference(fields: Mapping[str, Any]) -> str:
  """Describes which fields another version of covrl has saved; empty if none.

  Args:
    fields: saved fields, as nested mappings.

  >>> saved = dataclasses.asdict(Config())
  >>> saved['train']['clip'] = saved['train'].pop('clip_low')
  >>> version_difference(saved)
  'with train.clip and without train.clip_low'
  """
  differences = (
    ('with', unknown_fields(fields)),
    ('without', missing_fields(fields)),
  )
  return ' and '.join(
    f'{word} {", ".join(names)}' for word, names in differences if names
  )


def _check_type(name: str, default: Any, value: Any) -> None:
  """Raises `ConfigError` if a saved value is of another type than the field."""
  expected_type = (
    Mapping if dataclasses.is_dataclass(default) else type(default)
  )
  # A float without a fraction may be saved as an integer; Python's bools are ints.
  allowed = (int, float) if expected_type is float else expected_type
  if not isinstance(value, allowed) or (
    isinstance(value, bool) and expected_type is not bool
  ):
    required = 'object' if expected_type is Mapping else expected_type.__name__
    raise ConfigError(
      f'{name} must have a value of type {required}, got {str(value)[:50]!r}'
    )


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """Returns the values of all fields by dotted name.

  >>> flatten(Config())['train.iterations']
  30
  """
  flat: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    # Not a read of the field, see `covrl.config.recorded_reads`.
    value = object.__getattribute__(config, field.name)
    name = f'{prefix}{field.name}'
    if dataclasses.is_dataclass(value):
      flat.update(flatten(value, f'{name}.'))
    else:
      flat[name] = value
  return flat
