# SPDX-License-Identifier: Apache-2.0
"""Recipe files: finding, executing and listing recipes."""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from covrl import recipes as shipped
from covrl.config import overrides as overriding
from covrl.config.errors import ConfigError
from covrl.config.flat import from_dict
from covrl.config.recipe import Recipe
from covrl.config.validation import check


def load(spec: str, overrides: Sequence[str] = ()) -> Recipe:
  """Loads a recipe and applies overrides to its configuration.

  Args:
    spec: `PATH.py:FUNCTION`, where the function returns a `Recipe`; `PATH.py`
      if the file has a single one; or a recipe that covrl ships, such as
      `countdown:kl_cov`. The file may import other files in its directory.
    overrides: as on the command line, `--config.train.iterations=300`.

  Raises:
    ConfigError: the recipe or an overridden field does not exist (the message
      names the nearest), or a value is invalid.
  """
  recipe = _execute(*locate(spec))
  config = overriding.apply(recipe.config, overrides)
  check(config)
  return dataclasses.replace(recipe, config=config)


def restore(directory: pathlib.Path, saved: Mapping[str, Any]) -> Recipe:
  """Loads a recipe from the copies of its files in a run directory.

  Args:
    directory: directory of the copies, `Recipe.sources`.
    saved: the recipe's description, `Recipe.as_json`.

  Raises:
    ConfigError: the description was written by an older version of covrl.
  """
  stem, colon, function = saved['name'].partition(':')
  if not colon:
    raise ConfigError(
      f'the run of recipe {stem!r} was written by an older version of covrl, '
      'whose recipes this version cannot read'
    )
  recipe = _execute(directory / f'{stem}.py', function)
  return dataclasses.replace(recipe, config=from_dict(saved['config']))


def recipes() -> list[tuple[str, str]]:
  """Lists the recipes that covrl ships.

  Returns:
    Specs, such as `countdown:kl_cov`, and their docstrings' first lines.
  """
  return [
    (f'{file.stem}:{name}', summary)
    for file in _shipped_files()
    for name, summary in _functions(file).items()
  ]


def _shipped_files() -> list[pathlib.Path]:
  files = sorted(shipped.DIRECTORY.glob('*.py'))
  return [file for file in files if file.stem != '__init__']


def locate(spec: str) -> tuple[pathlib.Path, str]:
  """Returns the file and function that a spec names; see `load`.

  Raises:
    ConfigError: there is no such file, or it has several functions.
  """
  name, _, function = spec.partition(':')
  if spec.endswith('.py'):
    name, function = spec, ''
  elif '.py:' in spec:
    name, _, function = spec.rpartition(':')
  file = pathlib.Path(name)
  if file.suffix != '.py':
    by_stem = {file.stem: file for file in _shipped_files()}
    if name not in by_stem:
      raise ConfigError(
        '--config must name a Python file and one of its functions, '
        f'PATH.py:FUNCTION, or a recipe that covrl ships, such as '
        f'countdown:kl_cov (see `covrl recipes`), got {spec!r}'
      )
    file = by_stem[name]
  elif not file.is_file():
    reason = 'is a directory' if file.is_dir() else 'does not exist'
    raise ConfigError(
      f'--config must name a Python file, {str(file)!r} {reason}'
    )
  return file, function or _single_function(file, name)


def _single_function(file: pathlib.Path, name: str) -> str:
  """Returns the name of a file's recipe function if it has exactly one."""
  functions = list(_functions(file))
  if not functions:
    raise ConfigError(
      f'a recipe file must have a function that returns a Recipe, {file} has '
      'none'
    )
  if len(functions) > 1:
    specs = ', '.join(f'{name}:{function}' for function in functions)
    raise ConfigError(f'{name} has several recipes, choose one: {specs}')
  return functions[0]


def _functions(file: pathlib.Path) -> dict[str, str]:
  """Returns recipe functions and their docstrings' first lines.

  They are the public functions at the top level of the file that need no
  arguments and, if their return type is annotated, return a `Recipe`. The file
  is not executed.
  """
  try:
    module = ast.parse(file.read_text(encoding='utf-8'), file.name)
  except (SyntaxError, ValueError) as error:
    raise ConfigError(f'{file} is not valid Python: {error}') from None
  return {
    node.name: (ast.get_docstring(node) or '').partition('\n')[0]
    for node in module.body
    if isinstance(node, ast.FunctionDef)
    and not node.name.startswith('_')
    and len(node.args.args) == len(node.args.defaults)
    and None not in node.args.kw_defaults
    and (node.returns is None or ast.unparse(node.returns).endswith('Recipe'))
  }


def _execute(file: pathlib.Path, function: str) -> Recipe:
  """Executes a recipe file once and calls one of its functions."""
  module, sources = _import(file)
  if not hasattr(module, function):
    known = list(_functions(file))
    near = difflib.get_close_matches(function, known, n=1)
    hint = f'; there are {", ".join(known)}' if known else ''
    hint = f'; did you mean {near[0]!r}?' if near else hint
    raise ConfigError(f'there is no recipe {function!r} in {file}{hint}')
  recipe = getattr(module, function)()
  if not isinstance(recipe, Recipe):
    raise ConfigError(
      f'{function}() must return a covrl Recipe, {file} returns '
      f'{type(recipe).__name__}'
    )
  return dataclasses.replace(
    recipe, name=f'{file.stem}:{function}', sources=sources
  )


def _import(file: pathlib.Path) -> tuple[ModuleType, dict[str, str]]:
  """Imports a file; returns the module and the texts it consists of."""
  name = f'recipe_{file.stem}'
  spec = importlib.util.spec_from_file_location(name, file)
  if spec is None or spec.loader is None:
    raise ConfigError(f'--config must name a Python file, got {str(file)!r}')
  module = importlib.util.module_from_spec(spec)
  with _importable(file.parent):
    spec.loader.exec_module(module)
    files = [file, *_imported_from(file.parent).values()]
  return module, {each.name: each.read_text() for each in files}


@contextlib.contextmanager
def _importable(directory: pathlib.Path) -> Iterator[None]:
  """Makes the files of a directory importable, and forgets them afterwards."""
  entry = str(directory.absolute())
  before = {name: sys.modules[name] for name in _imported_from(directory)}
  for name in before:
    del sys.modules[name]
  sys.path.insert(0, entry)
  try:
    yield
  finally:
    sys.path.remove(entry)
    for name in _imported_from(directory):
      del sys.modules[name]
    sys.modules.update(before)


def _imported_from(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the files of imported top-level modules in a directory."""
  files = {
    name: pathlib.Path(file)
    for name, module in list(sys.modules.items())
    if '.' not in name and (file := getattr(module, '__file__', None))
  }
  return {
    name: file
    for name, file in files.items()
    if file.parent == directory.absolute()
  }
