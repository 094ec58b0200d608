# SPDX-License-Identifier: Apache-2.0
"""Recipe files: finding, executing and listing recipes."""

import ast
import dataclasses
import difflib
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.config import overrides as overriding
from covrl.config.conversion import from_dict, version_difference
from covrl.config.errors import ConfigError
from covrl.config.recipe import Recipe
from covrl.config.recipe_files import RecipeFiles
from covrl.config.validation import check

_CHECKOUT = pathlib.Path(__file__).parents[2]
_INSTALLED_RECIPES = _CHECKOUT / 'covrl' / 'recipes'

SHIPPED_RECIPES = (
  _INSTALLED_RECIPES
  if (_INSTALLED_RECIPES / 'countdown.py').is_file()
  else _CHECKOUT / 'configs'
)
"""Directory of the recipe files that covrl ships: copies, or a checkout's own."""


def load(spec: str, overrides: Sequence[str] = ()) -> Recipe:
  """Loads a recipe and applies overrides to its configuration.

  Args:
    spec: `PATH.py:FUNCTION`, where the function returns a `Recipe`; `PATH.py`
      if the file has a single one; or a recipe that covrl ships, such as
      `countdown:kl_cov`. The file may import other files in its directory.
    overrides: as on the command line, `--config.train.iterations=300`.

  Raises:
    ConfigError: the recipe or an overridden field does not exist (the message
      names the nearest), a value is invalid, or there is no such score function.
  """
  file, function = locate(spec)
  files = RecipeFiles(file)
  recipe = _call(files, file, function)
  config = overriding.apply(recipe.config, overrides)
  check(config)
  if config.rewards.function:
    files.add_score_function(config.rewards.function)
  return dataclasses.replace(
    recipe,
    config=config,
    sources=files.sources,
    overridden=overriding.names(overrides),
  )


def restore(directory: pathlib.Path, saved: Mapping[str, Any]) -> Recipe:
  """Loads a recipe from the copies of its files in a run directory.

  Args:
    directory: directory of the copies, `Recipe.sources`.
    saved: the recipe's description, `Recipe.as_json`.

  Raises:
    ConfigError: the description was written by another version of covrl whose
      recipes this one cannot execute, or a module or file that the recipe needs
      is missing.
  """
  stem, colon, function = saved['name'].partition(':')
  if not colon:
    raise ConfigError(
      f"a run's recipe must be named FILE:FUNCTION, got {stem!r}, which an older"
      ' version of covrl has written'
    )
  if pathlib.Path(stem).name != stem or stem == '..':
    # A path would lead out of the run directory.
    raise ConfigError(
      f"a run's recipe must be a file in its directory, got {saved['name']!r}"
    )
  file = directory / f'{stem}.py'
  config = from_dict(saved['config'])
  try:
    files = RecipeFiles(file, is_copy=True)
    recipe = _call(files, file, function)
    if config.rewards.function:
      files.add_score_function(config.rewards.function)
  except ModuleNotFoundError as error:
    raise ConfigError(
      f'the recipe of the run needs the module {error.name!r}, which is not'
      ' installed here; only single files beside a recipe are kept with a run'
    ) from error
  except OSError as error:
    reason = ' '.join(str(error).split())
    raise ConfigError(
      f'the recipe of the run cannot be executed ({type(error).__name__}: {reason});'
      ' only Python files beside a recipe are kept with a run'
    ) from error
  except (AttributeError, ImportError, TypeError) as error:
    changes = version_difference(saved['config'])
    if not changes:
      raise
    raise ConfigError(
      f'the recipe of the run cannot be executed by this version of covrl'
      f' ({error}); the run was saved by another one, {changes}'
    ) from error
  return dataclasses.replace(recipe, config=config, sources=files.sources)


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
  """Returns the files of the recipes that covrl ships."""
  files = sorted(SHIPPED_RECIPES.glob('*.py'))
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
      f'--config must name a Python file, got {str(file)!r}, which {reason}'
    )
  return file, function or _single_function(file, name)


def _single_function(file: pathlib.Path, name: str) -> str:
  """Returns the name of a file's recipe function if it has exactly one."""
  functions = list(_functions(file))
  if not functions:
    raise ConfigError(
      'a recipe file must have a function that returns a Recipe, got'
      f' {file} without one'
    )
  if len(functions) > 1:
    specs = ', '.join(f'{name}:{function}' for function in functions)
    raise ConfigError(
      f'--config must name one of the recipes {specs}, got {name!r}'
    )
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
    raise ConfigError(f'{file} must be valid Python, got {error}') from None
  return {
    node.name: (ast.get_docstring(node) or '').partition('\n')[0]
    for node in module.body
    if isinstance(node, ast.FunctionDef)
    and not node.name.startswith('_')
    and len(node.args.args) == len(node.args.defaults)
    and None not in node.args.kw_defaults
    and (node.returns is None or ast.unparse(node.returns).endswith('Recipe'))
  }


def _needs_no_arguments(value: object) -> bool:
  """Returns whether a value is a function that needs no arguments."""
  if not callable(value):
    return False
  try:
    inspect.signature(value).bind()
  except (TypeError, ValueError):
    return False
  return True


def _call(files: RecipeFiles, file: pathlib.Path, function: str) -> Recipe:
  """Calls a function of a recipe file and returns its recipe."""
  if not _needs_no_arguments(getattr(files.module, function, None)):
    known = list(_functions(file))
    close_matches = difflib.get_close_matches(function, known, n=1)
    hint = f'; there are {", ".join(known)}' if known else ''
    hint = f'; did you mean {close_matches[0]!r}?' if close_matches else hint
    raise ConfigError(
      f'--config must name a recipe in {file}, got {function!r}{hint}'
    )
  with files.importable():
    recipe = getattr(files.module, function)()
  if not isinstance(recipe, Recipe):
    raise ConfigError(
      f'{function}() of {file} must return a covrl Recipe, got'
      f' {type(recipe).__name__}'
    )
  return dataclasses.replace(
    recipe,
    task=files.resolve_score_functions(recipe.task),
    name=f'{file.stem}:{function}',
    sources=files.sources,
    directory=files.directory,
  )
