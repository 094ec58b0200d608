# SPDX-License-Identifier: Apache-2.0
"""Code that changes between two starts of a run is reported."""

import dataclasses
import functools
import importlib.metadata
import sys
from typing import Any

import numpy as np
import pytest
from train import process, toy

from covrl.config import load
from covrl.rewards import Overlong, Reward
from covrl.run.checkpoint import CheckpointStore
from covrl.train.setup import code

# Packages of which every run has a fingerprint.
ALWAYS = {f'code of {name}' for name in ('covrl', *code._LIBRARIES)}
SCORER = 'def score(response, reference):\n  return 1.0\n'


@pytest.fixture
def fingerprints(tmp_path, monkeypatch):
  """Returns a function that fingerprints a recipe with a score function."""
  monkeypatch.syspath_prepend(str(tmp_path))
  recipe = load(str(process.RECIPES / 'toy_kl_cov.py'))
  task = toy.make_task(recipe.config)

  def calculate(*rewards, source=''):
    code._fingerprint.cache_clear()
    code._imports.cache_clear()
    changed = dataclasses.replace(recipe, sources={'recipe.py': source})
    return code.code_fingerprints(
      changed, dataclasses.replace(task, rewards=list(rewards))
    )

  yield calculate
  code._fingerprint.cache_clear()
  code._imports.cache_clear()


def test_an_edited_module_of_a_score_function_has_another_fingerprint(
  fingerprints, tmp_path
):
  file = tmp_path / 'one_scorer.py'
  file.write_text(SCORER)
  rewards = (
    Reward(name='a', score='one_scorer:score'),
    Overlong(max_length=4, buffer=2),
  )
  before = fingerprints(*rewards)
  assert set(before) == ALWAYS | {'code of one_scorer'}
  assert fingerprints(*rewards) == before
  file.write_text(SCORER.replace('1.0', '2.0'))
  after = fingerprints(*rewards)
  assert after['code of covrl'] == before['code of covrl']
  assert after['code of one_scorer'] != before['code of one_scorer']


def test_another_version_of_a_library_that_grades_is_reported(
  fingerprints, monkeypatch, tmp_path
):
  store, warnings = CheckpointStore(tmp_path / 'checkpoints', keep=1), []
  before = fingerprints()
  store.save(0, {'x': np.ones(3)}, {'inputs': before})
  version = importlib.metadata.version
  monkeypatch.setattr(
    importlib.metadata,
    'version',
    lambda name: '99.0' if name == 'math_verify' else version(name),
  )
  code.check_code(fingerprints(), store.latest(), warnings.append)
  installed = version('math_verify')
  assert warnings == [
    f'code of math_verify ({installed}, now 99.0) has changed since the checkpoint'
    ' was written: the resumed run may differ from an uninterrupted one'
  ]


def test_packages_that_a_recipe_imports_have_a_fingerprint(
  fingerprints, tmp_path
):
  """Every file of a package counts; the standard library does not."""
  package = tmp_path / 'own_package'
  package.mkdir()
  (package / '__init__.py').touch()
  (package / 'part.py').write_text(SCORER)
  source = """
import json
import optax
def task():
  from own_package.part import score
  from . import neighbour
  import absent_package, recipe
"""
  before = fingerprints(source=source)
  assert set(before) == ALWAYS | {'code of optax', 'code of own_package'}
  assert before['code of optax'][0].isdigit()
  (package / 'other.py').write_text('a = 1\n')
  assert fingerprints(source=source) != before


def test_a_package_beside_the_recipe_has_a_fingerprint(tmp_path):
  """It is importable while the recipe is loaded only."""
  package = tmp_path / 'package_beside'
  package.mkdir()
  (package / 'numbers.py').write_text('rate = 1.0\n')
  recipe_file = tmp_path / 'own.py'
  recipe_file.write_text(
    'from package_beside import numbers\nfrom covrl.recipes import countdown\n'
    'def grpo():\n  recipe = countdown.grpo()\n'
    '  recipe.config.train.learning_rate = numbers.rate\n  return recipe\n'
  )
  digests = []
  for rate in ('1.0', '2.0'):
    (package / 'numbers.py').write_text(f'rate = {rate}\n')
    code._fingerprint.cache_clear()
    recipe = load(str(recipe_file))
    assert recipe.config.train.learning_rate == float(rate)
    task = toy.make_task(toy.get_config())
    digests.append(
      code.code_fingerprints(recipe, task)['code of package_beside']
    )
  code._fingerprint.cache_clear()
  assert '' != digests[0] != digests[1] != ''
  assert not [name for name in sys.modules if name.startswith('package_beside')]


@pytest.mark.parametrize(
  'statement',
  [
    "importlib.import_module('loaded_' + 'scorer')",
    "runpy.run_path(pathlib.Path(__file__).with_name('loaded_scorer.py'))",
  ],
)
def test_a_file_that_a_recipe_loads_by_its_name_has_a_fingerprint(
  tmp_path, statement
):
  file = tmp_path / 'loaded_scorer.py'
  recipe_file = tmp_path / 'own.py'
  recipe_file.write_text(f"""
import dataclasses, importlib, pathlib, runpy
from covrl.recipes import countdown
from covrl.rewards import Reward
def own(response, reference):
  return 0.0
def grpo():
  recipe = countdown.grpo()
  def task(config):
    loaded = {statement}
    members = loaded if isinstance(loaded, dict) else vars(loaded)
    rewards = [Reward(name=n, score=f) for n, f in (('a', members['score']), ('b', own))]
    return dataclasses.replace(recipe.task(config), rewards=rewards)
  return dataclasses.replace(recipe, task=task)
""")
  digests = []
  for value in ('1.0', '2.00'):
    file.write_text(SCORER.replace('1.0', value))
    recipe = load(str(recipe_file))
    found = code.code_fingerprints(recipe, recipe.task(recipe.config))
    assert set(found) == ALWAYS | {'code of loaded_scorer.py'}
    digests.append(found['code of loaded_scorer.py'])
  assert digests[0] != digests[1]


def test_modules_that_a_score_function_uses_have_a_fingerprint(
  fingerprints, tmp_path
):
  """Also through other modules, which may import one another."""
  (tmp_path / 'outer_scorer.py').write_text('import inner_scorer\n' + SCORER)
  inner = tmp_path / 'inner_scorer.py'
  inner.write_text('import json, optax, outer_scorer, absent_package\n')
  reward = Reward(name='a', score='outer_scorer:score')
  before = fingerprints(reward)
  assert set(before) == ALWAYS | {
    f'code of {n}' for n in ('inner_scorer', 'optax', 'outer_scorer')
  }
  inner.write_text(inner.read_text() + 'a = 1\n')
  after = fingerprints(reward)
  assert {name for name in after if after[name] != before[name]} == {
    'code of inner_scorer'
  }
  inner.write_text('not python')
  assert set(fingerprints(reward)) == set(before) - {'code of optax'}


def test_partial_functions_have_the_fingerprint_of_their_module(fingerprints):
  score: Any = functools.partial(np.mean)
  reward = Reward(name='a', score=score)
  assert set(fingerprints(reward)) == ALWAYS | {'code of numpy'}


def test_arguments_of_score_functions_are_compared(fingerprints, tmp_path):
  def part(backend):
    arguments: dict[str, Any] = {
      'backend': backend,
      'limit': 2.5,
      'functions': [np.sum],
      'api_key': 'secret',
    }
    score: Any = functools.partial(np.mean, **arguments)
    return Reward(name='programs', score=score)

  before, after = (fingerprints(part(name)) for name in ('strong', 'weak'))
  assert before == after | {'backend of the reward programs': 'strong'}
  assert before['limit of the reward programs'] == '2.5'
  assert not any('functions' in name for name in before)
  assert 'secret' not in str(before)
  store, warnings = CheckpointStore(tmp_path / 'checkpoints', keep=1), []
  store.save(0, {'x': np.ones(3)}, {'inputs': before})
  code.check_code(after, store.latest(), warnings.append)
  assert warnings == [
    'backend of the reward programs (strong, now weak) has changed since the'
    ' checkpoint was written: the resumed run may differ from an uninterrupted one'
  ]
  long = before | {'code of covrl': 'd' * 64}
  code.check_code(long, store.latest(), warnings.append)
  assert warnings[1].startswith('code of covrl has changed since')


def test_a_run_that_is_resumed_with_other_code_is_reported(tmp_path):
  store, warnings = CheckpointStore(tmp_path / 'checkpoints', keep=1), []
  before = {'code of covrl': 'a', 'code of mine': 'b', 'problems': 'c'}
  store.save(0, {'x': np.ones(3)}, {'inputs': before})
  saved = store.latest()
  unchanged = {'code of covrl': 'a', 'code of mine': 'b', 'code of new': 'd'}
  for checkpoint in (None, saved):
    code.check_code(unchanged, checkpoint, warnings.append)
  assert warnings == []
  code.check_code(unchanged | {'code of mine': 'e'}, saved, warnings.append)
  assert warnings == [
    'code of mine (b, now e) has changed since the checkpoint was written: the'
    ' resumed run may differ from an uninterrupted one'
  ]
  code.check_code({'code of mine': 'e'}, saved, warnings.append, 'all differs')
  assert warnings[1] == (
    'code of mine (b, now e) has changed since the checkpoint was written: all'
    ' differs'
  )


def test_a_path_that_is_searched_twice_changes_no_fingerprint(
  fingerprints, tmp_path, monkeypatch
):
  package = tmp_path / 'folder_without_init'
  package.mkdir()
  (package / 'part.py').write_text(SCORER)
  source = 'import folder_without_init.part'
  before = fingerprints(source=source)
  assert 'code of folder_without_init' in before
  monkeypatch.setattr('sys.path', [str(tmp_path), *sys.path])
  assert fingerprints(source=source) == before
