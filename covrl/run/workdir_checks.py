# SPDX-License-Identifier: Apache-2.0
"""Checks of the path of a run directory, and that no other run uses its folders."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from covrl import storage
from covrl.config import ConfigError

WORKDIR = 'workdir'
"""Name of the run directory in the metadata of checkpoints."""


# Characters of glob patterns. Orbax searches for a checkpoint's metadata by a
# pattern made of its path: a run whose path has one could not be resumed.
_GLOB_CHARACTERS = ('*', '?', '[', '\\')


def check_path(directory: epath.Path) -> None:
  """Checks that a run directory has a path that all libraries can use.

  Raises:
    ConfigError: the path is a file, has characters of glob patterns or is not
      Unicode.
  """
  path = str(storage.absolute(directory))
  if path.encode(errors='replace').decode() != path:
    raise ConfigError(f'--workdir must be Unicode, got {path!r}')
  if character := next((c for c in _GLOB_CHARACTERS if c in path), ''):
    raise ConfigError(
      f'--workdir must be without {" ".join(_GLOB_CHARACTERS)}, which are read as glob'
      f' patterns when a checkpoint is restored, got {character} in {path}'
    )
  if directory.exists() and not storage.is_directory(directory):
    raise ConfigError(f'--workdir must be a directory, got {directory}')


def check_not_shared(
  directory: epath.Path, folders: Iterable[str], saved: Mapping[str, Any]
) -> None:
  """Refuses a copy of a run of which a link leads to the original's folder.

  A copy that keeps links would remove the original's checkpoints, and replace its
  samples.

  Args:
    directory: the run directory.
    folders: names of the run's folders.
    saved: metadata of the checkpoint to resume from, with the run directory that
      wrote it.

  Raises:
    ConfigError: both directories exist and use one folder.
  """
  writer = saved.get(WORKDIR, '')
  if not writer or storage.is_bucket(directory):
    return
  path, original = pathlib.Path(directory), pathlib.Path(writer)
  if _is_same(path, original):
    return
  for name in folders:
    if _is_same(path / name, original / name):
      raise ConfigError(
        f'{path / name} must be of this run alone, got that of {original}, by a link;'
        ' replace the link by a copy of the folder'
      )


def _is_same(path: pathlib.Path, other: pathlib.Path) -> bool:
  """Returns whether two paths exist and lead to the same file."""
  with contextlib.suppress(OSError):
    return os.path.samefile(path, other)
  return False
