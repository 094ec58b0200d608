# SPDX-License-Identifier: Apache-2.0
"""Fixtures that run refused commands, and variants of the toy recipe."""

import pathlib
import textwrap

import pytest

from covrl.cli import main

TESTS = pathlib.Path(__file__).parents[1]
RECIPE = TESTS / 'train' / 'recipes' / 'toy_kl_cov.py'


@pytest.fixture(autouse=True)
def compilation_cache(monkeypatch):
  """Makes commands share the compilation cache of the tests."""
  cache = TESTS.parent / '.jax_cache'
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(cache))


@pytest.fixture
def refuse(capsys):
  """Runs a command that is refused; returns its one-sentence error."""

  def run(*arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
      main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.endswith('\n')
    *progress, error = captured.err.splitlines()
    assert error.startswith('covrl: ')
    # Anything before it is the progress of a run's set-up.
    stages = {'setting up', 'loading the policy', 'sampling', 'evaluating'}
    assert {
      line
      for line in progress
      if not line.startswith('covrl: executed the recipe in ')
    } <= stages
    assert captured.out == ''
    return error.removeprefix('covrl: ')

  return run


@pytest.fixture
def refuse_training(refuse, tmp_path):
  """Runs `covrl train`, which is refused and leaves its directory as it was."""
  workdir = tmp_path / 'run'

  def run(*overrides, recipe=RECIPE):
    before = contents(workdir)
    error = refuse(
      'train', f'--config={recipe}', f'--workdir={workdir}', *overrides
    )
    assert contents(workdir) == before
    return error

  return run


@pytest.fixture
def changed_recipe(tmp_path):
  """Writes the toy recipe with some functions replaced."""

  def write(text):
    file = tmp_path / 'changed.py'
    file.write_text(f'{RECIPE.read_text()}\n\n{textwrap.dedent(text)}')
    return file

  return write


def contents(directory):
  """Returns the content of every file below a directory, but its lock."""
  return {
    file.relative_to(directory): file.read_bytes()
    for file in directory.rglob('*')
    if file.is_file() and file.name != '.lock'
  }
