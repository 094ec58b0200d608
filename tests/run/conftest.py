# SPDX-License-Identifier: Apache-2.0
"""A recipe and a directory of its run."""

import pytest

from covrl.config import (
  Config,
  Recipe,
)
from covrl.run.directory import RunDirectory


def unused(*_):
  raise NotImplementedError


@pytest.fixture(scope='module')
def recipe():
  """A recipe whose functions must not be called."""
  parts = ('task', 'model', 'advantages', 'loss', 'token_tx', 'tx')
  return Recipe(
    config=Config(),
    warm_start_tx=unused,
    name='recipe:recipe',
    sources={'recipe.py': ''},
    **dict.fromkeys(parts, unused),
  )


@pytest.fixture
def directory(tmp_path, recipe):
  """The directory of a run that has been set up."""
  directory = RunDirectory(tmp_path / 'run')
  directory.check(recipe)
  directory.claim(recipe)
  return directory
