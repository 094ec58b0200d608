# SPDX-License-Identifier: Apache-2.0
"""Digests of files: SHA-256 on a disk, the store's CRC-32C in a bucket.

A file that was copied from a disk to a bucket, or back, is compared by the kind of
digest that it had before.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from covrl.storage.buckets import BUCKET_SCHEME, bucket_filesystem, is_bucket
from covrl.storage.failures import reading
from covrl.storage.paths import files_below, open_binary

# Bytes per read of a file.
_READ_SIZE = 2**24

# Size and digest: 32 bytes in hexadecimal, 4 bytes in base 64.
_SHA256 = re.compile('[0-9]+:[0-9a-f]{64}')
_CRC32C = re.compile('[0-9]+:[0-9A-Za-z+/]{6}==')


def digest_files(
  directory: epath.Path,
  names: Collection[str] | None = None,
  expected: Mapping[str, str] | None = None,
) -> dict[str, str]:
  """Returns size and digest of every file below a directory.

  On a local disk the digest is the SHA-256 of the content read back. In a
  bucket it is the CRC-32C that the store computes and verifies; nothing is read.
  A file whose expected digest is of the other kind is read for that one.

  Args:
    directory: the directory.
    names: files to include, relative to the directory; all unless given. Those
      that do not exist are left out.
    expected: digests to compare with, by name.

  Returns:
    `'SIZE:DIGEST'` by path relative to the directory.

  Raises:
    ValueError: CRC-32C are to be computed, and the library is not installed.
  """
  expected = expected or {}
  if is_bucket(directory):
    return _digests_in_bucket(directory, names, expected)
  local = pathlib.Path(directory)
  files = (
    files_below(local)
    if names is None
    else [local / name for name in names if (local / name).is_file()]
  )
  by_name = {str(file.relative_to(local)): epath.Path(file) for file in files}
  return {
    name: _crc32c(file)
    if _CRC32C.fullmatch(expected.get(name, ''))
    else _sha256(file)
    for name, file in by_name.items()
  }


def _digests_in_bucket(
  directory: epath.Path,
  names: Collection[str] | None,
  expected: Mapping[str, str],
) -> dict[str, str]:
  root = os.fspath(directory)
  objects = bucket_filesystem().find(root, detail=True)
  prefix_length = len(root.removeprefix(BUCKET_SCHEME)) + 1
  by_name = {name[prefix_length:]: info for name, info in objects.items()}
  included = None if names is None else set(names)
  return {
    name: _sha256(directory / name)
    if _SHA256.fullmatch(expected.get(name, ''))
    else f'{info["size"]}:{info["crc32c"]}'
    for name, info in sorted(by_name.items())
    if included is None or name in included
  }


def _sha256(file: epath.Path) -> str:
  """Returns size and SHA-256 of a file."""
  digest = hashlib.sha256()
  size = _read_into(digest, file)
  return f'{size}:{digest.hexdigest()}'


def _crc32c(file: epath.Path) -> str:
  """Returns size and CRC-32C of a file, in the form of buckets.

  Raises:
    ValueError: the library is not installed.
  """
  if importlib.util.find_spec('google_crc32c') is None:
    raise ValueError(
      f'{file} was copied from a bucket, whose checksums need google-crc32c, which is'
      " not installed: pip install 'covrl[gcs]'"
    )
  checksum = importlib.import_module('google_crc32c').Checksum()
  size = _read_into(checksum, file)
  return f'{size}:{base64.b64encode(checksum.digest()).decode()}'


def _read_into(digest: Any, file: epath.Path) -> int:
  """Updates a digest with the content of a file; returns the size."""
  size = 0
  with reading(file), open_binary(file) as stream:
    while block := stream.read(_READ_SIZE):
      digest.update(block)
      size += len(block)
  return size
