# SPDX-License-Identifier: Apache-2.0
"""Atomic creation of directories: written completely or not at all.

Files are uploaded to a bucket one by one, the file that marks a directory as a
model's (`config.json`) last.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from etils import epath

from covrl import storage

_UPLOADED_LAST = ('adapter_config.json', 'config.json')


@contextlib.contextmanager
def atomic_directory(directory: epath.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary directory that replaces the target on success.

  The temporary directory is a sibling of the target. If an exception is
  raised, it is deleted.

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
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = stack.enter_context(
      tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent)
    )
    draft = pathlib.Path(temporary) / 'draft'
    draft.mkdir()
    yield draft
    _apply_umask(draft)
    if target.exists():
      target.rmdir()
    os.replace(draft, target)


def _apply_umask(directory: pathlib.Path) -> None:
  """Gives files the mode that the umask allows; some libraries write 0600."""
  mode = directory.stat().st_mode & 0o777
  for path in directory.rglob('*'):
    path.chmod(mode if path.is_dir() else mode & 0o666)
