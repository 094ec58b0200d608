# SPDX-License-Identifier: Apache-2.0
"""Damaged checkpoints, saves that fail and removals that fail: an older checkpoint is used."""

import contextlib
import errno
import importlib
import os
import resource
import shutil
import types
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from run.stored_checkpoints import damage, latest

from covrl import storage
from covrl.run import checkpoint_files
from covrl.run.checkpoint import MANIFEST, CheckpointError, CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.storage import StorageError


@pytest.fixture(scope='module')
def three_checkpoints(tmp_path_factory):
  """Returns the directory of three small checkpoints."""
  directory = tmp_path_factory.mktemp('three_checkpoints') / 'checkpoints'
  store = CheckpointStore(directory, keep=3)
  for position in (0, 4, 8):
    store.save(position, {'x': np.full(3, position)}, {'at': position})
  return directory


@pytest.fixture
def checkpoint_directory(three_checkpoints, tmp_path):
  return shutil.copytree(three_checkpoints, tmp_path / 'checkpoints')


@pytest.mark.parametrize(
  'kind', ['manifest', 'edited manifest', 'data', 'missing']
)
def test_falls_back_to_the_newest_undamaged_checkpoint(
  checkpoint_directory, kind
):
  for name in ('00000004', '00000008'):
    damage(checkpoint_directory / name, kind)
  names_before = {path.name for path in checkpoint_directory.iterdir()}
  store = CheckpointStore(checkpoint_directory, keep=3)
  with pytest.raises(CheckpointError, match='00000008 is damaged'):
    store.newest_undamaged(strict=True)
  assert {path.name for path in checkpoint_directory.iterdir()} == names_before
  warnings = []
  checkpoint = store.newest_undamaged(warn=warnings.append)
  assert checkpoint is not None
  assert checkpoint.position == store.position == 0
  assert checkpoint.restore({'x': np.ones(3, int)})['x'].tolist() == [0, 0, 0]
  assert len(warnings) == 2
  for text, name in zip(warnings, ('00000008', '00000004'), strict=True):
    assert text.startswith(
      f'the checkpoint {checkpoint_directory / name} is damaged: '
    )
    assert f'it is kept as {name}.damaged_1' in text
    assert (checkpoint_directory / f'{name}.damaged_1' / 'arrays').is_dir()
  # The run goes on and completes a checkpoint of the same position.
  store.save(8, {'x': np.full(3, 9)}, {'at': 9})
  assert latest(store).metadata == {'at': 9}
  damage(checkpoint_directory / '00000008', kind)
  assert (
    CheckpointStore(checkpoint_directory, keep=3).newest_undamaged() is not None
  )
  assert (checkpoint_directory / '00000008.damaged_2').is_dir()


def test_refuses_a_run_whose_checkpoints_are_all_damaged(checkpoint_directory):
  for name in ('00000000', '00000004', '00000008'):
    damage(checkpoint_directory / name, 'manifest')
  before = {path.name for path in checkpoint_directory.iterdir()}
  store = CheckpointStore(checkpoint_directory, keep=3)
  with pytest.raises(
    CheckpointError,
    match=r'must have a whole checkpoint, .*does not start again from the',
  ):
    store.newest_undamaged()
  assert {path.name for path in checkpoint_directory.iterdir()} == before
  for path in checkpoint_directory.iterdir():
    path.rename(path.with_name(f'{path.name}.damaged_1'))
  for method in (store.newest_undamaged, store.latest):
    with pytest.raises(
      CheckpointError, match='must have a finished checkpoint'
    ):
      method()


def test_directories_with_other_names_are_not_checkpoints(checkpoint_directory):
  newest = checkpoint_directory / '00000008'
  for name in ('²', '００００００１２', '99', '0000009x', '-0000009'):
    shutil.copytree(newest, checkpoint_directory / name)
  (checkpoint_directory / '00000077').write_text('a file')
  store = CheckpointStore(checkpoint_directory, keep=1)
  assert latest(store).position == 8
  assert store.newest_undamaged() is not None
  assert store.position == 8
  # A copy with the name of another position is damaged.
  shutil.copytree(newest, checkpoint_directory / '00000099')
  warnings = []
  checkpoint = store.newest_undamaged(warn=warnings.append)
  assert checkpoint is not None
  assert checkpoint.position == 8
  assert f'{MANIFEST} is that of 00000008' in warnings[0]


@contextlib.contextmanager
def file_size_limit(size):
  """Limits the size of files that this process writes: as a full disk does."""
  limits_before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits_before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits_before)


@pytest.mark.parametrize('size', [0, 300, 6000])
def test_a_failed_save_raises_one_error_and_keeps_the_last_checkpoint(
  checkpoint_directory, size, capfd, caplog
):
  store = CheckpointStore(checkpoint_directory, keep=1)
  noise = np.random.default_rng(0).random(5000)
  with (
    file_size_limit(size),
    pytest.raises(
      StorageError, match=r'00000012.* cannot be written: '
    ) as caught,
  ):
    store.save(12, {'x': noise, 'y': noise, 'z': noise}, {})
  assert '\n' not in str(caught.value)
  # Neither tracebacks nor the logs of libraries.
  assert capfd.readouterr() == ('', '')
  assert caplog.records == []
  assert {path.name for path in checkpoint_directory.iterdir()} == {
    '00000000',
    '00000004',
    '00000008',
  }
  assert latest(store).position == 8
  store.save(12, {'x': noise}, {})
  assert latest(store).restore({'x': noise})['x'].tolist() == noise.tolist()
  assert [path.name for path in checkpoint_directory.iterdir()] == ['00000012']


def test_a_completed_checkpoint_removes_incomplete_ones(checkpoint_directory):
  (checkpoint_directory / '00000006' / 'arrays').mkdir(parents=True)
  store = CheckpointStore(checkpoint_directory, keep=2)
  store.save(12, {'x': np.zeros(2)}, {})
  assert sorted(path.name for path in checkpoint_directory.iterdir()) == [
    '00000008',
    '00000012',
  ]


@pytest.mark.parametrize(
  ('name', 'number'),
  [
    ('unlink', errno.EACCES),
    ('rmtree', errno.EACCES),
    # NFS keeps files that are open elsewhere under other names.
    ('rmtree', errno.ENOTEMPTY),
  ],
)
def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_a_run(
  checkpoint_directory, monkeypatch, name, number
):
  store, warnings = CheckpointStore(checkpoint_directory, keep=1), []
  assert store.newest_undamaged(warn=warnings.append) is not None

  def fail(*_, **__):
    raise OSError(number, 'no')

  with monkeypatch.context() as patch:
    patch.setattr(type(epath.Path(checkpoint_directory)), name, fail)
    for position in (12, 13):
      store.save(position, {'x': np.zeros(2)}, {})
  assert all('cannot be removed: ' in text for text in warnings)
  assert len(set(warnings)) == len(warnings) > 0
  assert latest(store).position == 13
  store.save(14, {'x': np.zeros(2)}, {})
  assert [path.name for path in checkpoint_directory.iterdir()] == ['00000014']


def test_a_checkpoint_that_is_removed_while_it_is_read_is_replaced_by_the_newest(
  checkpoint_directory,
):
  """As by a run that trains while another command opens it."""
  store = CheckpointStore(checkpoint_directory, keep=1)
  positions_read = []

  def read(checkpoint):
    positions_read.append(checkpoint.position)
    if len(positions_read) == 1:
      store.save(12, {'x': np.full(3, 12)}, {'at': 12})
    return checkpoint.restore({'x': np.ones(3, int)})['x'].tolist()

  checkpoint, content = store.read_latest(read)
  assert (checkpoint.position, content, positions_read) == (
    12,
    [12, 12, 12],
    [8, 12],
  )
  damage(checkpoint_directory / '00000012', 'data')
  with pytest.raises(CheckpointError, match='00000012 is damaged'):
    store.read_latest(read)
  damage(checkpoint_directory / '00000012', 'manifest')
  with pytest.raises(CheckpointError, match='00000012 is damaged'):
    store.read_latest(read)


@pytest.mark.parametrize('name', ['open_binary', 'read_bytes'])
@pytest.mark.parametrize('failures', [1, 2])
def test_reads_that_fail_temporarily_set_no_checkpoint_aside(
  checkpoint_directory, monkeypatch, name, failures
):
  monkeypatch.setattr(checkpoint_files, '_PAUSE', 0.0)
  target: Any = type(epath.Path())
  if name == 'open_binary':
    target = importlib.import_module('covrl.storage.digests')
  # The system's errors of reading an open file have no name.
  original_read, error = getattr(target, name), OSError(errno.EIO, 'error')
  errors = iter([error] * failures)

  def fail(*args):
    if error := next(errors, None):
      raise error
    return original_read(*args)

  monkeypatch.setattr(target, name, fail)
  store, warnings = CheckpointStore(checkpoint_directory, keep=3), []
  checkpoint = store.newest_undamaged(warn=warnings.append)
  assert checkpoint is not None
  assert checkpoint.position == 8
  assert warnings == []
  assert next(errors, None) is None


@pytest.mark.parametrize('failures', [1, 3])
@pytest.mark.parametrize(
  ('name', 'error'),
  [
    ('metadata', None),
    ('restore', ValueError('UNKNOWN: Error reading "a" [Input/output error]')),
    # As Orbax where the system cannot examine the directory.
    ('restore', FileNotFoundError('Checkpoint at a not found.')),
  ],
)
def test_failed_array_reads_are_retried_and_reported_in_one_sentence(
  checkpoint_directory, monkeypatch, name, error, failures
):
  monkeypatch.setattr(checkpoint_files, '_PAUSE', 0.0)
  original_read, calls = getattr(ocp.StandardCheckpointer, name), []

  def fail(self, *args, **options):
    calls.append(name)
    result = original_read(self, *args, **options)
    if len(calls) > failures:
      return result
    if name == 'metadata':
      # As Orbax does where it cannot read its own files.
      return types.SimpleNamespace(item_metadata=None)
    raise error

  monkeypatch.setattr(ocp.StandardCheckpointer, name, fail)
  checkpoint = CheckpointStore(checkpoint_directory, keep=3).newest_undamaged()
  assert checkpoint is not None
  like = {'x': np.ones(3, int)}
  if failures == 1:
    assert checkpoint.restore(like)['x'].tolist() == [8, 8, 8]
    return
  with pytest.raises(OSError) as caught:
    checkpoint.restore(like)
  assert storage.read_failure_message(caught.value) == (
    f'{checkpoint.path / "arrays"} cannot be read: input/output error'
  )


def test_a_directory_that_cannot_be_examined_is_an_error_and_not_absent(
  checkpoint_directory, monkeypatch
):
  """A run without checkpoints would start from the beginning."""
  status = os.stat

  def fail(path, *args, **options):
    if str(path) == str(checkpoint_directory):
      raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    return status(path, *args, **options)

  monkeypatch.setattr(os, 'stat', fail)
  directory = RunDirectory(checkpoint_directory.parent)
  store = CheckpointStore(checkpoint_directory, keep=3)
  for read in (store.latest, store.newest_undamaged, directory.has_checkpoint):
    with pytest.raises(OSError) as caught:
      read()
    assert storage.read_failure_message(caught.value) == (
      f'{checkpoint_directory} cannot be read: input/output error'
    )
