# SPDX-License-Identifier: Apache-2.0
"""Digests by which the large files of a directory are recognised."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
from collections.abc import Collection

from etils import epath

from covrl.storage.buckets import is_bucket
from covrl.storage.digests import digest_files
from covrl.storage.failures import reading

# Size in bytes of the blocks of a file, and how many are read at a time.
_BLOCK_SIZE, _THREADS = 2**22, 8


def directory_fingerprint(
  directory: epath.Path, suffixes: Collection[str]
) -> str:
  """Returns a digest of the names and contents of a directory's files.

  A process reads a file once, and again where it was replaced or written to. In a
  bucket the store's checksums are taken. Modification times do not count, because
  a copy of the files has others.

  Args:
    directory: the directory.
    suffixes: endings of the names of the files that count.

  Returns:
    SHA-256 in hexadecimal; empty without any such file.
  """
  if is_bucket(directory):
    file_digests = {
      name: digest
      for name, digest in digest_files(directory).items()
      if name.endswith(tuple(suffixes))
    }
  else:
    file_digests = {
      file.name: _file_digest(os.fspath(file), _version(file))
      for file in sorted(directory.iterdir(), key=lambda file: file.name)
      if file.name.endswith(tuple(suffixes)) and file.is_file()
    }
  if not file_digests:
    return ''
  return hashlib.sha256(
    json.dumps(file_digests, sort_keys=True).encode()
  ).hexdigest()


def _version(file: epath.Path) -> tuple[int, ...]:
  """Returns numbers of which one changes when a file is replaced or written to."""
  status = os.stat(file)
  return (
    status.st_dev,
    status.st_ino,
    status.st_size,
    status.st_mtime_ns,
    status.st_ctime_ns,
  )


@functools.lru_cache(maxsize=4096)
def _file_digest(path: str, version: tuple[int, ...]) -> str:
  """Returns a digest of the digests of a file's blocks.

  Args:
    path: the file.
    version: see `_version`; a digest is computed once for each.
  """
  del version
  with (
    reading(path),
    open(path, 'rb') as file,
    concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
  ):
    size = os.fstat(file.fileno()).st_size
    blocks = pool.map(
      functools.partial(_block_digest, file.fileno()),
      range(0, size, _BLOCK_SIZE),
    )
    digest = hashlib.sha256(str(size).encode())
    for block in blocks:
      digest.update(block)
  return digest.hexdigest()


def _block_digest(descriptor: int, offset: int) -> bytes:
  """Returns the digest of the block of a file at an offset."""
  digest, end = hashlib.sha256(), offset + _BLOCK_SIZE
  while offset < end and (
    content := os.pread(descriptor, end - offset, offset)
  ):
    digest.update(content)
    offset += len(content)
  return digest.digest()
