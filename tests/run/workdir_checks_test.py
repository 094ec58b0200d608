# SPDX-License-Identifier: Apache-2.0
"""A copy of a run does not use the original's folders."""

import shutil

import pytest

from covrl.config import ConfigError
from covrl.run.directory import RunDirectory


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
  RunDirectory(original).check_records(saved, pytest.fail)
  shutil.copytree(original, copy, symlinks=True)
  error = (
    f'{copy / name} must be of this run alone, got a link, and its checkpoint was'
    f' written by {original}; replace the link by the folder, or by a copy if the'
    ' other run is to keep it'
  )
  with pytest.raises(ConfigError) as caught:
    RunDirectory(copy).check_records(saved, pytest.fail)
  assert str(caught.value) == error
  # A renamed run may have links, but not a copy of it.
  moved = original.rename(tmp_path / 'moved')
  RunDirectory(moved).check_records(saved, pytest.fail)
  with pytest.raises(ConfigError) as caught:
    RunDirectory(copy).check_records(saved, pytest.fail)
  assert str(caught.value) == error
  # Nor does a link to a run matter.
  (tmp_path / 'link').symlink_to(copy)
  saved = RunDirectory(copy).records
  RunDirectory(tmp_path / 'link').check_records(saved, pytest.fail)
  RunDirectory(copy).check_records(
    RunDirectory(tmp_path / 'link').records, pytest.fail
  )


@pytest.mark.parametrize('is_moved', [False, True])
def test_a_copy_with_folders_of_its_own_is_accepted(tmp_path, is_moved):
  for name in ('original', 'copy'):
    (tmp_path / name / 'checkpoints').mkdir(parents=True)
  saved = RunDirectory(tmp_path / 'original').records
  if is_moved:
    (tmp_path / 'original').rename(tmp_path / 'elsewhere')
  RunDirectory(tmp_path / 'copy').check_records(saved, pytest.fail)


def test_a_copy_whose_folder_is_moved_to_another_disk_is_accepted(tmp_path):
  for name in ('original/checkpoints', 'copy', 'disk'):
    (tmp_path / name).mkdir(parents=True)
  saved = RunDirectory(tmp_path / 'original').records
  (tmp_path / 'copy/checkpoints').symlink_to(tmp_path / 'disk')
  RunDirectory(tmp_path / 'copy').check_records(saved, pytest.fail)
