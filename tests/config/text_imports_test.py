# SPDX-License-Identifier: Apache-2.0
"""Files of a recipe are imported by their text."""

import os
import pathlib
import py_compile
import shutil

import pytest

from covrl.config import ConfigError, load, restore

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


@pytest.fixture
def recipe_file(tmp_path):
  """A recipe file that imports another file in its directory."""
  shutil.copy(CONFIGS / 'countdown.py', tmp_path / 'shared.py')
  file = tmp_path / 'own.py'
  file.write_text(
    'import shared\n\ndef kl_cov():\n  """Mine."""\n  return shared.kl_cov()\n'
  )
  return file


@pytest.mark.parametrize('name', ['own.py', 'shared.py'])
def test_the_text_of_a_file_is_executed_and_not_cached_bytecode(
  recipe_file, capsys, name
):
  file, times = recipe_file.with_name(name), (10**18, 10**18)
  text = f'print("first")\n{file.read_text()}'
  for changed in ('first', 'other'):
    text = text.replace('first', changed)
    file.write_text(text)
    os.utime(file, ns=times)
    recipe = load(str(recipe_file))
    assert capsys.readouterr().out == f'{text[7:12]}\n'
    assert recipe.sources[name] == text
    # As an import outside of covrl would leave it.
    py_compile.compile(str(file), doraise=True)


@pytest.mark.parametrize('folder', ['../', '../../a/', '{tmp_path}/'])
def test_a_copy_of_a_recipe_is_a_file_of_the_run(recipe_file, tmp_path, folder):
  recipe = load(str(recipe_file))
  copies = tmp_path / 'copies'
  copies.mkdir()
  name = folder.format(tmp_path=tmp_path) + recipe.name
  with pytest.raises(ConfigError, match='must be a file in its directory'):
    restore(copies, {**recipe.as_json(), 'name': name})


def test_a_copy_of_a_recipe_imports_nothing_but_text(recipe_file, tmp_path):
  recipe_file.write_text(f'import shared\n{recipe_file.read_text()}')
  recipe = load(str(recipe_file))
  copies = tmp_path / 'copies'
  for folder in ('__pycache__', 'shared'):
    (copies / folder).mkdir(parents=True)
  (copies / 'own.py').write_text(recipe.sources['own.py'])
  strange = tmp_path / 'strange.py'
  strange.write_text('print("executed")')
  py_compile.compile(str(strange), str(copies / 'shared.pyc'))
  (copies / 'shared' / '__init__.py').write_text('print("executed")')
  with pytest.raises(ConfigError, match="needs the module 'shared'"):
    restore(copies, recipe.as_json())
