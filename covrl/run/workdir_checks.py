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
"""Name of the `identity` of the run directory in the metadata of checkpoints."""


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


def identity(directory: epath.Path) -> dict[str, Any]:
  """Returns the path of a run directory and, on a disk, its inode.

  A directory that is renamed keeps its inode, a copy has another one.
  """
  result: dict[str, Any] = {'path': str(directory)}
  if not storage.is_bucket(directory):
    result['inode'] = os.stat(directory).st_ino
  return result


def check_not_shared(
  directory: epath.Path, folders: Iterable[str], saved: Mapping[str, Any]
) -> None:
  """Refuses a copy of a run of which a link leads to the original's folder.

  A copy that keeps links would remove the original's checkpoints, and replace its
  samples. If the directory that wrote the checkpoint is no longer at its path, any
  link may be one to the folder of another run.

  Args:
    directory: the run directory.
    folders: names of the run's folders.
    saved: metadata of the checkpoint to resume from, with the `identity` of the
      directory that wrote it.

  Raises:
    ConfigError: a folder is that of the other directory, or may be.
  """
  writer = saved.get(WORKDIR)
  if not writer or storage.is_bucket(directory):
    return
  path, original = pathlib.Path(directory), pathlib.Path(writer['path'])
  if _is_same(path, original) or os.stat(path).st_ino == writer.get('inode'):
    return
  for name in folders:
    is_unknown = path.joinpath(name).is_symlink() and not original.exists()
    if is_unknown or _is_same(path / name, original / name):
      raise ConfigError(
        f'{path / name} must be of this run alone, got a link, and its checkpoint was'
        f' written by {original}; replace the link by the folder, or by a copy if the'
        ' other run is to keep it'
      )


def _is_same(path: pathlib.Path, other: pathlib.Path) -> bool:
  """Returns whether two paths exist and lead to the same file."""
  with contextlib.suppress(OSError):
    return os.path.samefile(path, other)
  return False
