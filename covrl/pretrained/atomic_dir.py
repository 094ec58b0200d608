# SPDX-License-Identifier: Apache-2.0
"""Directories that are written whole or not at all.

In a bucket files come one by one; `config.json`, by which a directory is known
as a model's, comes last.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from etils import epath

from covrl import storage

_DESCRIPTIONS = ('adapter_config.json', 'config.json')


@contextlib.contextmanager
def written_whole(directory: epath.PathLike) -> Iterator[pathlib.Path]:
  """Gives a directory to write into, which in the end becomes the target.

  It stands beside the target until then; if anything fails, nothing is left.

  Args:
    directory: the target; must not exist, or be an empty directory.

  Raises:
    ValueError: something is there already.
  """
  place = storage.path_of(directory)
  if storage.is_bucket(place):
    if place.is_dir():
      raise ValueError(f'{place} must not exist or be empty, and is not')
    draft = storage.scratch()
    yield draft
    storage.upload(draft, place, last=_DESCRIPTIONS)
    return
  target = pathlib.Path(place).absolute()
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
