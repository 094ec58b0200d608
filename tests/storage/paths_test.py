# SPDX-License-Identifier: Apache-2.0
"""Paths and directories in a bucket, against an emulated bucket."""

import importlib.util
import os

import numpy as np
import pytest
from etils import epath

from covrl import storage

ROOT = epath.Path('gs://bucket/run')


def test_refuses_unsupported_schemes_and_missing_libraries(monkeypatch):
  with pytest.raises(ValueError, match='must be on a disk or begin with gs://'):
    storage.as_path('s3://bucket/run')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'needs gcsfs.*covrl\[gcs\]'):
    storage.as_path('gs://bucket/run')


def test_refuses_a_missing_bucket(bucket):
  file = storage.as_path('gs://absent/run/.lock')
  with pytest.raises(
    ValueError, match=r'gs://absent/run/\.lock cannot be writ'
  ):
    storage.create_object(file, 'a')


def test_retries_broken_connections(bucket):
  bucket.failing_requests = 2
  storage.write_atomically(ROOT / 'a', 'content')
  assert bucket.failing_requests == 0
  assert bucket.text('run/a') == 'content'


def test_sees_objects_written_by_other_processes(bucket):
  assert not ROOT.is_dir()
  bucket.put('run/a/one.txt', b'1')
  assert ROOT.is_dir()
  assert [path.name for path in (ROOT / 'a').iterdir()] == ['one.txt']
  bucket.put('run/a/two.txt', b'2')
  assert sorted(storage.digest_files(ROOT)) == ['a/one.txt', 'a/two.txt']
  assert [p.read_text() for p in sorted((ROOT / 'a').glob('t*.txt'))] == ['2']


def test_digests_differ_for_different_content(bucket, tmp_path):
  for root in (ROOT, epath.Path(tmp_path)):
    storage.write_atomically(root / 'a' / 'b.json', 'before')
    before = storage.digest_files(root)
    storage.write_atomically(root / 'a' / 'b.json', 'behind')
    assert before.keys() == storage.digest_files(root).keys() == {'a/b.json'}
    assert before != storage.digest_files(root)
    storage.remove(root / 'a')
    storage.remove(root / 'a')
    assert storage.digest_files(root) == {}


def test_digests_of_a_directory_that_cannot_be_read_are_an_error(
  tmp_path, monkeypatch
):
  (tmp_path / 'closed').mkdir()
  (tmp_path / 'closed' / 'file').write_text('1')
  scan = os.scandir

  def scan_open_ones(path):
    if str(path).endswith('closed'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scan(path)

  monkeypatch.setattr('os.scandir', scan_open_ones)
  with pytest.raises(PermissionError, match='closed'):
    storage.digest_files(storage.absolute(tmp_path))
  with pytest.raises(PermissionError, match='closed'):
    storage.upload(tmp_path, storage.absolute(tmp_path / 'copy'))


def test_reads_parts_of_files(bucket, tmp_path):
  numbers = np.arange(100, dtype=np.float32)
  for root in (ROOT, epath.Path(tmp_path)):
    (root / 'x.bin').write_bytes(b'head' + numbers.tobytes())
    values = np.zeros((3, 5), np.float32)
    storage.read_into(root / 'x.bin', 4 + 4 * 10, values)
    np.testing.assert_array_equal(values.ravel(), numbers[10:25])
    assert storage.file_size(root / 'x.bin') == 404
    with pytest.raises(ValueError, match='must have 424 bytes, got 404'):
      storage.read_into(root / 'x.bin', 364, values)
    # A copy would be filled, and the array left as it was.
    with pytest.raises(ValueError, match='must be contiguous, got strides'):
      storage.read_into(root / 'x.bin', 4, values.T)


def test_copies_directories_to_and_from_a_bucket(bucket, tmp_path):
  (tmp_path / 'sub').mkdir()
  for name in ('config.json', 'sub/weights', 'z'):
    (tmp_path / name).write_text(name)
  storage.upload(tmp_path, ROOT / 'model', copied_last=['config.json'])
  generations = {name: g for name, (_, g) in bucket.objects.items()}
  assert max(generations, key=lambda n: generations[n]).endswith('config.json')
  local_directory = storage.local_copy(ROOT / 'model')
  assert (local_directory / 'sub' / 'weights').read_text() == 'sub/weights'
  assert storage.local_copy(epath.Path(tmp_path)) == tmp_path


def test_a_file_that_two_processes_write_has_the_content_of_one(
  tmp_path, monkeypatch
):
  """The second process writes the file while the first waits for the disk."""
  file, fsync = epath.Path(tmp_path) / 'report.html', os.fsync

  def write_meanwhile(descriptor):
    monkeypatch.setattr(os, 'fsync', fsync)
    storage.write_atomically(file, 'a longer page')
    assert file.read_text() == 'a longer page'
    fsync(descriptor)

  monkeypatch.setattr(os, 'fsync', write_meanwhile)
  storage.write_atomically(file, 'a page')
  assert file.read_text() == 'a page'
  assert os.listdir(tmp_path) == ['report.html']


def test_a_directory_that_is_not_there_is_not_uploaded(tmp_path):
  with pytest.raises(NotADirectoryError, match='none must be a directory'):
    storage.upload(tmp_path / 'none', epath.Path(tmp_path / 'copy'))
  assert not (tmp_path / 'copy').exists()
