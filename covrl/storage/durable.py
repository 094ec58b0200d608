# SPDX-License-Identifier: Apache-2.0
"""Writes that outlast a power cut, on local disks.

A file has to be forced to the disk, and so has the directory that has its name. A
bucket keeps every object that it has accepted.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib

from etils import epath

from covrl.storage.buckets import is_bucket
from covrl.storage.failures import writing

# Ending of the name of a file that is being written.
_TEMPORARY_SUFFIX = '.tmp'


def write_atomically(file: epath.Path, content: str | bytes) -> None:
  """Writes a file such that readers see all of it or nothing.

  On a disk the file outlasts a power cut. A write that fails leaves the file as
  it was and nothing besides it. Of several writes at once, by any processes, the
  last one counts.

  Args:
    file: the file; its directory is created if absent.
    content: bytes, or text, which is encoded in UTF-8.

  Raises:
    StorageError: the file cannot be written.
  """
  data = content.encode() if isinstance(content, str) else content
  with writing(file):
    if is_bucket(file):
      file.write_bytes(data)
      return
    local = pathlib.Path(file)
    make_directories(local.parent)
    # Another process may write the same file, such as a page of a report.
    unique = os.urandom(4).hex()
    temporary = local.with_name(f'.{local.name}.{unique}{_TEMPORARY_SUFFIX}')
    try:
      with temporary.open('xb', buffering=0) as stream:
        write_all(stream, data)
        os.fsync(stream.fileno())
      temporary.replace(local)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise
    sync_directory(local.parent)


def is_temporary(name: str) -> bool:
  """Returns whether a file was left by a `write_atomically` that was killed.

  >>> is_temporary('.config.json.5e0c.tmp'), is_temporary('config.json')
  (True, False)
  """
  return name.startswith('.') and name.endswith(_TEMPORARY_SUFFIX)


def write_all(stream: io.FileIO, data: bytes) -> None:
  """Writes all bytes to an unbuffered file.

  A disk that becomes full may take a part before it raises.
  """
  remaining = memoryview(data)
  while remaining:
    remaining = remaining[stream.write(remaining) :]


def sync_directory(directory: pathlib.Path) -> None:
  """Makes the names in a local directory outlast a power cut."""
  descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def make_directories(directory: os.PathLike[str]) -> None:
  """Creates a directory and its parents if absent; their names outlast a power cut."""
  path = pathlib.Path(directory)
  missing = [each for each in (path, *path.parents) if not each.is_dir()]
  path.mkdir(parents=True, exist_ok=True)
  for each in missing:
    # A directory in which one may create, but not list, cannot be opened.
    with contextlib.suppress(PermissionError):
      sync_directory(each.parent)


def sync_tree(directory: os.PathLike[str]) -> None:
  """Makes all files below a local directory outlast a power cut, and their names.

  Files that no longer exist are left out: a network file system may list those that
  another host has renamed.

  Raises:
    OSError: one cannot be read or written.
  """
  for top, _, names in os.walk(directory, onerror=_raise_unless_missing):
    with contextlib.suppress(FileNotFoundError):
      for name in names:
        with contextlib.suppress(FileNotFoundError):
          _sync_file(pathlib.Path(top, name))
      sync_directory(pathlib.Path(top))


def _sync_file(path: pathlib.Path) -> None:
  with path.open('rb') as file:
    os.fsync(file.fileno())


def _raise_unless_missing(error: OSError) -> None:
  if not isinstance(error, FileNotFoundError):
    raise error
