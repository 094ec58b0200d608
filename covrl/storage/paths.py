# SPDX-License-Identifier: Apache-2.0
"""File operations for local disks and buckets (`gs://…`).

An object in a bucket exists whole or not at all. It can be replaced, but not
appended to, locked or renamed atomically, and directories are only prefixes of
names. This module and `covrl.storage.append_log` hide these differences.
"""

from __future__ import annotations

import atexit
import errno
import importlib.util
import io
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Sequence
from typing import cast

import numpy as np
from etils import epath

from covrl.storage.buckets import (
  BUCKET_SCHEME,
  bucket_filesystem,
  is_bucket,
  type_in_bucket,
)
from covrl.storage.durable import sync_directory
from covrl.storage.failures import reading, writing

# Bytes per read request.
_READ_SIZE = 2**26


def as_path(name: epath.PathLike) -> epath.Path:
  """Returns a local or bucket path.

  Raises:
    ValueError: if the scheme is not supported, or the library for buckets is
      not installed.

  >>> as_path('runs') / 'a'
  PosixGPath('runs/a')
  """
  text = os.fspath(name)
  if '://' not in text:
    return epath.Path(text)
  if not text.startswith(BUCKET_SCHEME):
    raise ValueError(
      f'a path must be on a disk or begin with {BUCKET_SCHEME}, got {text}'
    )
  if importlib.util.find_spec('gcsfs') is None:
    raise ValueError(
      f"{text} needs gcsfs, which is not installed: pip install 'covrl[gcs]'"
    )
  return epath.Path(text)


def absolute(path: epath.Path) -> epath.Path:
  """Returns a path that does not depend on the working directory."""
  return path if is_bucket(path) else path.absolute()


def is_regular_file(path: epath.Path) -> bool:
  """Returns whether a path is a file; `epath` also accepts pipes and devices.

  Raises:
    OSError: the status cannot be read, as on a failing device.
  """
  if is_bucket(path):
    return type_in_bucket(path) == 'file'
  status = _status(path)
  return status is not None and stat.S_ISREG(status.st_mode)


def is_directory(path: epath.Path) -> bool:
  """Returns whether a path is a directory; `epath` returns false on errors.

  Raises:
    OSError: the status cannot be read, as on a failing device.
  """
  if is_bucket(path):
    return type_in_bucket(path) == 'directory'
  status = _status(path)
  return status is not None and stat.S_ISDIR(status.st_mode)


def entries(directory: epath.Path) -> list[epath.Path]:
  """Returns the entries of a directory, sorted by name; none if it does not exist.

  Raises:
    OSError: the directory cannot be read.
  """
  if not is_directory(directory):
    return []
  with reading(directory):
    return sorted(directory.iterdir(), key=lambda path: path.name)


def _status(path: epath.Path) -> os.stat_result | None:
  """Returns the status of a local path, `None` if nothing exists there."""
  try:
    return os.stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as error:
    if error.errno == errno.ELOOP:
      return None
    raise


def numbered_sibling(path: epath.Path, word: str) -> epath.Path:
  """Returns an unused path for a copy or another name of a file.

  >>> numbered_sibling(epath.Path('runs/metrics.jsonl'), 'damaged').name
  'metrics.damaged_1.jsonl'
  """
  number = 1
  while True:
    sibling = path.with_name(f'{path.stem}.{word}_{number}{path.suffix}')
    if not sibling.exists():
      return sibling
    number += 1


def move(source: epath.Path, target: epath.Path) -> None:
  """Renames a directory, in a bucket by copying its objects.

  Raises:
    StorageError: it cannot be renamed.
  """
  with writing(target):
    if is_bucket(source):
      bucket_filesystem().mv(
        os.fspath(source), os.fspath(target), recursive=True
      )
      return
    pathlib.Path(source).rename(target)
    sync_directory(pathlib.Path(target).parent)


def files_below(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns all files below a local directory, sorted; none if it is missing.

  Raises:
    OSError: a directory cannot be read, whose files `Path.rglob` leaves out.
  """

  def fail(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
      raise error

  folders = os.walk(directory, onerror=fail)
  files = [
    pathlib.Path(top, name) for top, _, names in folders for name in names
  ]
  return sorted(file for file in files if file.is_file())


def open_binary(file: epath.Path) -> io.BufferedReader:
  """Opens a file for reading bytes."""
  return cast(io.BufferedReader, file.open('rb'))


def read_bytes(file: epath.Path) -> bytes:
  """Reads a whole file; errors of the system name it."""
  with reading(file):
    return file.read_bytes()


def file_size(file: epath.Path) -> int:
  """Returns a file's size in bytes."""
  return file.stat().length


def file_version(file: epath.Path) -> str:
  """Returns a text that changes when a file is replaced or written to.

  Empty if the file cannot be read.
  """
  try:
    if is_bucket(file):
      info = file.stat()
      return f'{info.length}:{info.mtime}'
    status = os.stat(file)
  except OSError:
    return ''
  return ':'.join(
    str(getattr(status, f'st_{name}'))
    for name in ('dev', 'ino', 'size', 'mtime_ns')
  )


def read_into(file: epath.Path, begin: int, array: np.ndarray) -> None:
  """Fills an array with the bytes of a file from offset `begin` on.

  Raises:
    ValueError: if the file ends before the array is full, or the array is not
      contiguous: a copy of it would be filled.
  """
  if not array.flags.c_contiguous:
    raise ValueError(
      f'an array to read into must be contiguous, got strides {array.strides}'
    )
  buffer = array.reshape(-1).view(np.uint8).data
  with reading(file), open_binary(file) as stream:
    stream.seek(begin)
    filled = 0
    while filled < len(buffer):
      read = stream.readinto(buffer[filled : filled + _READ_SIZE])
      if not read:
        raise ValueError(
          f'{file} must have {begin + len(buffer)} bytes, got {file_size(file)}'
        )
      filled += read


def remove(directory: epath.Path) -> None:
  """Removes a directory tree if it exists; of a link the link alone."""
  with writing(directory):
    if is_link(directory):
      directory.unlink()
    elif directory.exists():
      directory.rmtree()


def is_link(path: epath.Path) -> bool:
  """Returns whether a path is a symbolic link; false in buckets, which lack links."""
  return not is_bucket(path) and os.path.islink(path)


def upload(
  source: pathlib.Path, target: epath.Path, copied_last: Sequence[str] = ()
) -> None:
  """Copies the files below a local directory.

  Args:
    source: the directory.
    target: the directory to copy to, local or in a bucket.
    copied_last: names of files that are copied after all others.

  Raises:
    StorageError: a file cannot be written.
    NotADirectoryError: the source is not a directory.
  """
  if not source.is_dir():
    raise NotADirectoryError(f'{source} must be a directory, got none')
  for file in sorted(files_below(source), key=lambda f: f.name in copied_last):
    target_file = target / str(file.relative_to(source))
    with writing(target_file):
      if not is_bucket(target_file):
        target_file.parent.mkdir(parents=True, exist_ok=True)
      target_file.write_bytes(file.read_bytes())


def local_copy(path: epath.Path) -> pathlib.Path:
  """Returns a local path to a file or directory, for libraries that need one.

  A path in a bucket is copied to a directory that the end of the process removes.
  """
  if not is_bucket(path):
    return pathlib.Path(path)
  folder = temporary_directory()
  bucket_filesystem().get(
    os.fspath(path), str(folder / path.name), recursive=True
  )
  return folder / path.name


def temporary_directory() -> pathlib.Path:
  """Creates a local directory that is removed when the process ends."""
  folder = tempfile.mkdtemp(prefix='covrl-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)
