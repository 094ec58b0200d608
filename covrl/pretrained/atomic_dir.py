# SPDX-License-Identifier: Apache-2.0
"""Atomic creation of directories: written completely or not at all.

Files are uploaded to a bucket one by one, the file that marks a directory as a
model's (`config.json`) last.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

from etils import epath

from covrl import storage

# File that the process of a temporary directory locks.
_LOCK = 'draft.lock'
_UPLOADED_LAST = ('adapter_config.json', 'config.json')


@contextlib.contextmanager
def atomic_directory(directory: epath.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary directory that replaces the target on success.

  The temporary directory is a sibling of the target. If an exception is
  raised, it is deleted; one that a killed process has left is deleted when its
  target is written again. On a disk the target outlasts a power cut.

  Args:
    directory: the target; must not exist, or be an empty directory.

  Raises:
    ValueError: the target exists and is not empty.
    StorageError: the target or a file in it cannot be written.
  """
  path = storage.as_path(directory)
  if storage.is_bucket(path):
    if path.is_dir():
      raise ValueError(
        f'{path} must not exist or be empty, got one with content'
      )
    draft = storage.temporary_directory()
    yield draft
    storage.upload(draft, path, copied_last=_UPLOADED_LAST)
    return
  target = pathlib.Path(path).absolute()
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ValueError(
      f'{target} must not exist or be empty, got one with content'
    )
  with contextlib.ExitStack() as stack:
    stack.enter_context(storage.writing(target))
    storage.make_directories(target.parent)
    _remove_abandoned(target)
    temporary = stack.enter_context(
      tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent)
    )
    lock = stack.enter_context((pathlib.Path(temporary) / _LOCK).open('xb'))
    _try_to_lock(lock)
    draft = pathlib.Path(temporary) / 'draft'
    draft.mkdir()
    yield draft
    _apply_umask(draft)
    storage.sync_tree(draft)
    if target.exists():
      target.rmdir()
    os.replace(draft, target)
    storage.sync_directory(target.parent)


def _remove_abandoned(target: pathlib.Path) -> None:
  """Removes the temporary directories of killed processes with this target.

  The system unlocks the file in one when its process ends.
  """
  pattern = f'.{glob.escape(target.name)}.*/{_LOCK}'
  for file in target.parent.glob(pattern):
    with contextlib.suppress(OSError), file.open('r+b') as lock:
      if _try_to_lock(lock):
        shutil.rmtree(file.parent)


def _try_to_lock(file: IO[bytes]) -> bool:
  """Locks a file, unless a process has locked it or the system has no locks."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    return False
  return True


def _apply_umask(directory: pathlib.Path) -> None:
  """Gives files the mode that the umask allows; some libraries write 0600."""
  mode = directory.stat().st_mode & 0o777
  for path in directory.rglob('*'):
    path.chmod(mode if path.is_dir() else mode & 0o666)
