# SPDX-License-Identifier: Apache-2.0
"""Error handling of standard streams: closed, full, or pipes without a reader.

A message that cannot be written does not end a command; a result that cannot be
written does.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


def prepare() -> None:
  """Prepares the standard streams of this process for a command.

  Closed ones are opened at the null device: otherwise the next file would get
  their descriptor, and libraries would write messages into it. Standard error
  drops what it cannot write, see `without_write_errors`; standard output raises
  `StorageError`. Characters that the encoding of a stream lacks, as in the locale
  C, are written as escapes.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)
  if sys.stdout is None:
    sys.stdout = _open(1)
  if sys.stderr is None:
    sys.stderr = _open(2)
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')
  if not isinstance(sys.stdout, _Results):
    sys.stdout = cast(TextIO, _Results(sys.stdout))
  sys.stderr = without_write_errors(sys.stderr)


def without_write_errors(stream: TextIO) -> TextIO:
  """Wraps a text stream: text that cannot be written to it is dropped."""
  if isinstance(stream, _Messages):
    return stream
  return cast(TextIO, _Messages(stream))


def discard_results() -> None:
  """Discards the buffer of standard output, which Python would write at exit."""
  with contextlib.suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open(number: int) -> TextIO:
  """Opens a descriptor for writing text."""
  file = io.FileIO(number, 'w', closefd=False)
  return io.TextIOWrapper(io.BufferedWriter(file))


class _Wrapper:
  """A text stream that handles errors of writing.

  Args:
    stream: stream to write to.
  """

  def __init__(self, stream: TextIO) -> None:
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes a text; returns its length."""
    with self._handling_errors():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Writes the buffered text."""
    with self._handling_errors():
      self._stream.flush()

  def _handling_errors(self) -> contextlib.AbstractContextManager[None]:
    raise NotImplementedError


class _Messages(_Wrapper):
  """A stream of messages, which are dropped where they cannot be written."""

  def _handling_errors(self) -> contextlib.AbstractContextManager[None]:
    return contextlib.suppress(OSError, ValueError)


class _Results(_Wrapper):
  """A stream of results; a pipe without a reader raises `BrokenPipeError`."""

  @contextlib.contextmanager
  def _handling_errors(self) -> Iterator[None]:
    try:
      yield
    except OSError:
      from covrl import storage

      with storage.writing('standard output'):
        raise
