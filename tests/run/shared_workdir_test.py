# SPDX-License-Identifier: Apache-2.0
"""All processes of a run must see one directory."""

import pathlib

import pytest
from etils import epath

from covrl.config import ConfigError
from covrl.parallel import distributed
from covrl.run.shared_workdir import check_shared


@pytest.fixture
def second_process(tmp_path, monkeypatch):
  """Simulates the second of two processes, the first of which has a directory."""
  first = tmp_path / 'first'
  first.mkdir()
  (first / '.shared.tmp').write_text('c0ffee')
  monkeypatch.setattr(distributed, 'process_count', lambda: 2)
  monkeypatch.setattr(distributed, 'is_first', lambda: False)
  gathered = []

  def gather(content):
    gathered.append(content)
    return ['c0ffee' if len(gathered) == 1 else True, content]

  monkeypatch.setattr(distributed, 'gather_objects', gather)
  return first


def test_a_directory_that_another_process_does_not_see_is_refused(
  second_process, tmp_path
):
  other = tmp_path / 'other'
  for content in (None, '', 'left by another run'):
    if content is not None:
      other.mkdir(exist_ok=True)
      (other / '.shared.tmp').write_text(content)
    with pytest.raises(ConfigError) as caught:
      check_shared(epath.Path(other), timeout=0.01)
    assert str(caught.value) == (
      f'--workdir must be a directory that all processes share, got {other}, which'
      ' is another one on process 1 than on process 0'
    )


def test_a_shared_directory_is_accepted_once_its_file_is_visible(
  second_process, monkeypatch
):
  check_shared(epath.Path(second_process), timeout=0.01)
  # A network file system shows it later.
  file = second_process / '.shared.tmp'
  content = file.read_text()
  file.unlink()
  waits = []

  def wait_until(ready):
    waits.append(ready())
    pathlib.Path(file).write_text(content)
    assert ready()

  monkeypatch.setattr(distributed, 'wait_until', wait_until)
  monkeypatch.setattr(
    distributed, 'gather_objects', lambda text: ['c0ffee', text]
  )
  check_shared(epath.Path(second_process))
  assert waits == [False]


def test_the_first_process_removes_its_file(tmp_path, monkeypatch):
  monkeypatch.setattr(distributed, 'process_count', lambda: 2)
  monkeypatch.setattr(distributed, 'gather_objects', lambda text: [text] * 2)
  check_shared(epath.Path(tmp_path))
  assert list(tmp_path.iterdir()) == []
