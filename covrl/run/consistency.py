# SPDX-License-Identifier: Apache-2.0
"""Processes of one run must be of one mind, and their number must divide it."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
import zlib
from collections.abc import Sequence

import numpy as np

from covrl.config import Config, ConfigError, Recipe, flatten
from covrl.data import ProblemSource
from covrl.data.problems import fingerprint_of
from covrl.parallel import distributed

# What decides what a run computes, besides covrl.
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain')


def check_agreement(recipe: Recipe, workdir: str) -> None:
  """Refuses a run whose processes differ, or cannot share its batches.

  Args:
    recipe: this process's.
    workdir: this process's.

  Raises:
    ConfigError: on every process; names the one that differs, and in what.
  """
  check_divides(recipe.config, distributed.count())
  if distributed.count() == 1:
    return
  fields = flatten(recipe.config)
  for what, parts in (
    ('code or versions', [_code()]),
    ('config file', [''.join(recipe.sources.values()), *fields]),
    ('--workdir', [workdir]),
  ):
    _compare(what, [''.join(parts)], [what])
  _compare('configuration', [*map(str, fields.values())], [*fields])


def check_problems(source: ProblemSource) -> None:
  """Refuses a run whose processes have read different problems.

  Args:
    source: those that this process trains on.

  Raises:
    ConfigError: on every process; names the one that differs.
  """
  if distributed.count() > 1:
    what = 'problems to train on'
    _compare(what, [f'{len(source)} {fingerprint_of(source)}'], ['set'])


def check_divides(config: Config, processes: int) -> None:
  """Refuses batches that so many processes cannot share evenly.

  Raises:
    ConfigError: says which.
  """
  shared = {
    'rollout.prompts_per_iteration': config.rollout.prompts_per_iteration,
    'warm_start.batch_size': config.warm_start.batch_size,
  }
  if config.warm_start.steps == 0:
    del shared['warm_start.batch_size']
  for name, size in shared.items():
    if size % processes:
      raise ConfigError(
        f'{name} must be a multiple of the {processes} processes, got {size}'
      )


def _compare(what: str, values: Sequence[str], names: Sequence[str]) -> None:
  """Compares texts by their checksums over all processes."""
  own = np.array([[zlib.crc32(text.encode()) for text in values]], np.uint32)
  everyone = distributed.gather_rows(own)
  for process, theirs in enumerate(everyone):
    differs = np.flatnonzero(theirs != everyone[0])
    if differs.size:
      name = names[differs[0]]
      raise ConfigError(
        f'all processes must have the same {what}, process {process} has '
        f'another {name} than process 0'
      )


def _code() -> str:
  """The program's own text, and what it runs on."""
  here = pathlib.Path(__file__).parents[1]
  files = sorted(here.rglob('*.py'))
  text = ''.join(file.read_text() for file in files)
  versions = ' '.join(map(importlib.metadata.version, _LIBRARIES))
  return f'{platform.python_version()} {versions} {text}'
