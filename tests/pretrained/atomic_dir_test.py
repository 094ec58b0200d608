# SPDX-License-Identifier: Apache-2.0
"""Exported models are whole or absent, and leave nothing, after any kill."""

import os
import pathlib
import signal
import subprocess
import sys

from covrl.pretrained import atomic_dir
from covrl.pretrained.atomic_dir import atomic_directory

# Begins to write a model to the directory in the argument, and kills itself.
KILLED_SCRIPT = """
import os, signal, sys
from covrl.pretrained.atomic_dir import atomic_directory
with atomic_directory(sys.argv[1]) as draft:
  (draft / 'config.json').write_text('{}')
  os.kill(os.getpid(), signal.SIGKILL)
"""


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
  killed = subprocess.run(
    [sys.executable, '-c', KILLED_SCRIPT, str(tmp_path / 'model')], check=False
  )
  assert killed.returncode == -signal.SIGKILL
  (leftover,) = names(tmp_path)
  assert leftover.startswith('.model.')
  # Of another target, and of a process that still writes.
  other = tmp_path / '.model'
  other.mkdir()
  (other / 'draft.lock').touch()
  with atomic_directory(tmp_path / 'model') as first:
    assert names(tmp_path) == ['.model', first.parent.name]
    with atomic_directory(tmp_path / 'model') as second:
      assert names(tmp_path) == sorted(
        ['.model', first.parent.name, second.parent.name]
      )
      (second / 'config.json').write_text('second')
    second_model = tmp_path / 'model'
    assert names(second_model) == ['config.json']
    (second_model / 'config.json').unlink()
    (first / 'config.json').write_text('first')
  assert names(tmp_path) == ['.model', 'model']
  assert (tmp_path / 'model' / 'config.json').read_text() == 'first'


def test_a_model_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  operations = []
  fsync, replace = os.fsync, os.replace

  def observed_fsync(descriptor):
    path = pathlib.Path(os.readlink(f'/proc/self/fd/{descriptor}'))
    operations.append(path.name)
    fsync(descriptor)

  def observed_replace(source, target):
    operations.append('replace')
    replace(source, target)

  monkeypatch.setattr(os, 'fsync', observed_fsync)
  monkeypatch.setattr(os, 'replace', observed_replace)
  with atomic_directory(tmp_path / 'model') as draft:
    (draft / 'arrays').mkdir()
    for name in ('arrays/a', 'config.json'):
      (draft / name).write_text('content')
  before = operations[: operations.index('replace')]
  assert sorted(before) == ['a', 'arrays', 'config.json', 'draft']
  assert operations[len(before) + 1 :] == [tmp_path.name]


def test_models_are_written_to_a_file_system_without_locks(
  tmp_path, monkeypatch
):
  def fail(*arguments):
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr(atomic_dir.fcntl, 'flock', fail)
  leftover = tmp_path / '.model.x'
  leftover.mkdir()
  (leftover / 'draft.lock').touch()
  with atomic_directory(tmp_path / 'model') as draft:
    (draft / 'config.json').write_text('{}')
  # Whether its process has ended is not known.
  assert names(tmp_path) == ['.model.x', 'model']
