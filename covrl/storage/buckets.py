# SPDX-License-Identifier: Apache-2.0
"""Operations on buckets (`gs://…`): types of paths, and creation of objects."""

from __future__ import annotations

import os
from typing import Any, Literal

import fsspec
import fsspec.config
from etils import epath

from covrl.storage.failures import reading

# Listings of buckets are not cached: other processes write there, too, and so
# does TensorStore within this process.
fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False

BUCKET_SCHEME = 'gs://'
"""Beginning of the paths of buckets."""


def is_bucket(path: epath.PathLike) -> bool:
  """Returns whether a path is in a bucket."""
  return os.fspath(path).startswith(BUCKET_SCHEME)


def type_in_bucket(path: epath.Path) -> Literal['file', 'directory', '']:
  """Returns the type of a path in a bucket, empty if nothing exists there.

  `isfile` and `isdir` of the client library return false on every error.
  """
  with reading(path):
    try:
      return bucket_filesystem().info(os.fspath(path))['type']
    except FileNotFoundError:
      return ''


def create_object(file: epath.Path, text: str) -> bool:
  """Creates an object in a bucket unless it exists.

  Of several concurrent calls exactly one succeeds.

  Returns:
    Whether this call created the object.

  Raises:
    ValueError: if the bucket cannot be written to; the message gives the reason.
  """
  try:
    bucket_filesystem().pipe_file(os.fspath(file), text.encode(), mode='create')
  except FileExistsError:
    return False
  except Exception as error:
    # Client library, network and store raise errors of many types.
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    raise ValueError(f'{file} cannot be written: {reason}') from error
  return True


def bucket_filesystem() -> Any:
  """Returns the filesystem of buckets that `etils.epath` uses, too."""
  return fsspec.filesystem('gcs', finalize_on_close=True)
