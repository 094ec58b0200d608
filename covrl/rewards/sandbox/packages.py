# SPDX-License-Identifier: Apache-2.0
"""Installed packages that programs in a sandbox may import."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence

DEFAULT_PACKAGES = ('numpy',)
"""Packages offered unless others are chosen, where they are installed."""


@dataclasses.dataclass(frozen=True)
class Package:
  """An installed package.

  Attributes:
    name: name under which programs import it.
    file: the module's file, a package's `__init__.py`.
    directory: directory of the package; empty for a single file.
    files: files and directories that the sandbox must contain, side by side.
  """

  name: str
  file: str
  directory: str
  files: tuple[str, ...]


def find_packages(names: Sequence[str] | None) -> tuple[Package, ...]:
  """Finds installed packages of the trainer's environment.

  Args:
    names: top-level names; `None` for those of `DEFAULT_PACKAGES` that are installed.

  Raises:
    ValueError: if a name is not that of an installed package.
  """
  if names is None:
    return tuple(
      p for p in map(_find_package, DEFAULT_PACKAGES) if p is not None
    )
  packages = []
  for name in names:
    package = _find_package(name)
    if package is None:
      raise ValueError(
        'packages for programs must be installed in the environment of the'
        f' trainer, got {name!r}'
      )
    packages.append(package)
  return tuple(packages)


def _find_package(name: str) -> Package | None:
  """Returns an installed package; `None` if it is not installed."""
  if not re.fullmatch(r'[^\W\d]\w*', name):
    return None
  spec = importlib.util.find_spec(name)
  if spec is None or not spec.origin or not os.path.isfile(spec.origin):
    return None
  file = os.path.realpath(spec.origin)
  if not spec.submodule_search_locations:
    return Package(name, file, '', (file,))
  directory = os.path.dirname(file)
  # Wheels keep the libraries that a package links to beside it.
  library_directory = pathlib.Path(directory).parent / f'{name}.libs'
  files = (
    directory,
    *([str(library_directory)] if library_directory.is_dir() else []),
  )
  return Package(name, file, directory, files)
