# SPDX-License-Identifier: Apache-2.0
"""Directories that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def written_whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a directory to write into, which in the end becomes the target.

  It stands beside the target until then; if anything fails, nothing is left.

  Args:
    target: must not exist, or be an empty directory.

  Raises:
    ValueError: something is there already.
  """
  target = target.absolute()
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ValueError(f'{target} must not exist or be empty, and is not')
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{target.name}.', dir=target.parent
  ) as temporary:
    draft = pathlib.Path(temporary) / 'draft'
    draft.mkdir()
    yield draft
    if target.exists():
      target.rmdir()
    os.replace(draft, target)
