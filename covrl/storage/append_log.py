# SPDX-License-Identifier: Apache-2.0
"""A file of lines that grows and can be cut back, on a disk or in a bucket.

On a disk it is a file. Objects in a bucket cannot be appended to: there the
lines are in numbered parts, `metrics/000000.jsonl` and so on for
`metrics.jsonl`. The last part is replaced as it grows, and a new one begun when
it is large. Put together they are the file.
"""

from __future__ import annotations

import os
import time
from typing import IO, Any, Protocol, cast

from etils import epath

from covrl import storage

# Bytes after which a part is followed by another.
_LARGE = 2**18
# Seconds for which lines may wait for others to be written with.
_PATIENCE = 30.0


class Journal(Protocol):
  """Lines, one after the other."""

  @property
  def size(self) -> int:
    """Bytes so far, all of them written."""
    ...

  def write(self, line: str) -> None:
    """Adds a line."""
    ...

  def flush(self) -> None:
    """Writes what has been added."""
    ...

  def close(self) -> None:
    """Writes what has been added; nothing more will be."""
    ...


def open_journal(file: epath.Path, keep: int) -> Journal:
  """Opens it to go on after its first bytes.

  Args:
    file: as it is called on a disk.
    keep: how many bytes; what follows them is given up.
  """
  return _Parts(file, keep) if storage.is_bucket(file) else _File(file, keep)


def read_journal(file: epath.Path) -> str | None:
  """All lines, or `None` if there is no such journal."""
  if not storage.is_bucket(file):
    return file.read_text() if file.exists() else None
  parts = _parts(file)
  return ''.join(part.read_text() for part in parts) if parts else None


class _File:
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
    # Who looks at a run sees its last line.
    self.flush()

  def flush(self) -> None:
    self._stream.flush()

  def close(self) -> None:
    self._stream.close()


class _Parts:
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
      self._begin_after(self._text, int(part.stem))
      self._text = part.read_bytes()
      self._written = len(self._text)
    # From the last to the first: cut short, this leaves a beginning.
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
    if time.monotonic() - self._last > _PATIENCE:
      self.flush()

  def flush(self) -> None:
    self._last = time.monotonic()
    if len(self._text) != self._written:
      _part(self._file, self._number).write_bytes(self._text)
      self._written = len(self._text)
    if self._written > _LARGE:
      self._begin_after(self._text, self._number + 1)

  def close(self) -> None:
    self.flush()

  def _begin_after(self, text: bytes, number: int) -> None:
    """Begins a part that follows so much text."""
    self._before += len(text)
    self._number, self._text, self._written = number, b'', 0


def _part(file: epath.Path, number: int) -> epath.Path:
  return file.with_suffix('') / f'{number:06d}{file.suffix}'


def _parts(file: epath.Path) -> list[epath.Path]:
  """The parts there are, in order."""
  folder = file.with_suffix('')
  if not folder.is_dir():
    return []
  parts: list[Any] = [p for p in folder.iterdir() if p.stem.isdigit()]
  return sorted(parts, key=lambda part: part.name)
