# SPDX-License-Identifier: Apache-2.0
"""Append-only logs of lines that can be truncated, local or in a bucket.

Locally a log is one file. Objects in a bucket cannot be appended to, so there
the lines are in numbered parts (`metrics/000000.jsonl`, … for `metrics.jsonl`):
the last part is replaced as it grows, and a new one is begun when it is large.
The concatenated parts equal the local file.
"""

from __future__ import annotations

import os
import time
from typing import IO, Any, Protocol, cast

from etils import epath

from covrl import storage

# Bytes after which a new part is begun.
_MAX_PART_SIZE = 2**18
# Seconds for which lines are buffered before a part is written.
_FLUSH_INTERVAL = 30.0


class AppendLog(Protocol):
  """An open log."""

  @property
  def size(self) -> int:
    """Size in bytes, after flushing."""
    ...

  def write(self, line: str) -> None:
    """Appends a line."""
    ...

  def flush(self) -> None:
    """Writes buffered lines."""
    ...

  def close(self) -> None:
    """Writes buffered lines and closes the log."""
    ...


def open_log(file: epath.Path, keep: int) -> AppendLog:
  """Opens a log for appending after its first `keep` bytes.

  Args:
    file: path of the log; in a bucket it names the parts.
    keep: bytes to keep; everything after them is discarded.
  """
  return (
    _BucketLog(file, keep) if storage.is_bucket(file) else _LocalLog(file, keep)
  )


def read_log(file: epath.Path) -> str | None:
  """Returns the whole text of a log, or `None` if the log does not exist."""
  if not storage.is_bucket(file):
    return file.read_text() if file.exists() else None
  parts = _parts(file)
  return ''.join(part.read_text() for part in parts) if parts else None


class _LocalLog:
  """A log in one local file."""

  def __init__(self, file: epath.Path, keep: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    self._stream = cast(IO[str], file.open('a'))
    self._stream.truncate(keep)

  @property
  def size(self) -> int:
    self.flush()
    return os.fstat(self._stream.fileno()).st_size

  def write(self, line: str) -> None:
    self._stream.write(f'{line}\n')
    # Other processes that read a running job see its last line.
    self.flush()

  def flush(self) -> None:
    self._stream.flush()

  def close(self) -> None:
    self._stream.close()


class _BucketLog:
  """A log in numbered objects of a bucket."""

  def __init__(self, file: epath.Path, keep: int) -> None:
    self._file = file
    self._before, self._number, self._text = 0, 0, b''
    self._written = 0
    self._last = time.monotonic()
    surplus: list[epath.Path] = []
    for part in _parts(file):
      if self._before + len(self._text) >= keep:
        surplus.append(part)
        continue
      self._begin_part(self._text, int(part.stem))
      self._text = part.read_bytes()
      self._written = len(self._text)
    # From last to first, so that an interruption leaves a prefix of the log.
    for part in reversed(surplus):
      part.unlink()
    self._text = self._text[: keep - self._before]
    if self._before + len(self._text) < keep:
      raise ValueError(
        f'{file.with_suffix("")} must hold {keep} bytes of lines, as the'
        f' checkpoint says, got {self._before + len(self._text)}'
      )
    self.flush()

  @property
  def size(self) -> int:
    self.flush()
    return self._before + len(self._text)

  def write(self, line: str) -> None:
    self._text += f'{line}\n'.encode()
    if time.monotonic() - self._last > _FLUSH_INTERVAL:
      self.flush()

  def flush(self) -> None:
    self._last = time.monotonic()
    if len(self._text) != self._written:
      _part(self._file, self._number).write_bytes(self._text)
      self._written = len(self._text)
    if self._written > _MAX_PART_SIZE:
      self._begin_part(self._text, self._number + 1)

  def close(self) -> None:
    self.flush()

  def _begin_part(self, text: bytes, number: int) -> None:
    """Begins part `number`, after `text` of the part before it."""
    self._before += len(text)
    self._number, self._text, self._written = number, b'', 0


def _part(file: epath.Path, number: int) -> epath.Path:
  return file.with_suffix('') / f'{number:06d}{file.suffix}'


def _parts(file: epath.Path) -> list[epath.Path]:
  """Returns the existing parts, in order."""
  folder = file.with_suffix('')
  if not folder.is_dir():
    return []
  parts: list[Any] = [p for p in folder.iterdir() if p.stem.isdigit()]
  return sorted(parts, key=lambda part: part.name)
