# SPDX-License-Identifier: Apache-2.0
"""Sandbox script that seeds the global generators of random numbers.

Executed before `_job_runner.py`, and on a remote server before a program; never
imported. It imports no generator: a program that draws does so itself.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
  from typing import Any

# Modules with a global generator and a function `seed`. Recent versions of numpy
# import the second one when it is first used.
_GENERATOR_MODULES = ('random', 'numpy.random.mtrand')


class _SeedingFinder:
  """Finder of modules with a global generator, which it seeds once imported."""

  def __init__(self, seed: int) -> None:
    self._seed = seed

  def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
    """Returns the description by the other finders, with a loader that seeds."""
    if name not in _GENERATOR_MODULES:
      return None
    finders: Any = sys.meta_path
    for finder in finders:
      spec = None if finder is self else finder.find_spec(name, path, target)
      if spec is not None:
        spec.loader = _SeedingLoader(spec.loader, self._seed)
        return spec
    return None


class _SeedingLoader:
  """Loader that seeds a module after another loader has executed it."""

  def __init__(self, loader: Any, seed: int) -> None:
    self._loader = loader
    self._seed = seed

  def create_module(self, spec: Any) -> Any:
    """Returns the other loader's module; `None` for the usual one."""
    return self._loader.create_module(spec)

  def exec_module(self, module: Any) -> None:
    """Executes a module and seeds its generator."""
    module.__spec__.loader = module.__loader__ = self._loader
    self._loader.exec_module(module)
    _seed_module(module, self._seed)


def seed_generators(seed: int) -> None:
  """Seeds generators of imported modules, and of others when they are imported."""
  for name in _GENERATOR_MODULES:
    _seed_module(sys.modules.get(name), seed)
  sys.meta_path.insert(0, _SeedingFinder(seed))


def _seed_module(module: Any, seed: int) -> None:
  """Seeds the global generator of a module, unless it lacks one."""
  if hasattr(module, 'seed'):
    module.seed(seed)
