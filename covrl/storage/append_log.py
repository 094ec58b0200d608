# SPDX-License-Identifier: Apache-2.0
"""Append-only logs of lines that are resumed at a checkpoint, local or in a bucket.

Locally a log is one file. Objects in a bucket cannot be appended to, so there
the lines are in numbered parts (`metrics/000000.jsonl`, … for `metrics.jsonl`):
the last part is replaced as it grows, and a new one is begun when it is large.
The concatenated parts equal the local file. Both forms are read in either place, since
a run may have been copied.

A checkpoint stores a `LogPosition`. A log whose beginning differs from it is copied
to another name and continued after its usable lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypedDict

from etils import epath

from covrl import storage
from covrl.storage.log_files import stored_content, stored_log


class LogPosition(TypedDict):
  """Length of a log: bytes, number of lines, and SHA-256 of the content."""

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
    self._stored = stored_log(file)
    self._digest = hashlib.sha256()
    self._size, self._lines = 0, 0

  def write(self, line: str) -> None:
    """Appends a line.

    Locally it is in the file at once, so that other processes can read it.

    Raises:
      ValueError: the text is of several lines.
      StorageError: it cannot be written.
    """
    if '\n' in line:
      raise ValueError(f'a line of a log must be one line, got {line!r:.80}')
    self._restore_if_damaged()
    data = f'{line}\n'.encode()
    self._stored.append(data)
    self._digest.update(data)
    self._size, self._lines = self._size + len(data), self._lines + 1

  def flush(self) -> None:
    """Writes buffered lines."""
    self._stored.flush()

  def sync(self) -> LogPosition:
    """Forces all lines to the disk, so that a power cut loses none.

    A log in which another program has changed lines is copied to another name.

    Returns:
      The position to resume the log at.
    """
    self._restore_if_damaged()
    self._stored.sync()
    self._restore_if_damaged(compare_content=True)
    return self._position()

  def close(self) -> None:
    """Writes buffered lines and closes the log."""
    self._stored.close()

  def resume(self, content: bytes, position: LogPosition) -> None:
    """Continues the log after a position.

    Args:
      content: the log as it is stored now. If its beginning differs from the
        position, the file is copied to another name, and the log goes on after
        its usable lines.
      position: the position to truncate the log at.
    """
    usable_content = content[: position['size']]
    if not _matches(position, usable_content):
      usable_content = _usable_lines(content, position, self._is_usable)
      num_usable = usable_content.count(b'\n')
      message = (
        f'{self._path} {_damage(content, position)}: {num_usable:,} of'
        f' {position["lines"]:,} lines are used'
      )
      if content:
        message += f'; the file is kept as {self._copy(content)}'
      self._note(message)
    self.reset(usable_content)

  def content(self) -> bytes:
    """Returns the stored bytes."""
    return self._stored.read()

  def reset(self, content: bytes) -> None:
    """Replaces the stored bytes by `content`, after which the log continues."""
    self._stored.reset(content)
    self._digest = hashlib.sha256(content)
    self._size, self._lines = len(content), content.count(b'\n')

  def _restore_if_damaged(self, *, compare_content: bool = False) -> None:
    """Restores a log that another program has moved, replaced or changed.

    Args:
      compare_content: whether to compare the content, too, and not only file
        and size.
    """
    if self._stored.is_intact() and not (
      compare_content and not _matches(self._position(), self.content())
    ):
      return
    content, replacement = self._stored.reopen()
    message = f'{self._path} was moved, replaced or changed by another program'
    if replacement:
      message += f'; what it had is kept as {self._copy(replacement)}'
    self._note(message)
    self.resume(content, self._position())
    self._stored.sync()

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
    is_usable: whether to keep a line of a log whose beginning differs from
      `position`.
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
  content = stored_content(file)
  return None if content is None else content.decode(errors=errors)


def describe_log_damage(file: epath.Path, position: LogPosition) -> str:
  """Describes how a log that has ended differs from its last position.

  Args:
    file: path of the log; in a bucket it names the parts.
    position: the position at its end.

  Returns:
    The end of a sentence about the file; empty if it is intact.
  """
  content = stored_content(file) or b''
  if _matches(position, content):
    return ''
  if _matches(position, content[: position['size']]):
    num_extra = len(content) - position['size']
    return f'has {num_extra:,} bytes after those that were saved'
  return _damage(content, position)


def _matches(position: LogPosition, content: bytes) -> bool:
  """Returns whether `content` has the length and digest of a position."""
  digest = hashlib.sha256(content).hexdigest()
  return len(content) == position['size'] and digest == position['sha256']


def _usable_lines(
  content: bytes, position: LogPosition, is_usable: Callable[[bytes], bool]
) -> bytes:
  """Returns the lines of a damaged log to go on from, at most as many as saved.

  A last line without a line end is incomplete and dropped.
  """
  restored = _with_unix_line_ends(content)
  if _matches(position, restored[: position['size']]):
    return restored[: position['size']]
  usable = [line for line in restored.split(b'\n')[:-1] if is_usable(line)]
  return b''.join(line + b'\n' for line in usable[: position['lines']])


def _damage(content: bytes, position: LogPosition) -> str:
  """Describes how a log differs from a position, as the end of a sentence."""
  size = position['size']
  if not content:
    return 'is missing or empty'
  if _matches(position, _with_unix_line_ends(content)[:size]):
    return 'has other line ends (CRLF) than were written'
  if len(content) < size:
    return f'has {len(content):,} of the {size:,} bytes that were saved'
  if b'\0' in content[:size]:
    return 'contains NUL bytes'
  return 'is not what was saved'


def _with_unix_line_ends(content: bytes) -> bytes:
  return content.replace(b'\r\n', b'\n')
