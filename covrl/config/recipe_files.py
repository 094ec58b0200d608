# SPDX-License-Identifier: Apache-2.0
"""Imports the Python files of a recipe and of its score functions."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from covrl.config.errors import ConfigError
from covrl.config.generators import seed_generators
from covrl.config.text_imports import TextImports

SCORE_FUNCTION = re.compile(
  r'(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*)'
)
"""Name of a score function, `module:function`."""

_FORM_HINT = (
  'write module:function for a function (response, reference) -> number in'
  ' module.py beside the recipe'
)


class RecipeFiles:
  """A recipe's file, and the files beside it that it imports.

  They, and packages beside the recipe, are imported anew for each recipe, and are
  importable only in the context `importable`. Python files are imported by their
  text, see `TextImports`.

  Args:
    file: the recipe's file.
    is_copy: whether it is a copy in a run directory, beside which nothing but other
      Python files may be imported.

  Attributes:
    directory: the directory of the recipe's file, an absolute path.
    module: the module of the recipe's file.
    sources: the text of each file by its name, see `Recipe.sources`.

  Raises:
    ConfigError: `file` is not a Python file.
  """

  def __init__(self, file: pathlib.Path, *, is_copy: bool = False) -> None:
    if ':' in file.name:
      raise ConfigError(
        f'the name of a recipe file must not have a colon, got {str(file)!r}'
      )
    self.directory = file.parent.absolute()
    self._imports = TextImports(self.directory, packages=not is_copy)
    self._is_copy = is_copy
    self._modules: dict[str, ModuleType] = {}
    name = f'recipe_{file.stem}'
    self.module, execute = self._module_of(file, name)
    self._modules[name] = self.module
    with self.importable():
      execute(self.module)
    self.sources = {path.name: text for path, text in self._texts(file)}

  @contextlib.contextmanager
  def importable(self) -> Iterator[None]:
    """Makes the files beside the recipe importable within the context."""
    entry = str(self.directory)
    names = {*_imported_from(self.directory), *self._modules}
    shadowed_modules = {
      name: sys.modules.pop(name) for name in names if name in sys.modules
    }
    sys.modules.update(self._modules)
    sys.meta_path.insert(0, self._imports)
    if not self._is_copy:
      sys.path.insert(0, entry)
    try:
      yield
    finally:
      sys.meta_path.remove(self._imports)
      if not self._is_copy:
        sys.path.remove(entry)
      for name in _imported_from(self.directory):
        self._modules[name] = sys.modules.pop(name)
      for name, module in self._modules.items():
        if sys.modules.get(name) is module:
          del sys.modules[name]
      sys.modules.update(shadowed_modules)

  def add_score_function(self, name: str) -> None:
    """Adds the file of a score function to the sources, and checks it.

    The file is beside the recipe or in the working directory.

    Args:
      name: `module:function`; an installed module is not added.

    Raises:
      ConfigError: there is no such function (the message names the form), or it
        imports another file of the name of one beside the recipe.
    """
    match = SCORE_FUNCTION.fullmatch(name)
    if match is None:
      raise ConfigError(
        'the name of a score function must have the form module:function, got'
        f' {name!r}; {_FORM_HINT}'
      )
    self.score_function(name)
    file = self._find(match['module'])
    if file is not None:
      texts = {path.name: text for path, text in self._texts(file)}
      for file_name, text in texts.items():
        self._check_unique(file.parent / file_name, text)
      self.sources = texts | self.sources

  def _check_unique(self, file: pathlib.Path, text: str) -> None:
    """Checks that a file of a score function is the one that is imported.

    Args:
      file: the file.
      text: its text, which is kept with the run.

    Raises:
      ConfigError: another file is imported by this name.
    """
    others = [self.directory / file.name]
    for modules in (self._modules, sys.modules):
      if module := modules.get(file.stem):
        others.append(pathlib.Path(_location(module)))
    for other in others:
      if other.is_file() and self._imports.text(other) != text:
        raise ConfigError(
          'a file that a score function imports must be the only one of its name,'
          f' got {file} and {other}'
        )

  def score_function(self, name: str) -> Callable[..., Any] | str:
    """Returns a score function of a file beside the recipe, by its name.

    The names of functions in installed modules are returned as they are.

    Args:
      name: `module:function`.

    Raises:
      ConfigError: there is no such function; the message names the form.
    """
    match = SCORE_FUNCTION.fullmatch(name)
    if match is None:
      return name
    module_name, function = match['module'], match['function']
    file = self._find(module_name)
    if file is None:
      if not _is_installed(module_name.partition('.')[0]):
        raise ConfigError(
          f'the score function {name!r} must be in a file {module_name}.py beside the'
          f' recipe, in {self.directory}, or in an installed module, got neither;'
          f' {_FORM_HINT}'
        )
      return name
    module = self._import(module_name, file)
    recipe_function = getattr(module, function, None)
    if not callable(recipe_function):
      known = [n for n, member in vars(module).items() if callable(member)]
      close_matches = difflib.get_close_matches(function, known, n=1)
      hint = (
        f'; did you mean {close_matches[0]!r}?'
        if close_matches
        else f'; {_FORM_HINT}'
      )
      raise ConfigError(
        f'{file} must have the score function {function!r}, got none{hint}'
      )
    return recipe_function

  def resolve_score_functions(
    self, make_task: Callable[[Any], Any]
  ) -> Callable[[Any], Any]:
    """Returns a recipe's task function, with names of score functions resolved.

    Args:
      make_task: `Recipe.task`; the files beside the recipe are importable in it.
    """

    @functools.wraps(make_task)
    def make_resolved_task(config: Any) -> Any:
      """Builds the task, and replaces names of score functions by functions."""
      seed_generators(config.seed)
      with self.importable():
        task = make_task(config)
      if not dataclasses.is_dataclass(task) or isinstance(task, type):
        return task
      rewards = [
        dataclasses.replace(part, score=self.score_function(part.score))
        if isinstance(getattr(part, 'score', None), str)
        else part
        for part in getattr(task, 'rewards', ())
      ]
      return dataclasses.replace(task, **{'rewards': rewards})

    return make_resolved_task

  def _find(self, module: str) -> pathlib.Path | None:
    """Returns the file of a module beside the recipe or in the working directory.

    Of a copy of a recipe, files of the working directory do not count.
    """
    directories = [self.directory]
    if not self._is_copy:
      directories.append(pathlib.Path.cwd())
    for directory in directories:
      file = directory / f'{module}.py'
      if file.is_file():
        return file
    return None

  def _import(self, name: str, file: pathlib.Path) -> ModuleType:
    """Imports a file with a score function, once."""
    if name in self._modules:
      return self._modules[name]
    module, execute = self._module_of(file, name)
    # Found by its file, since another module may have its name.
    self._modules[name] = module
    with self.importable(), _path_entry(file.parent):
      try:
        execute(module)
      except Exception as error:
        del self._modules[name]
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ConfigError(
          f'{file}, in which a score function is looked for, cannot be imported:'
          f' {reason}{_line_of(error, file)}; {_FORM_HINT}'
        ) from error
    return module

  def _module_of(
    self, file: pathlib.Path, name: str
  ) -> tuple[ModuleType, Callable[[ModuleType], object]]:
    """Returns an empty module for a file, and the function that executes it."""
    if file.suffix != '.py':
      raise ConfigError(f'--config must name a Python file, got {str(file)!r}')
    loader = self._imports.loader(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    return importlib.util.module_from_spec(spec), loader.exec_module

  def _texts(self, file: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """Yields a file, and those that it imports from its directory, with their texts.

    They include files that functions import when they are called, and those that
    are named as `module:function`.
    """
    sources = {file: None}
    imported = _imported_from(file.parent.absolute(), self._modules)
    sources |= dict.fromkeys(
      file.parent / path.name
      for path in imported.values()
      if path.parent == file.parent.absolute() and path.is_file()
    )
    unread_files = list(sources)
    while unread_files:
      path = unread_files.pop()
      text = self._imports.text(path)
      yield path, text
      for name in _mentioned_modules(text, path):
        neighbour = file.parent / f'{name}.py'
        if neighbour not in sources and neighbour.is_file():
          sources[neighbour] = None
          unread_files.append(neighbour)


def _is_installed(module: str) -> bool:
  """Returns whether a top-level module can be imported by other processes."""
  # The main script of this process is not that of others.
  return module != '__main__' and importlib.util.find_spec(module) is not None


def _line_of(error: Exception, file: pathlib.Path) -> str:
  """Returns the line of a file that raised an error, in parentheses, if any did."""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(file)]
  return f' (line {lines[-1]})' if lines else ''


def _mentioned_modules(text: str, file: pathlib.Path) -> Iterator[str]:
  """Yields the top-level modules that a file imports or names in strings."""
  try:
    tree = ast.parse(text, file.name)
  except (SyntaxError, ValueError) as error:
    raise ConfigError(f'{file} must be valid Python, got {error}') from None
  for node in ast.walk(tree):
    match node:
      case ast.Import():
        yield from (alias.name.partition('.')[0] for alias in node.names)
      case ast.ImportFrom(module=str(module), level=0):
        yield module.partition('.')[0]
      case ast.Constant(value=str(value)):
        if match := SCORE_FUNCTION.fullmatch(value):
          yield match['module']


@contextlib.contextmanager
def _path_entry(directory: pathlib.Path) -> Iterator[None]:
  """Appends a directory to the import path."""
  entry = str(directory)
  sys.path.append(entry)
  try:
    yield
  finally:
    sys.path.remove(entry)


def _imported_from(
  directory: pathlib.Path, modules: Mapping[str, ModuleType] | None = None
) -> dict[str, pathlib.Path]:
  """Returns the files of modules and packages in a directory, but not covrl's.

  Args:
    directory: an absolute path.
    modules: the modules; all that are imported by default.

  Returns:
    Files by the names of modules, those of packages' modules included; a package
    without a file of its own has its folder.
  """
  loaded = list((sys.modules if modules is None else modules).items())
  # Paths are parsed only where they can match: thousands of modules are imported.
  files = {
    name: pathlib.Path(file)
    for name, module in loaded
    if directory.name in (file := _location(module))
  }
  return {
    name: file
    for name, file in files.items()
    if (top := name.partition('.')[0]) != 'covrl'
    and (file.parent == directory or directory / top in file.parents)
  }


def _location(module: ModuleType) -> str:
  """Returns the file of a module, or the first folder of a package without one.

  Empty if the module has neither.
  """
  file = getattr(module, '__file__', None)
  folders = [*getattr(module, '__path__', ())]
  name = file or (folders[0] if folders else None)
  return name if isinstance(name, str) else ''
