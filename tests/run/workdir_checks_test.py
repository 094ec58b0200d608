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
  with pytest.raises(ConfigError) as caught:
    RunDirectory(copy).check_records(saved, pytest.fail)
  assert str(caught.value) == (
    f'{copy / name} must be of this run alone, got that of {original}, by a link;'
    ' replace the link by a copy of the folder'
  )
  # A moved run may have links, and so may the link to a run.
  original.rename(tmp_path / 'away')
  RunDirectory(copy).check_records(saved, pytest.fail)
  (tmp_path / 'link').symlink_to(copy)
  saved = RunDirectory(copy).records
  RunDirectory(tmp_path / 'link').check_records(saved, pytest.fail)


def test_a_copy_with_folders_of_its_own_is_accepted(tmp_path):
  for name in ('original', 'copy'):
    (tmp_path / name / 'checkpoints').mkdir(parents=True)
  saved = RunDirectory(tmp_path / 'original').records
  RunDirectory(tmp_path / 'copy').check_records(saved, pytest.fail)
