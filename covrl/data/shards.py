# SPDX-License-Identifier: Apache-2.0
"""Checks that no file of a dataset in numbered files is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from etils import epath

_SHARD = re.compile(r'(.*\D)(\d+)-of-(\d{1,6})(\D*)', re.DOTALL)


def check_shards(files: Iterable[epath.Path], advice: str = '') -> None:
  """Refuses numbered files such as `train-00000-of-00002.parquet` without the others.

  Args:
    files: files that were found; a file that exists may be left out.
    advice: end of the message.

  Raises:
    ValueError: a file does not exist.
  """
  shards = {
    (file.parent, match[1], match[3], match[4])
    for file in files
    if (match := _SHARD.fullmatch(file.name))
  }
  for folder in {folder for folder, *_ in shards}:
    numbers: dict[tuple[epath.Path, str, str, str], set[int]] = {}
    for path in folder.iterdir():
      if match := _SHARD.fullmatch(path.name):
        key = folder, match[1], match[3], match[4]
        numbers.setdefault(key, set()).add(int(match[2]))
    for key, found in numbers.items():
      count = int(key[2])
      # Some count from 0, and some from 1.
      first = int(0 not in found and count in found)
      missing = set(range(first, first + count)) - found
      if key in shards and missing:
        raise ValueError(
          f'{folder / key[1]}…-of-{key[2]}{key[3]} must be {count:,} files, got'
          f' {len(found):,}, without number {min(missing)}{advice}'
        )
