# SPDX-License-Identifier: Apache-2.0
"""Append-only logs of lines that are resumed at a checkpoint, local or in a bucket.

Locally a log is one file. Objects in a bucket cannot be appended to, so there
the lines are in numbered parts (`metrics/000000.jsonl`, … for `metrics.jsonl`):
the last part is replaced as it grows, and a new one is begun when it is large.
The concatenated parts equal the local file.

A checkpoint stores a `LogPosition`. A log that does not begin with what this
describes is copied to another name and continued after its usable lines.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, Protocol, TypedDict

from etils import epath

from covrl import storage

# Bytes after which a new part is begun.
_MAX_PART_SIZE = 2**18
# Seconds for which lines are buffered before a part is written.
_FLUSH_INTERVAL = 30.0


class LogPosition(TypedDict):
  """An amount of a log: its size in bytes, its lines and their SHA-256."""

  size: int
  lines: int
  sha256: str


class AppendLog:
  """A log that is open for appending; see `open_log`."""

  def __init__(
    self,
    file: epath.Path,
    is_usable: Callable[[bytes], bool],
    note: Callable[[str], object],
  ) -> None:
    self._path, self._is_usable, self._note = file, is_usable, note
    self._stored = (
      _BucketFile(file) if storage.is_bucket(file) else _LocalFile(file)
    )
    self._digest = hashlib.sha256()
    self._size, self._lines = 0, 0

  def write(self, line: str) -> None:
    """Appends a line.

    Locally it is in the file at once, so that other processes can read it.

    Raises:
      StorageError: it cannot be written.
    """
    self._require_intact()
    data = f'{line}\n'.encode()
    self._stored.append(data)
    self._digest.update(data)
    self._size, self._lines = self._size + len(data), self._lines + 1

  def flush(self) -> None:
    """Writes buffered lines."""
    self._stored.flush()

  def sync(self) -> LogPosition:
    """Forces all lines to the disk, where a power cut leaves them.

    Returns:
      The position to resume the log at.
    """
    self._require_intact()
    self._stored.sync()
    return self._position()

  def close(self) -> None:
    """Writes buffered lines and closes the log."""
    self._stored.close()

  def resume(self, content: bytes, position: LogPosition) -> None:
    """Goes on after a position.

    Args:
      content: what is left of the log. If it does not begin with what the
        position describes, the file is copied to another name, and the log goes
        on after its usable lines.
      position: the position to truncate the log at.
    """
    kept = content[: position['size']]
    if not _is_at(position, kept):
      kept = _usable_lines(content, position, self._is_usable)
      used = kept.count(b'\n')
      text = (
        f'{self._path} {_damage(content, position)}: {used:,} of'
        f' {position["lines"]:,} lines are used'
      )
      if content:
        text += f'; the file is kept as {self._copy(content)}'
      self._note(text)
    self.reset(kept)

  def content(self) -> bytes:
    """Returns what is stored."""
    return self._stored.read()

  def reset(self, content: bytes) -> None:
    """Goes on after `content`, which replaces what is stored."""
    self._stored.reset(content)
    self._digest = hashlib.sha256(content)
    self._size, self._lines = len(content), content.count(b'\n')

  def _require_intact(self) -> None:
    """Restores a log that another program has moved, replaced or cut."""
    if self._stored.is_intact():
      return
    content, other = self._stored.reopen()
    text = f'{self._path} was moved, replaced or changed by another program'
    if other:
      text += f'; what it had is kept as {self._copy(other)}'
    self._note(text)
    self.resume(content, self._position())

  def _position(self) -> LogPosition:
    return {
      'size': self._size,
      'lines': self._lines,
      'sha256': self._digest.hexdigest(),
    }

  def _copy(self, content: bytes) -> str:
    """Writes content under another name, which is returned."""
    copy = storage.numbered_sibling(self._path, 'damaged')
    storage.write_atomically(copy, content)
    return copy.name


def open_log(
  file: epath.Path,
  position: LogPosition | None = None,
  *,
  is_usable: Callable[[bytes], bool] = bool,
  note: Callable[[str], object] = lambda text: None,
) -> AppendLog:
  """Opens a log for appending after a position.

  Args:
    file: path of the log; in a bucket it names the parts.
    position: what to keep; everything after it is discarded. `None` discards
      all lines.
    is_usable: whether to keep a line of a log that does not begin with what
      `position` describes.
    note: receives a sentence about such a log, which is copied to another name.

  Raises:
    StorageError: the log cannot be written.
  """
  log = AppendLog(file, is_usable, note)
  if position is None:
    log.reset(b'')
  else:
    log.resume(log.content(), position)
  return log


def read_log(file: epath.Path, errors: str = 'strict') -> str | None:
  """Returns the whole text of a log or file, or `None` if it does not exist.

  Args:
    file: path of the log; in a bucket it names the parts.
    errors: treatment of invalid UTF-8, as in `bytes.decode`.
  """
  parts = _parts(file) if storage.is_bucket(file) else []
  if not parts and not file.exists():
    return None
  parts = parts or [file]
  return b''.join(part.read_bytes() for part in parts).decode(errors=errors)


class AppendFile:
  """A local file that is appended to, without a buffer in this process.

  Args:
    path: the file; it and its directory are created if absent.
  """

  def __init__(self, path: pathlib.Path) -> None:
    self._path = path
    with storage.writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
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
      is_here = os.path.samestat(os.stat(self._path), status)
    except FileNotFoundError:
      is_here = False
    return is_here and status.st_size == self._size

  def read(self) -> bytes:
    """Reads the file, local or in a bucket."""
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


class _Stored(Protocol):
  """The bytes of a log, on a disk or in a bucket."""

  def read(self) -> bytes: ...

  def reset(self, content: bytes) -> None: ...

  def is_intact(self) -> bool: ...

  def reopen(self) -> tuple[bytes, bytes]: ...

  def append(self, data: bytes) -> None: ...

  def flush(self) -> None: ...

  def sync(self) -> None: ...

  def close(self) -> None: ...


class _LocalFile:
  """A log in one local file."""

  def __init__(self, file: epath.Path) -> None:
    self._path = pathlib.Path(file)
    self._file: AppendFile | None = None

  def read(self) -> bytes:
    return self._path.read_bytes() if self._path.exists() else b''

  def reset(self, content: bytes) -> None:
    if self.read().startswith(content):
      self._open().truncate(len(content))
    else:
      storage.write_atomically(epath.Path(self._path), content)
      self._open()

  def is_intact(self) -> bool:
    return self._open().is_intact()

  def reopen(self) -> tuple[bytes, bytes]:
    """Closes the file; returns its content, and that of another in its place."""
    file, self._file = self._open(), None
    content, other = file.read(), self.read()
    file.close()
    return content, b'' if other == content else other

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


class _BucketFile:
  """A log in numbered objects of a bucket."""

  def __init__(self, file: epath.Path) -> None:
    self._path = file
    self._number, self._text, self._written = 0, b'', 0
    self._last = time.monotonic()

  def read(self) -> bytes:
    return b''.join(part.read_bytes() for part in _parts(self._path))

  def reset(self, content: bytes) -> None:
    parts, rest = _parts(self._path), content
    self._number, self._text = 0, b''
    while parts and rest.startswith(text := parts[0].read_bytes()):
      self._number, self._text = int(parts.pop(0).stem), text
      rest = rest[len(text) :]
    self._written = len(self._text)
    if self._written and (rest or self._written > _MAX_PART_SIZE):
      self._begin_part()
    with storage.writing(self._path.with_suffix('')):
      # From last to first, so that an interruption leaves a prefix of the log.
      for part in reversed(parts):
        if not rest or part != _part(self._path, self._number):
          part.unlink()
    for line in rest.splitlines(keepends=True):
      self._text += line
      if len(self._text) > _MAX_PART_SIZE:
        self.flush()
    self.flush()

  def is_intact(self) -> bool:
    return True

  def reopen(self) -> tuple[bytes, bytes]:
    return self.read(), b''

  def append(self, data: bytes) -> None:
    self._text += data
    if time.monotonic() - self._last > _FLUSH_INTERVAL:
      self.flush()

  def flush(self) -> None:
    self._last = time.monotonic()
    if len(self._text) != self._written:
      part = _part(self._path, self._number)
      with storage.writing(part):
        part.write_bytes(self._text)
      self._written = len(self._text)
    if self._written > _MAX_PART_SIZE:
      self._begin_part()

  def sync(self) -> None:
    self.flush()

  def close(self) -> None:
    self.flush()

  def _begin_part(self) -> None:
    self._number, self._text, self._written = self._number + 1, b'', 0


def _is_at(position: LogPosition, content: bytes) -> bool:
  """Returns whether `content` is what a position describes."""
  found = hashlib.sha256(content).hexdigest()
  return len(content) == position['size'] and found == position['sha256']


def _usable_lines(
  content: bytes, position: LogPosition, is_usable: Callable[[bytes], bool]
) -> bytes:
  """Returns the lines of a damaged log to go on from, at most as many as saved.

  A last line without a line end is incomplete and dropped.
  """
  restored = _with_unix_line_ends(content)
  if _is_at(position, restored[: position['size']]):
    return restored[: position['size']]
  usable = [line for line in restored.split(b'\n')[:-1] if is_usable(line)]
  return b''.join(line + b'\n' for line in usable[: position['lines']])


def _damage(content: bytes, position: LogPosition) -> str:
  """Describes how a log differs from a position, as the end of a sentence."""
  size = position['size']
  if not content:
    return 'is missing or empty'
  if _is_at(position, _with_unix_line_ends(content)[:size]):
    return 'has other line ends (CRLF) than were written'
  if len(content) < size:
    return f'has {len(content):,} of the {size:,} bytes that were saved'
  if b'\0' in content[:size]:
    return 'contains NUL bytes'
  return 'is not what was saved'


def _with_unix_line_ends(content: bytes) -> bytes:
  return content.replace(b'\r\n', b'\n')


def _part(file: epath.Path, number: int) -> epath.Path:
  return file.with_suffix('') / f'{number:06d}{file.suffix}'


def _parts(file: epath.Path) -> list[epath.Path]:
  """Returns the existing parts, in order."""
  folder = file.with_suffix('')
  if not folder.is_dir():
    return []
  parts: list[Any] = [p for p in folder.iterdir() if p.stem.isdecimal()]
  return sorted(parts, key=lambda part: part.name)
