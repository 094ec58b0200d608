# SPDX-License-Identifier: Apache-2.0
"""A configuration as plain values, nested or by dotted names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from covrl.config.fields import Config


def from_dict(fields: Mapping[str, Any]) -> Config:
  """A `Config` from nested plain fields, as `config.json` keeps them."""

  def build(kind: type, values: Mapping[str, Any]) -> Any:
    return kind(
      **{
        field.name: build(type(getattr(kind(), field.name)), value)
        if dataclasses.is_dataclass(getattr(kind(), field.name))
        else value
        for field in dataclasses.fields(kind)
        if (value := values.get(field.name)) is not None
      }
    )

  return build(Config, fields)


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """Dotted field names to plain values.

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
