# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a recipe, and the directory of a run of it."""

import pytest

from covrl.config import (
  Config,
  Recipe,
)
from covrl.run.directory import RunDirectory


def must_not_be_called(*_):
  raise NotImplementedError


@pytest.fixture(scope='module')
def recipe():
  """A recipe whose functions must not be called."""
  function_names = ('task', 'model', 'advantages', 'loss', 'token_tx', 'tx')
  return Recipe(
    config=Config(),
    warm_start_tx=must_not_be_called,
    name='recipe:recipe',
    sources={'recipe.py': ''},
    **dict.fromkeys(function_names, must_not_be_called),
  )


@pytest.fixture
def directory(tmp_path, recipe):
  """The directory of a run that has been set up."""
  directory = RunDirectory(tmp_path / 'run')
  directory.check(recipe)
  directory.write_recipe(recipe)
  return directory
