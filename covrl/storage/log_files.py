# SPDX-License-Identifier: Apache-2.0
"""Files of append-only logs: one on a disk, numbered objects in a bucket.

A log that was copied from a disk to a bucket, or back, is read in the form that it
had there. It is written anew in its own form once it is appended to.
"""

from __future__ import annotations

import os
import pathlib
import time
from typing import Protocol

from etils import epath

from covrl import storage

# Bytes after which a new part is begun.
_MAX_PART_SIZE = 2**18
# Seconds for which lines are buffered before a part is written.
_FLUSH_INTERVAL = 30.0


class AppendFile:
  """A local file that is appended to, without a buffer in this process.

  Args:
    path: the file; it and its directory are created if absent.
  """

  def __init__(self, path: pathlib.Path) -> None:
    self._path = path
    with storage.writing(path):
      storage.make_directories(path.parent)
      self._stream = path.open('a+b', buffering=0)
      storage.sync_directory(path.parent)
      self._size = os.fstat(self._stream.fileno()).st_size

  def append(self, data: bytes) -> None:
    """Appends bytes."""
    with storage.writing(self._path):
      storage.write_all(self._stream, data)
    self._size += len(data)

  def truncate(self, size: int) -> None:
    """Discards the bytes after the first `size`."""
    with storage.writing(self._path):
      self._stream.truncate(size)
    self._size = size

  def is_intact(self) -> bool:
    """Returns whether the path still names this file, of the size it should have."""
    status = os.fstat(self._stream.fileno())
    try:
      is_same_file = os.path.samestat(os.stat(self._path), status)
    except (FileNotFoundError, NotADirectoryError):
      is_same_file = False
    return is_same_file and status.st_size == self._size

  def read(self) -> bytes:
    """Reads the whole file."""
    with storage.reading(self._path):
      self._stream.seek(0)
      return self._stream.readall()

  def sync(self) -> None:
    """Waits until the disk has all bytes."""
    with storage.writing(self._path):
      os.fsync(self._stream.fileno())

  def close(self) -> None:
    """Closes the file."""
    with storage.writing(self._path):
      self._stream.close()


class StoredLog(Protocol):
  """The bytes of a log, on a disk or in a bucket."""

  def read(self) -> bytes:
    """Returns the stored bytes."""
    ...

  def reset(self, content: bytes) -> None:
    """Replaces the stored bytes by `content`, after which the log continues."""
    ...

  def is_intact(self) -> bool:
    """Returns whether the stored bytes are those that were written."""
    ...

  def reopen(self) -> tuple[bytes, bytes]:
    """Closes the file and opens its path again.

    Returns:
      Content of the closed file, and of another file that has replaced it; empty
      if none has.
    """
    ...

  def append(self, data: bytes) -> None:
    """Appends bytes, which may be buffered."""
    ...

  def flush(self) -> None:
    """Writes buffered bytes."""
    ...

  def sync(self) -> None:
    """Waits until all bytes are stored so that a power cut loses none."""
    ...

  def close(self) -> None:
    """Writes buffered bytes and closes the file."""
    ...


def stored_log(file: epath.Path) -> StoredLog:
  """Returns the log that is stored under a path; it need not exist."""
  return _BucketLog(file) if storage.is_bucket(file) else _LocalLog(file)


class _LocalLog:
  """A log in one local file; see `StoredLog`."""

  def __init__(self, file: epath.Path) -> None:
    self._path = pathlib.Path(file)
    self._file: AppendFile | None = None

  def read(self) -> bytes:
    return stored_content(epath.Path(self._path)) or b''

  def reset(self, content: bytes) -> None:
    file = epath.Path(self._path)
    stored = storage.read_bytes(file) if storage.is_regular_file(file) else b''
    # A file with several names may be that of a copy of the run.
    is_shared = self._path.is_symlink() or (
      self._path.exists() and self._path.stat().st_nlink > 1
    )
    if stored.startswith(content) and not is_shared:
      self._open().truncate(len(content))
    else:
      storage.write_atomically(file, content)
      self._open()
    if parts := log_parts(file):
      with storage.writing(parts[0].parent):
        for part in parts:
          part.unlink()
        if not storage.entries(parts[0].parent):
          parts[0].parent.rmdir()

  def is_intact(self) -> bool:
    return self._open().is_intact()

  def reopen(self) -> tuple[bytes, bytes]:
    file, self._file = self._open(), None
    content, replacement = file.read(), self.read()
    file.close()
    return content, b'' if replacement == content else replacement

  def append(self, data: bytes) -> None:
    self._open().append(data)

  def flush(self) -> None:
    pass

  def sync(self) -> None:
    self._open().sync()

  def close(self) -> None:
    self._open().close()

  def _open(self) -> AppendFile:
    if self._file is None:
      self._file = AppendFile(self._path)
    return self._file


class _BucketLog:
  """A log in numbered objects of a bucket; see `StoredLog`."""

  def __init__(self, file: epath.Path) -> None:
    self._path = file
    # Number and content of the last part, and how many of its bytes are stored.
    self._number, self._content, self._stored_size = 0, b'', 0
    self._last_flush = time.monotonic()

  def read(self) -> bytes:
    return stored_content(self._path) or b''

  def reset(self, content: bytes) -> None:
    parts, remaining = log_parts(self._path), content
    self._number, self._content = 0, b''
    while parts and remaining.startswith(text := parts[0].read_bytes()):
      self._number, self._content = int(parts.pop(0).stem), text
      remaining = remaining[len(text) :]
    self._stored_size = len(self._content)
    if self._stored_size and (remaining or self._stored_size > _MAX_PART_SIZE):
      self._begin_part()
    with storage.writing(self._path.with_suffix('')):
      # From last to first, so that an interruption leaves a prefix of the log.
      for part in reversed(parts):
        if not remaining or part != _part(self._path, self._number):
          part.unlink()
    for line in remaining.splitlines(keepends=True):
      self._content += line
      if len(self._content) > _MAX_PART_SIZE:
        self.flush()
    self.flush()
    with storage.writing(self._path):
      self._path.unlink(missing_ok=True)

  def is_intact(self) -> bool:
    return True

  def reopen(self) -> tuple[bytes, bytes]:
    return self.read(), b''

  def append(self, data: bytes) -> None:
    self._content += data
    if time.monotonic() - self._last_flush > _FLUSH_INTERVAL:
      self.flush()

  def flush(self) -> None:
    self._last_flush = time.monotonic()
    if len(self._content) != self._stored_size:
      part = _part(self._path, self._number)
      with storage.writing(part):
        part.write_bytes(self._content)
      self._stored_size = len(self._content)
    if self._stored_size > _MAX_PART_SIZE:
      self._begin_part()

  def sync(self) -> None:
    self.flush()

  def close(self) -> None:
    self.flush()

  def _begin_part(self) -> None:
    self._number, self._content, self._stored_size = self._number + 1, b'', 0


def _part(file: epath.Path, number: int) -> epath.Path:
  return file.with_suffix('') / f'{number:06d}{file.suffix}'


def log_parts(file: epath.Path) -> list[epath.Path]:
  """Returns the existing parts of a log, in order."""
  return [
    part
    for part in storage.entries(file.with_suffix(''))
    if part.stem.isdecimal() and part.suffix == file.suffix
  ]


def stored_content(file: epath.Path) -> bytes | None:
  """Returns the bytes of a log, in one file or in parts; `None` if it is absent.

  A copy over an older one of the other form leaves both. The longer one is the newer
  one, and the whole one where the change of form was interrupted.
  """
  parts = log_parts(file)
  contents = [[file]] if file.exists() else []
  contents += [parts] if parts else []
  return max(
    (b''.join(map(storage.read_bytes, files)) for files in contents),
    key=len,
    default=None,
  )
