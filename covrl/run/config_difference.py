# SPDX-License-Identifier: Apache-2.0
"""Differences between a recipe and the `config.json` of a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covrl.config import (
  CHANGEABLE_ON_RESUME,
  Recipe,
  flatten,
  from_dict,
  version_difference,
)

_CHANGED_SOURCES = 'the config file has changed since'


def difference(saved: Mapping[str, Any], recipe: Recipe) -> str:
  """Describes the first difference for which a recipe cannot resume a run.

  Args:
    saved: the content of a valid `config.json`.
    recipe: the recipe to compare it with.
  """
  if saved['name'] != recipe.name:
    return f'of {saved["name"]}, and not of {recipe.name}'
  if changes := version_difference(saved['config']):
    return f'of another version of covrl, {changes}'
  saved_fields, fields = (
    flatten(from_dict(saved['config'])),
    flatten(recipe.config),
  )
  for name, value in fields.items():
    if saved_fields[name] != value and not name.startswith(
      CHANGEABLE_ON_RESUME
    ):
      return f'{name} is {saved_fields[name]!r} there and {value!r} here'
  return _CHANGED_SOURCES


def describe_edit(saved: Mapping[str, Any] | None, recipe: Recipe) -> str:
  """Describes how the `config.json` of a recipe was edited; empty if it was not.

  Args:
    saved: the content of `config.json`; `None` if it is not valid.
    recipe: the recipe that it described.
  """
  if saved is None:
    return 'is damaged'
  changes = difference(saved, recipe)
  if saved['identity'] == recipe.identity and changes == _CHANGED_SOURCES:
    return ''
  return f'was changed ({changes})'
