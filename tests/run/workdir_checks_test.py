# SPDX-License-Identifier: Apache-2.0
"""A copy of a run does not use the original's folders."""

import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from covrl.config import ConfigError
from covrl.run.checkpoint import CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.run.workdir_checks import check_not_shared


def check(directory, saved):
  """Checks a run directory whose newest checkpoint has the given metadata."""
  folders = ('checkpoints', 'warm_start', 'evaluation')
  check_not_shared(epath.Path(directory), folders, saved)


@pytest.mark.parametrize('name', ['checkpoints', 'evaluation', 'warm_start'])
def test_refuses_a_copy_whose_link_leads_to_the_folder_of_the_original(
  tmp_path, name
):
  original, copy = tmp_path / 'original', tmp_path / 'copy'
  disk = tmp_path / 'disk'
  disk.mkdir()
  original.mkdir()
  (original / name).symlink_to(disk)
  saved = RunDirectory(original).records
  check(original, saved)
  shutil.copytree(original, copy, symlinks=True)
  error = (
    f'{copy / name} must be of this run alone, got a link, and its checkpoint was'
    f' written by {original}; replace the link by the folder, or by a copy if the'
    ' other run is to keep it'
  )
  with pytest.raises(ConfigError) as caught:
    check(copy, saved)
  assert str(caught.value) == error
  # A renamed run may have links, but not a copy of it.
  moved = original.rename(tmp_path / 'moved')
  check(moved, saved)
  with pytest.raises(ConfigError) as caught:
    check(copy, saved)
  assert str(caught.value) == error
  # Nor does a link to a run matter.
  (tmp_path / 'link').symlink_to(copy)
  saved = RunDirectory(copy).records
  check(tmp_path / 'link', saved)
  check(copy, RunDirectory(tmp_path / 'link').records)


@pytest.mark.parametrize('is_moved', [False, True])
def test_a_copy_with_folders_of_its_own_is_accepted(tmp_path, is_moved):
  for name in ('original', 'copy'):
    (tmp_path / name / 'checkpoints').mkdir(parents=True)
  saved = RunDirectory(tmp_path / 'original').records
  if is_moved:
    (tmp_path / 'original').rename(tmp_path / 'elsewhere')
  check(tmp_path / 'copy', saved)


def test_a_copy_whose_folder_is_moved_to_another_disk_is_accepted(tmp_path):
  for name in ('original/checkpoints', 'copy', 'disk'):
    (tmp_path / name).mkdir(parents=True)
  saved = RunDirectory(tmp_path / 'original').records
  (tmp_path / 'copy/checkpoints').symlink_to(tmp_path / 'disk')
  check(tmp_path / 'copy', saved)


@pytest.mark.parametrize('folder', ['checkpoints', 'warm_start'])
def test_a_run_is_checked_before_anything_is_written(directory, recipe, folder):
  """A damaged checkpoint of the original would be renamed through the link."""
  workdir = pathlib.Path(directory.path)
  CheckpointStore(workdir / folder, keep=1).save(
    4,
    {'x': np.zeros(3)},
    {'workdir': {'path': '/absent', 'inode': 0}, 'inputs': {}},
  )
  directory.check(recipe)
  disk = workdir.parent / 'disk'
  (workdir / folder).rename(disk)
  (workdir / folder).symlink_to(disk)
  with pytest.raises(
    ConfigError, match='must be of this run alone, got a link'
  ):
    directory.check(recipe)
