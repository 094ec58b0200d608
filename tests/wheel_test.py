# SPDX-License-Identifier: Apache-2.0
"""The wheel contains all that the commands need, without the checkout."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from train import process

from covrl.config import recipes

ROOT = pathlib.Path(__file__).parents[1]
SIZES = {
  'countdown__held_out': 4,
  'rollout__prompts_per_iteration': 4,
  'rollout__responses_per_prompt': 2,
  'train__iterations': 2,
  'train__sequences_per_update': 8,
  'warm_start__steps': 0,
  'evaluate__problems': 4,
  'evaluate__samples': 2,
  'evaluate__every': 2,
  'rewards__timeout': 60.0,
  'logging__tensorboard': 'false',
  'logging__entropy_change_every': 0,
}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """An empty working directory, beside `site` with the installed wheel.

  A pure wheel is installed by unpacking it. Dependencies are those of the
  tests' environment.
  """
  base = tmp_path_factory.mktemp('wheel')
  subprocess.run(
    [sys.executable, '-m', 'hatchling', 'build', '-t', 'wheel', '-d', base],
    cwd=ROOT,
    check=True,
    capture_output=True,
  )
  (wheel,) = base.glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(base / 'site')
  directory = base / 'empty'
  directory.mkdir()
  return directory


@pytest.fixture
def python(directory):
  """Runs Python with the wheel instead of the checkout; returns its output."""
  site = os.fspath(directory.with_name('site'))

  def run(*arguments):
    completed = subprocess.run(
      [sys.executable, *arguments],
      cwd=directory,
      env=process.ENVIRONMENT | {'PYTHONPATH': site},
      check=False,
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout

  return run


def test_packages_come_from_the_wheel(python, directory):
  code = (
    'import covrl, covrl.recipes.countdown, launch\n'
    'for module in covrl, covrl.recipes.countdown, launch:\n'
    '  print(module.__file__)'
  )
  files = [pathlib.Path(line) for line in python('-c', code).splitlines()]
  site = directory.with_name('site')
  assert files == [
    site / 'covrl' / '__init__.py',
    site / 'covrl' / 'recipes' / 'countdown.py',
    site / 'launch' / '__init__.py',
  ]


def test_all_recipes_are_listed(python):
  printed = python('-m', 'covrl.cli', 'recipes').splitlines()
  assert [line.split()[0] for line in printed] == [s for s, _ in recipes()]


def test_the_launcher_prints_its_commands(python):
  command = ['launch', 'local', '--name=a', '--processes=2', '--dry-run', '--']
  printed = python('-m', *command, '--config=countdown:kl_cov', '--workdir=a')
  assert 'covrl.cli train --config=countdown:kl_cov' in printed


def test_trains_a_shipped_recipe(python, directory):
  python(
    *('-m', 'covrl.cli', 'train', '--config=countdown:kl_cov', '--workdir=run'),
    *(
      f'--config.{name.replace("__", ".")}={value}'
      for name, value in SIZES.items()
    ),
  )
  workdir = directory / 'run'
  updates = process.metric_lines(workdir, 'train')
  assert [line['iteration'] for line in updates] == [0, 1]
  assert len(process.metric_lines(workdir, 'eval')) == 2
  assert (workdir / 'recipe' / 'countdown.py').is_file()
  assert (workdir / 'report.html').is_file()
