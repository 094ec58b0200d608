# SPDX-License-Identifier: Apache-2.0
"""Conversion of a configuration to and from plain values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from covrl.config.fields import Config


def from_dict(fields: Mapping[str, Any]) -> Config:
  """Returns a `Config` from nested plain values, as in `config.json`.

  Fields that are missing have their defaults.
  """

  def build(default: Any, values: Mapping[str, Any]) -> Any:
    return dataclasses.replace(
      default,
      **{
        name: build(getattr(default, name), value)
        if dataclasses.is_dataclass(getattr(default, name))
        else value
        for name, value in values.items()
        if hasattr(default, name)
      },
    )

  return build(Config(), fields)


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """Returns the values of all fields by dotted name.

  >>> flatten(Config())['train.iterations']
  30
  """
  flat: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    name = f'{prefix}{field.name}'
    if dataclasses.is_dataclass(value):
      flat.update(flatten(value, f'{name}.'))
    else:
      flat[name] = value
  return flat
