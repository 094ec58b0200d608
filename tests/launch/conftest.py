# SPDX-License-Identifier: Apache-2.0
"""Replacements of external programs, which record calls and give set answers."""

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys

import pytest

from launch import checkout

FAKE = pathlib.Path(__file__).with_name('fake.py')


class Fakes:
  """Programs on PATH that record their calls and give answers of a plan."""

  def __init__(self, folder):
    self.folder = folder
    self.set_answers()

  def set_answers(self, *lines):
    """Sets the answers; see `fake.py` for their fields."""
    (self.folder / 'plan.json').write_text(json.dumps(lines))

  def calls(self, *words):
    """Arguments of the calls so far that contain all of the words."""
    file = self.folder / 'calls.jsonl'
    if not file.exists():
      return []
    calls = [json.loads(line) for line in file.read_text().splitlines()]
    return [call for call in calls if all(word in call for word in words)]


@pytest.fixture(scope='session')
def committed(tmp_path_factory, git):
  """A checkout with a committed config, which imports a file beside it."""
  root = tmp_path_factory.mktemp('checkout').resolve()
  (root / 'configs').mkdir()
  for name in ('c.py', 'configs/c.py'):
    (root / name).write_text('import shared\n\ndef kl_cov():\n  ...\n')
  for name in ('shared.py', 'configs/shared.py', 'configs/countdown.py'):
    (root / name).write_text('def kl_cov():\n  ...\n')
  git(root, 'init', '--quiet')
  git(root, 'add', '.')
  git(root, 'commit', '--quiet', '--message=First')
  return root


@pytest.fixture(scope='session')
def git():
  """Function that runs git as a user that need not be configured."""

  def run(root, *arguments):
    user = ('-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'gc.auto=0')
    subprocess.run(['git', '-C', str(root), *user, *arguments], check=True)

  return run


@pytest.fixture
def clone(committed, tmp_path, monkeypatch):
  """A copy of the checkout, as launcher's checkout and current directory."""
  root = shutil.copytree(committed, tmp_path.resolve() / 'clone')
  monkeypatch.setattr(checkout, 'ROOT', root)
  monkeypatch.chdir(root)
  return root


@pytest.fixture(autouse=True)
def in_checkout(committed, monkeypatch):
  """Makes the committed checkout the launcher's and the current directory."""
  monkeypatch.setattr(checkout, 'ROOT', committed)
  monkeypatch.chdir(committed)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
  """Puts the replacements of external programs on PATH."""
  folder = tmp_path / 'fakes'
  folder.mkdir()
  for name in ('gcloud', 'kubectl', 'sbatch', 'scontrol', 'srun', 'xpk'):
    program = folder / name
    program.write_text(
      FAKE.read_text().replace('/usr/bin/env python3', sys.executable)
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
  monkeypatch.setenv('FAKE_FOLDER', str(folder))
  return Fakes(folder)
