# SPDX-License-Identifier: Apache-2.0
"""Writes to a run directory that fail: one error, and nothing left behind."""

import errno
import fcntl
import os

import pytest

from covrl import storage
from covrl.config import (
  ConfigError,
)
from covrl.pretrained.atomic_dir import atomic_directory
from covrl.run.directory import RunDirectory
from covrl.storage import StorageError, durable, first_storage_error


def make_failing(error_number):
  """A function that raises an OSError with an error number."""

  def fail(*_, **__):
    raise OSError(error_number, os.strerror(error_number))

  return fail


@pytest.mark.parametrize(
  'error_number',
  [
    *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES),
    *(errno.EUCLEAN, errno.ESHUTDOWN, errno.EINVAL),
  ],
)
@pytest.mark.parametrize('location', ['write_all', 'os.fsync'])
def test_failed_writes_leave_nothing_behind(
  tmp_path, recipe, monkeypatch, error_number, location
):
  directory = RunDirectory(tmp_path / 'run')
  with monkeypatch.context() as patch:
    if location == 'os.fsync':
      patch.setattr(os, 'fsync', make_failing(error_number))
    else:
      patch.setattr(durable, location, make_failing(error_number))
    with pytest.raises(StorageError) as caught:
      directory.write_recipe(recipe)
    reason = os.strerror(error_number)
    assert str(caught.value) == (
      f'{directory.path / "config.json"} cannot be written: '
      f'{reason[0].lower()}{reason[1:]}'
    )
    for write in (
      lambda: directory.write_bytes('tokenizer.model', b'1'),
      lambda: directory.write_jsonl('a.jsonl', [{}]),
      lambda: directory.add_notice('a'),
    ):
      with pytest.raises(StorageError):
        write()
  assert [x for x in (tmp_path / 'run').rglob('*') if x.is_file()] == []
  directory.check(recipe)
  directory.write_recipe(recipe)


def test_a_directory_that_cannot_be_locked_is_a_failed_write(
  tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(os, 'mkdir', make_failing(errno.EROFS))
    with (
      pytest.raises(StorageError, match='run cannot be written: read-only'),
      RunDirectory(tmp_path / 'run').locked(),
    ):
      pass
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / '.lock').mkdir()
  with (
    pytest.raises(StorageError, match='lock cannot be written: is a directory'),
    RunDirectory(tmp_path / 'run').locked(),
  ):
    pass


def test_a_pipe_in_place_of_the_lock_is_refused(tmp_path):
  """Opening it would wait for a reader, also after a signal."""
  os.mkfifo(tmp_path / '.lock')
  with (
    pytest.raises(ConfigError, match='lock must be a file, got a pipe'),
    RunDirectory(tmp_path).locked(),
  ):
    pass


@pytest.mark.parametrize(
  ('text', 'cause'),
  [
    ("Failed to rename [os_error_code='18']", 'invalid cross-device link'),
    ("Failed to write [os_error_code='22']", 'invalid argument'),
    ("can't start new thread", "can't start new thread"),
    (
      'NOT_FOUND: Error writing "state.step" in OCDBT database at local file "a/"',
      'no such file or directory',
    ),
  ],
)
def test_errors_of_libraries_are_failed_writes(text, cause):
  with pytest.raises(StorageError) as caught, storage.writing('a'):
    raise RuntimeError(text)
  assert str(caught.value) == f'a cannot be written: {cause}'


def test_other_errors_are_no_failed_writes():
  """Invalid arguments, and errors that replace one of the system."""
  with (
    pytest.raises(ValueError, match='Invalid argument'),
    storage.writing('a'),
  ):
    raise ValueError('Invalid argument: shapes differ')

  def refuse():
    try:
      raise BlockingIOError(errno.EAGAIN, 'in use')
    except BlockingIOError:
      raise ConfigError('in use') from None

  with pytest.raises(ConfigError, match='in use'), storage.writing('a'):
    refuse()


def test_the_first_failed_write_is_the_one_reported():
  def write(name):
    with storage.writing(name):
      make_failing(errno.ENOSPC)()

  def run():
    try:
      write('checkpoint')
    finally:
      write('report')

  with pytest.raises(StorageError, match='report') as caught:
    run()
  assert 'checkpoint cannot' in str(first_storage_error(caught.value))
  assert first_storage_error(ValueError('other')) is None


def test_other_errors_are_not_failed_writes(tmp_path):
  error = ValueError('a')
  with (
    pytest.raises(ValueError, match=r'^a$') as caught,
    storage.writing(tmp_path),
  ):
    raise error
  assert caught.value is error


def test_errors_of_libraries_that_name_the_cause_are_failed_writes(tmp_path):
  with (
    pytest.raises(StorageError, match=r'no space left on device$'),
    storage.writing(tmp_path),
  ):
    raise ValueError(
      'RESOURCE_EXHAUSTED: Error writing "a": [OS error 28: ENOSPC No space left'
      ' on device] [source locations=...]'
    )


def test_a_converted_model_is_written_whole_or_not_at_all(tmp_path):
  def write():
    with atomic_directory(tmp_path / 'model') as draft:
      (draft / 'config.json').write_text('{}')
      make_failing(errno.ENOSPC)()

  with pytest.raises(StorageError, match='model cannot be written: no space'):
    write()
  assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_not_a_failed_write(tmp_path):
  with (tmp_path / '.lock').open('w') as stream:
    fcntl.flock(stream, fcntl.LOCK_EX)
    with (
      pytest.raises(ConfigError, match='is in use'),
      RunDirectory(tmp_path).locked(),
    ):
      pass


@pytest.mark.parametrize(
  ('number', 'cause'),
  [
    (errno.ENOLCK, 'no locks available'),
    # Lustre without the option `flock`.
    (errno.ENOSYS, 'function not implemented'),
  ],
)
def test_a_file_system_without_locks_is_not_a_directory_in_use(
  tmp_path, monkeypatch, number, cause
):
  monkeypatch.setattr(fcntl, 'flock', make_failing(number))
  with (
    pytest.raises(StorageError, match=f'lock cannot be written: {cause}'),
    RunDirectory(tmp_path).locked(),
  ):
    pass
