# SPDX-License-Identifier: Apache-2.0
"""Checks of the owner of a run's recipe, before the recipe is executed."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Iterator

from etils import epath

from covrl.config import ConfigError

_ADVICE = 'pass --trust to execute it nevertheless'


def check_files(directory: epath.PathLike) -> None:
  """Refuses pipes and devices in place of a recipe's files, whose reading may not end.

  Args:
    directory: the run directory, a path on a disk or in a bucket.

  Raises:
    ConfigError: the recipe's directory has one; the message names it.
  """
  path = os.fspath(directory)
  if '://' in path:
    return
  for entry in _entries(pathlib.Path(path)):
    if not (entry.is_file() or entry.is_dir()):
      raise ConfigError(f'{entry} must be a file, got something else')


def check_owner(directory: epath.PathLike) -> None:
  """Refuses a run directory whose recipe another user may have written.

  The copy of the recipe is executed with the rights of the user who opens the run.
  Files in a bucket have no owners that could be compared.

  Args:
    directory: the run directory, a path on a disk or in a bucket.

  Raises:
    ConfigError: the directory, its recipe directory or a file in it belongs to
      another user or can be written by every user.
  """
  path = os.fspath(directory)
  if '://' in path:
    return
  for entry in _entries(pathlib.Path(path)):
    status = entry.stat()
    if status.st_uid != os.geteuid():
      raise ConfigError(
        f'{path} holds a recipe that is executed when the run is opened, and'
        f' {entry} belongs to another user ({_user_name(status.st_uid)});'
        f' {_ADVICE}'
      )
    if status.st_mode & stat.S_IWOTH:
      raise ConfigError(
        f'{path} holds a recipe that is executed when the run is opened, and'
        f' {entry} can be written by every user; {_ADVICE}'
      )


def _entries(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the existing files and directories that decide which code is executed."""
  recipe = directory / 'recipe'
  for entry in (directory, directory / 'config.json', recipe):
    if entry.exists():
      yield entry
  if recipe.is_dir():
    yield from sorted(recipe.iterdir())


def _user_name(uid: int) -> str:
  """Returns the name of a user, or the id of one without a name."""
  import pwd

  try:
    return pwd.getpwuid(uid).pw_name
  except KeyError:
    return f'user id {uid}'
