# SPDX-License-Identifier: Apache-2.0
"""Files on a disk and in a bucket (`gs://…`), by one interface.

An object in a bucket is there whole or not at all. It can be replaced, but not
appended to, locked, or renamed at once; a directory is a beginning of names and
nothing else. What differs for these reasons is here and in `covrl.storage.append_log`.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any, cast

import fsspec
import fsspec.config
import numpy as np
from etils import epath

# What is in a bucket is listed anew each time: other processes write there too,
# and TensorStore does within this one.
fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False

_BUCKET = 'gs://'
# Bytes that are asked for at once.
_BLOCK = 2**26


def path_of(name: epath.PathLike) -> epath.Path:
  """A file or directory, wherever it is.

  Raises:
    ValueError: it is in storage of another kind, or in a bucket and the
      library for that is missing.

  >>> path_of('runs') / 'a'
  PosixGPath('runs/a')
  """
  text = os.fspath(name)
  if '://' not in text:
    return epath.Path(text)
  if not text.startswith(_BUCKET):
    raise ValueError(
      f'a path must be on a disk or begin with {_BUCKET}, got {text}'
    )
  if importlib.util.find_spec('gcsfs') is None:
    raise ValueError(
      f"{text} needs gcsfs, which is not installed: pip install 'covrl[gcs]'"
    )
  return epath.Path(text)


def absolute(path: epath.Path) -> epath.Path:
  """A path that does not depend on where this process is."""
  return path if is_bucket(path) else path.absolute()


def is_bucket(path: epath.PathLike) -> bool:
  """Whether it is in a bucket."""
  return os.fspath(path).startswith(_BUCKET)


def write_atomically(file: epath.Path, text: str) -> None:
  """Writes a file that is there whole or not at all."""
  if is_bucket(file):
    file.write_text(text)
    return
  local = pathlib.Path(file)
  local.parent.mkdir(parents=True, exist_ok=True)
  draft = local.with_name(f'.{local.name}.tmp')
  with draft.open('w') as stream:
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())
  draft.replace(local)


def write_new(file: epath.Path, text: str) -> bool:
  """Writes an object of a bucket unless it is there; whether it did.

  Of several who try at once, one does.

  Raises:
    ValueError: the bucket cannot be written to; says why.
  """
  try:
    _buckets().pipe_file(os.fspath(file), text.encode(), mode='create')
  except FileExistsError:
    return False
  except Exception as error:
    # The library, the network and the store have errors of many kinds.
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    raise ValueError(f'{file} cannot be written: {reason}') from error
  return True


def digests(directory: epath.Path) -> dict[str, str]:
  """Size and digest of every file below a directory, by its path there.

  On a disk the digest is SHA-256 of what is read back. In a bucket it is the
  CRC-32C that the store keeps of each object and checks by itself; nothing is
  read.
  """
  if is_bucket(directory):
    root = os.fspath(directory)
    found = _buckets().find(root, detail=True)
    skip = len(root.removeprefix(_BUCKET)) + 1
    return {
      name[skip:]: f'{about["size"]}:{about["crc32c"]}'
      for name, about in sorted(found.items())
    }
  local = pathlib.Path(directory)
  return {
    str(file.relative_to(local)): _digest(file)
    for file in sorted(local.rglob('*'))
    if file.is_file()
  }


def opened(file: epath.Path) -> io.BufferedReader:
  """A file, open to be read from."""
  return cast(io.BufferedReader, file.open('rb'))


def size_of(file: epath.Path) -> int:
  """Bytes of a file."""
  return file.stat().length


def read_into(file: epath.Path, begin: int, array: np.ndarray) -> None:
  """Fills an array with the bytes of a file from one on.

  Raises:
    ValueError: the file ends before.
  """
  wanted = array.reshape(-1).view(np.uint8).data
  with opened(file) as stream:
    stream.seek(begin)
    filled = 0
    while filled < len(wanted):
      read = stream.readinto(wanted[filled : filled + _BLOCK])
      if not read:
        raise ValueError(
          f'{file}: must have {begin + len(wanted)} bytes, got {begin + filled}'
        )
      filled += read


def remove(directory: epath.Path) -> None:
  """Removes a directory with all that is in it, if it is there."""
  if directory.exists():
    directory.rmtree()


def upload(
  source: pathlib.Path, target: epath.Path, last: Sequence[str] = ()
) -> None:
  """Copies the files below a directory of this machine.

  Args:
    source: that directory.
    target: where they go.
    last: names of files that come after all others.
  """
  files = sorted(source.rglob('*'), key=lambda file: (file.name in last, file))
  for file in files:
    if file.is_file():
      copy = target / str(file.relative_to(source))
      if not is_bucket(copy):
        copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(file.read_bytes())


def local(path: epath.Path) -> pathlib.Path:
  """A file or directory for programs that know disks only.

  What is in a bucket is copied to this machine, for as long as this process
  lives.
  """
  if not is_bucket(path):
    return pathlib.Path(path)
  folder = scratch()
  _buckets().get(os.fspath(path), str(folder / path.name), recursive=True)
  return folder / path.name


def scratch() -> pathlib.Path:
  """An empty directory of this machine that goes when the process ends."""
  folder = tempfile.mkdtemp(prefix='covrl-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)


def _buckets() -> Any:
  """All buckets, as `etils.epath` sees them."""
  return fsspec.filesystem('gcs', finalize_on_close=True)


def _digest(file: pathlib.Path) -> str:
  with file.open('rb') as stream:
    digest = hashlib.file_digest(stream, 'sha256').hexdigest()
  return f'{file.stat().st_size}:{digest}'
