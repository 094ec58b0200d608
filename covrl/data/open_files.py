# SPDX-License-Identifier: Apache-2.0
"""Files of problems that stay open while a run trains on them."""

from __future__ import annotations

import os
from collections.abc import Iterable


class OpenFiles:
  """Files whose rows are read while a run goes on.

  A file that is replaced remains open as it was; one that is written to does not.

  Args:
    files: the files.
  """

  def __init__(self, files: Iterable[os.PathLike[str] | str]) -> None:
    self._before = {file: os.stat(file) for file in files}

  def check(self) -> None:
    """Checks that no file was written to.

    Raises:
      ValueError: one was; the message names it.
    """
    for file, before in self._before.items():
      try:
        now = os.stat(file)
      except FileNotFoundError:
        continue
      if os.path.samestat(now, before) and (now.st_size, now.st_mtime_ns) != (
        before.st_size,
        before.st_mtime_ns,
      ):
        raise ValueError(
          f'{os.fspath(file)} must not be written to while it is read, got other'
          f' content of {now.st_size:,} bytes'
        )
