# SPDX-License-Identifier: Apache-2.0
"""Other programs, played by a script that records and fails on demand."""

import json
import os
import pathlib
import stat
import sys

import pytest

FAKE = pathlib.Path(__file__).with_name('fake.py')
EVER = 10**6


class Fakes:
  """Programs on PATH that answer according to a plan."""

  def __init__(self, folder):
    self.folder = folder
    self.plan()

  def plan(self, *lines):
    (self.folder / 'plan.json').write_text(json.dumps(lines))

  def calls(self, *words):
    """Arguments of the calls so far that contain all of the words."""
    file = self.folder / 'calls.jsonl'
    if not file.exists():
      return []
    calls = [json.loads(line) for line in file.read_text().splitlines()]
    return [call for call in calls if all(word in call for word in words)]


@pytest.fixture
def fakes(tmp_path, monkeypatch):
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
