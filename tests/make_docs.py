# SPDX-License-Identifier: Apache-2.0
"""Builds the API reference with pdoc; a warning is an error.

The pages of packages and namespaces show what they import from elsewhere.
pdoc evaluates the annotations of an inherited or generated constructor in a
module that may lack their names, so this script evaluates them first.

  python tests/make_docs.py build/docs
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pathlib
import pkgutil
import sys
import types
import typing
import warnings
from collections.abc import Iterator

import pdoc.render

import covrl

# Modules of covrl, as `__module__` of their members or as themselves.
_MODULES_OF_COVRL = ('covrl', "<module 'covrl")

# Modules that only re-export public names.
_NAMESPACES = (
  'covrl.losses',
  'covrl.advantages',
  'covrl.selectors',
  'covrl.controllers',
)


def main(output: pathlib.Path) -> None:
  """Writes the pages to a directory."""
  for class_ in _classes():
    hints = typing.get_type_hints(class_, include_extras=True)
    if issubclass(class_, tuple):
      class_.__new__.__annotations__ = hints
      # Python's own texts: "Alias for field number 0".
      class_.__new__.__doc__ = None
      for name in class_.__annotations__:
        vars(class_)[name].__doc__ = None
    else:
      constructor = inspect.getattr_static(class_, '__init__')
      constructor.__annotations__ = {
        **{name: hints[name] for name in _parameters(class_) if name in hints},
        'return': None,
      }
  packages = (
    info.name
    for info in pkgutil.walk_packages(covrl.__path__, 'covrl.')
    if info.ispkg
  )
  for name in ('covrl', *_NAMESPACES, *packages):
    _show_imported(importlib.import_module(name))
  pdoc.render.configure(docformat='google', show_source=False)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    # Private modules are not part of the interface.
    pdoc.pdoc('covrl', r'!covrl\..*\b_', output_directory=output)


def _show_imported(module: types.ModuleType) -> None:
  """Makes pdoc show the public functions and classes that a module imports."""
  members = {name: getattr(module, name) for name in dir(module)}
  shown = {
    name: member
    for name, member in members.items()
    if not name.startswith('_')
    and str(getattr(member, '__module__', member)).startswith(_MODULES_OF_COVRL)
  }
  vars(module).update(shown, __all__=list(shown))


def _classes() -> Iterator[type]:
  """Yields the NamedTuples and dataclasses of covrl."""
  for info in pkgutil.walk_packages(covrl.__path__, 'covrl.'):
    if info.name.rpartition('.')[2].startswith('_'):
      continue
    module = importlib.import_module(info.name)
    for class_ in vars(module).values():
      if (
        isinstance(class_, type)
        and class_.__module__ == info.name
        and (hasattr(class_, '_fields') or dataclasses.is_dataclass(class_))
      ):
        yield class_


def _parameters(class_: type) -> list[str]:
  """Returns the names of a constructor's parameters."""
  return list(inspect.signature(class_).parameters)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
