# SPDX-License-Identifier: Apache-2.0
"""Check that all processes of a run see one run directory."""

from __future__ import annotations

import contextlib
import time
import uuid

from etils import epath

from covrl import storage
from covrl.config import ConfigError
from covrl.parallel import distributed

# Name of a file that process 0 writes and the others read; a name of a temporary
# file, so that one that is left over is not in the way.
_FILE_NAME = '.shared.tmp'
# Seconds that a file may take to be visible on the other hosts of a network file
# system, which store the contents of directories for up to a minute.
_VISIBLE_SECONDS = 90.0


def check_shared(
  directory: epath.Path, *, timeout: float | None = None
) -> None:
  """Checks that a run directory is on a disk that all processes of a run share.

  All processes call this together, process 0 while it holds the lock.

  Args:
    directory: the run directory.
    timeout: seconds to wait for the file of process 0; 90 by default.

  Raises:
    ConfigError: on every process; names one that has another directory.
    StorageError: the directory cannot be written to.
  """
  if distributed.process_count() == 1 or storage.is_bucket(directory):
    return
  file = directory / _FILE_NAME
  if distributed.is_first():
    storage.write_atomically(file, uuid.uuid4().hex)
  expected = distributed.gather_objects(_content(file))[0]
  deadline = time.monotonic() + (
    _VISIBLE_SECONDS if timeout is None else timeout
  )
  distributed.wait_until(
    lambda: _content(file) == expected or time.monotonic() > deadline
  )
  answers = distributed.gather_objects(_content(file) == expected)
  if distributed.is_first():
    with contextlib.suppress(OSError):
      file.unlink()
  if not all(answers):
    raise ConfigError(
      f'--workdir must be a directory that all processes share, got {directory},'
      f' which is another one on process {answers.index(False)} than on process 0'
    )


def _content(file: epath.Path) -> str:
  """Returns the content of a file, empty if it cannot be read."""
  with contextlib.suppress(OSError):
    if storage.is_regular_file(file):
      return file.read_text(encoding='utf-8')
  return ''
