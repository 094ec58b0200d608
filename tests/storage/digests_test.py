# SPDX-License-Identifier: Apache-2.0
"""Digests of files on a disk and in an emulated bucket, and of copies between them."""

import importlib.util

import pytest
from etils import epath

from covrl import storage

FILES = {'a/b.json': b'{}', 'empty': b'', 'large': bytes(range(256)) * 99}


@pytest.fixture
def directories(bucket, tmp_path):
  """Returns a directory on a disk and one in a bucket with equal files."""
  for name, content in FILES.items():
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    bucket.put(f'run/{name}', content)
  return epath.Path(tmp_path), epath.Path('gs://bucket/run')


def test_a_copy_has_the_digests_of_the_place_that_it_is_from(
  directories, bucket
):
  disk, in_bucket = directories
  of_disk, of_bucket = (
    storage.digest_files(disk),
    storage.digest_files(in_bucket),
  )
  assert of_disk.keys() == of_bucket.keys() == FILES.keys()
  assert not set(of_disk.values()) & set(of_bucket.values())
  names = sorted(FILES)
  for directory in directories:
    for expected in (of_disk, of_bucket):
      assert storage.digest_files(directory, names, expected) == expected
    mixed = of_disk | {'large': of_bucket['large']}
    assert storage.digest_files(directory, names, mixed) == mixed
  changed = FILES['large'][:-1] + b'\0'
  (disk / 'large').write_bytes(changed)
  bucket.put('run/large', changed)
  for directory in directories:
    for expected in (of_disk, of_bucket):
      actual = storage.digest_files(directory, names, expected)
      assert [n for n in names if actual[n] != expected[n]] == ['large']


def test_a_copy_from_a_bucket_needs_the_library_of_checksums(
  directories, monkeypatch
):
  disk, in_bucket = directories
  expected = storage.digest_files(in_bucket)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert len(storage.digest_files(disk)) == 3
  with pytest.raises(
    ValueError, match=r"empty was copied from a bucket.*'covrl\[gcs\]'"
  ):
    storage.digest_files(disk, ['empty'], expected)
