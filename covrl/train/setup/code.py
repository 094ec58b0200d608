# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of the packages whose functions a run calls.

The files of a recipe are part of a run's identity. Packages that they import can be
edited or upgraded between two starts of a run, and arguments of score functions can
depend on the machine, such as the sandbox backend of programs. Both are reported.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from covrl.config import Recipe
from covrl.data.fingerprints import text_fingerprint
from covrl.rewards import Reward
from covrl.run.checkpoint import Checkpoint
from covrl.tasks.task import Task

_COVRL = 'covrl'
# Libraries by which covrl grades answers, makes problems and formats and tokenizes
# prompts, and those that math-verify grades with.
_LIBRARIES = (
  'jinja2',
  'latex2sympy2_extended',
  'math_verify',
  'mpmath',
  'reasoning_gym',
  'sentencepiece',
  'sympy',
  'tokenizers',
)
# Characters of a version or an argument that a warning shows, fewer than a digest has.
_MAX_SHOWN = 40


def code_fingerprints(recipe: Recipe, task: Task) -> dict[str, str]:
  """Returns versions or digests of packages by `code of PACKAGE`, and arguments.

  The packages are covrl and libraries that grade, those that the recipe's files
  import, those of score functions, and what these import unless they are installed.
  Libraries whose versions checkpoints store anyway are included, the standard library
  is not.
  A score function of none of them, and not of the recipe's files, as of a file that
  the recipe loads by its path, has a digest of that file, as `code of FILE.py`. The
  numbers and texts with which `functools.partial` calls a score function are added
  as `ARGUMENT of the reward PART`.

  Args:
    recipe: the recipe.
    task: the task, whose score functions count.
  """
  names = {_COVRL, *map(_module_name, _score_functions(task))}
  for text in recipe.sources.values():
    names |= set(_imported(text))
  recipe_modules = {name.removesuffix('.py') for name in recipe.sources}
  fingerprints, remaining = dict[str, str](), {*_packages(names)}
  while remaining := remaining - recipe_modules - fingerprints.keys():
    name = min(remaining)
    fingerprints[name] = _fingerprint(name, recipe.directory)
    remaining |= _imports(name, recipe.directory)
  fingerprints |= _library_versions()
  for function in _score_functions(task):
    file = _file_of(function)
    if file is not None and not (
      file.parent == recipe.directory and file.name in recipe.sources
    ):
      package = _module_name(function).partition('.')[0]
      if not fingerprints.get(package):
        fingerprints[file.name] = _digest([file])
  return {
    f'code of {n}': fingerprints[n]
    for n in sorted(fingerprints)
    if fingerprints[n]
  } | dict(_score_arguments(task))


def check_code(
  fingerprints: Mapping[str, str],
  saved: Checkpoint | None,
  warn: Callable[[str], object],
  effect: str = 'the resumed run may differ from an uninterrupted one',
) -> None:
  """Warns if a run is resumed or opened with other code than it had.

  Args:
    fingerprints: see `code_fingerprints`.
    saved: the checkpoint to resume from, whose inputs include the fingerprints
      of its run; `None` starts the run.
    warn: receives a sentence about the packages that differ.
    effect: what may differ, as the end of that sentence.
  """
  saved_inputs = {} if saved is None else saved.metadata.get('inputs', {})
  changed = [
    name
    if max(len(fingerprint), len(saved_inputs[name])) > _MAX_SHOWN
    else f'{name} ({saved_inputs[name]}, now {fingerprint})'
    for name, fingerprint in fingerprints.items()
    if saved_inputs.get(name, fingerprint) != fingerprint
  ]
  if changed:
    warn(
      f'{", ".join(changed)} has changed since the checkpoint was written: {effect}'
    )


def _library_versions() -> dict[str, str]:
  """Returns the versions of the libraries that covrl calls, if installed."""
  versions = dict[str, str]()
  for name in _LIBRARIES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions


def _score_functions(task: Task) -> Iterator[Any]:
  """Yields the task's score functions, or their names."""
  for part in task.rewards:
    if isinstance(part, Reward):
      function: Any = part.score
      while isinstance(function, functools.partial):
        function = function.func
      yield function


def _score_arguments(task: Task) -> Iterator[tuple[str, str]]:
  """Yields the named arguments of the task's score functions, and their values."""
  for part in task.rewards:
    if isinstance(part, Reward) and isinstance(part.score, functools.partial):
      for name, value in sorted(part.score.keywords.items()):
        if isinstance(value, str | int | float):
          # Other texts may be secrets, which checkpoints must not store.
          is_secret = isinstance(value, str) and name != 'backend'
          text = text_fingerprint(str(value)) if is_secret else str(value)
          yield f'{name} of the reward {part.name}', text


def _module_name(function: Any) -> str:
  """Returns the name of a score function's module, empty if it has none."""
  if isinstance(function, str):
    return function.partition(':')[0]
  return getattr(function, '__module__', None) or ''


def _file_of(function: Any) -> pathlib.Path | None:
  """Returns the existing file of a score function's code, if there is one."""
  code = getattr(function, '__code__', None)
  if code is None:
    return None
  file = pathlib.Path(code.co_filename).absolute()
  return file if file.is_file() else None


def _imported(text: str) -> Iterator[str]:
  """Yields the absolute names of modules that a source text imports."""
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
      yield node.module


def _packages(names: Iterable[str]) -> set[str]:
  """Returns the packages of modules, without those of the standard library."""
  tops = {name.partition('.')[0] for name in names}
  return tops - sys.stdlib_module_names - {''}


@functools.cache
def _imports(name: str, directory: pathlib.Path | None) -> frozenset[str]:
  """Returns the packages that a package's files import, none if it is installed."""
  files = _files(name, directory)
  if name == _COVRL or _is_installed(files):
    return frozenset()
  imported = set[str]()
  for file in files:
    with contextlib.suppress(OSError, ValueError, SyntaxError, RecursionError):
      imported |= {*_imported(file.read_text(encoding='utf-8'))}
  return frozenset(_packages(imported))


def _files(name: str, directory: pathlib.Path | None) -> list[pathlib.Path]:
  """Returns the files of a package, none if it is absent.

  Args:
    name: the package.
    directory: a directory whose packages come before others; `None` for none.
  """
  if directory is not None and name != _COVRL and (directory / name).is_dir():
    return sorted((directory / name).rglob('*.py'))
  try:
    spec = importlib.util.find_spec(name)
  except (ImportError, ValueError):
    return []
  if spec is None:
    return []
  # A path that `sys.path` names twice occurs twice in a namespace package.
  folders = {
    pathlib.Path(each).resolve(): None
    for each in spec.submodule_search_locations or ()
  }
  files = [file for each in folders for file in sorted(each.rglob('*.py'))]
  if not folders and spec.origin and spec.origin.endswith('.py'):
    files = [pathlib.Path(spec.origin)]
  return files


def _is_installed(files: list[pathlib.Path]) -> bool:
  """Returns whether a package's files are those of an installation."""
  return bool(files and {'site-packages', 'dist-packages'} & {*files[0].parts})


@functools.cache
def _fingerprint(name: str, directory: pathlib.Path | None) -> str:
  """Returns the version or digest of a package; empty for one without files.

  Packages outside of `site-packages` have a digest, since edits do not change their
  version.
  """
  files = _files(name, directory)
  if not files:
    return ''
  if name != _COVRL and _is_installed(files):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      return importlib.metadata.version(name)
  return _digest(files)


def _digest(files: list[pathlib.Path]) -> str:
  """Returns a digest of the names and contents of the files that exist."""
  digest = hashlib.sha256()
  for file in files:
    with contextlib.suppress(FileNotFoundError):
      digest.update(f'{file.name}\0'.encode() + file.read_bytes() + b'\0')
  return digest.hexdigest()
