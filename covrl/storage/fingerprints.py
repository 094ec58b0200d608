# SPDX-License-Identifier: Apache-2.0
"""Digests by which large files are recognised without reading all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

from etils import epath

from covrl.storage.failures import reading
from covrl.storage.paths import digests, file_size, is_bucket, open_binary

# Number and size in bytes of the samples of a file.
_SAMPLES, _SAMPLE_SIZE = 32, 2**16


def directory_fingerprint(
  directory: epath.Path, suffixes: Collection[str]
) -> str:
  """Returns a digest of the names, sizes and samples of a directory's files.

  On a disk 32 samples of 64 KiB are read of each file, the first and the last
  bytes among them. In a bucket the store's checksums are taken. Modification
  times do not count, because a copy of the files has others.

  Args:
    directory: the directory.
    suffixes: endings of the names of the files that count.

  Returns:
    SHA-256 in hexadecimal; empty without any such file.
  """
  if is_bucket(directory):
    file_digests = {
      name: digest
      for name, digest in digests(directory).items()
      if name.endswith(tuple(suffixes))
    }
  else:
    file_digests = {
      file.name: _sampled_digest(file)
      for file in sorted(directory.iterdir(), key=lambda file: file.name)
      if file.name.endswith(tuple(suffixes)) and file.is_file()
    }
  if not file_digests:
    return ''
  return hashlib.sha256(
    json.dumps(file_digests, sort_keys=True).encode()
  ).hexdigest()


def _sampled_digest(file: epath.Path) -> str:
  size = file_size(file)
  digest = hashlib.sha256(str(size).encode())
  last_offset = max(size - _SAMPLE_SIZE, 0)
  offsets = {last_offset * k // (_SAMPLES - 1) for k in range(_SAMPLES)}
  with reading(file), open_binary(file) as stream:
    for offset in sorted(offsets):
      stream.seek(offset)
      digest.update(stream.read(_SAMPLE_SIZE))
  return digest.hexdigest()
