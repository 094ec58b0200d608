# SPDX-License-Identifier: Apache-2.0
"""Parses the names and weights of training files, `data.train`."""

from __future__ import annotations

import math

from covrl import storage
from covrl.config import ConfigError
from covrl.data.readers import TFDS
from covrl.data.shards import check_shards


def weighted_files(names: str) -> list[tuple[str, float | None]]:
  """Parses `FILE=WEIGHT, FILE, …` into files and weights; all `None` without any.

  Raises:
    ConfigError: a weight is not a positive number, or a pattern matches no file.

  >>> weighted_files('tfds:gsm8k/train=2, b.jsonl')
  [('tfds:gsm8k/train', 2.0), ('b.jsonl', 1.0)]
  """
  # Files and weight of each entry.
  entries: list[tuple[list[str], float | None]] = []
  for entry in filter(None, map(str.strip, names.split(','))):
    name, equals, text = entry.rpartition('=')
    try:
      weight = float(text) if equals else None
      if weight is not None and not 0 < weight < math.inf:
        raise ValueError
    except ValueError:
      raise ConfigError(
        'data.train must be files, each with a positive number behind = if it'
        f' has a weight, got {entry!r}'
      ) from None
    matches = [name if equals else entry]
    if '*' in matches[0] and not matches[0].startswith(TFDS):
      matches = _matching_files(matches[0])
    entries.append((matches, weight))
  if all(weight is None for _, weight in entries):
    return [(match, None) for matches, _ in entries for match in matches]
  # The shards of a pattern share its weight.
  return [
    (match, (1.0 if weight is None else weight) / len(matches))
    for matches, weight in entries
    for match in matches
  ]


def _matching_files(pattern: str) -> list[str]:
  """Returns the files that match a pattern, sorted."""
  path = storage.as_path(pattern)
  matches = sorted(map(str, path.parent.glob(path.name)))
  if not matches:
    raise ConfigError(
      f'data.train must name files, got {pattern}, which matches none'
    )
  check_shards(
    map(storage.as_path, matches),
    '; to train on some of them, name these one by one',
  )
  return matches
