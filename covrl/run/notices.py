# SPDX-License-Identifier: Apache-2.0
"""Warnings that concern the results of a run, in `notices.jsonl`.

Checkpoints also store them, so that a file that was removed is written again.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable

from etils import epath

from covrl import storage

FILE_NAME = 'notices.jsonl'


class Notices:
  """The notices of a run, a JSON object with time and text per line.

  Args:
    directory: the run directory.
    write: writes a file in it, given its name and content.

  Attributes:
    content: content of the file as last read or written, one line per notice.
  """

  def __init__(
    self, directory: epath.Path, write: Callable[[str, str], object]
  ) -> None:
    self._file, self._write = directory / FILE_NAME, write
    self.content = ''

  def add(self, text: str) -> None:
    """Adds a notice, unless it has been added before."""
    content = self._read()
    if json.dumps(text) not in content:
      now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
      line = json.dumps({'time': now, 'text': text})
      self._replace(f'{content}{line}\n')

  def restore(self, saved: str) -> int:
    """Writes the notices again that the file has lost.

    Args:
      saved: content of the file so far, or at the checkpoint that is resumed.

    Returns:
      Their number.
    """
    content = self._read()
    lines = content.splitlines()
    lost = [line for line in saved.splitlines() if line not in lines]
    if lost:
      self._replace(''.join(f'{line}\n' for line in (*lost, *lines)))
    else:
      self.content = content
    return len(lost)

  def _read(self) -> str:
    if not storage.is_regular_file(self._file):
      return ''
    return storage.read_bytes(self._file).decode(errors='replace')

  def _replace(self, content: str) -> None:
    self._write(FILE_NAME, content)
    self.content = content
