# SPDX-License-Identifier: Apache-2.0
"""The file that a run is read from, and what the command line changes in it."""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from covrl.config.fields import Config, ConfigError
from covrl.config.flat import flatten, from_dict
from covrl.config.validation import check

FACTORIES = (
  'make_task',
  'make_model',
  'make_advantages',
  'make_loss',
  'make_token_tx',
  'make_tx',
  'make_warm_start_tx',
)

# Fields that may change when a run is resumed: how long and how often, not
# what is computed.
RESUMABLE = (
  'train.iterations',
  'checkpoint.',
  'logging.',
  'evaluate.suite_directory',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """A config file with its overrides applied.

  Attributes:
    name: the file's stem.
    config: the resolved fields.
    module: the file, for its factories.
    sources: text of the file and of the neighbours it imports, by file name.
  """

  name: str
  config: Config
  module: ModuleType
  sources: dict[str, str]

  def __getattr__(self, name: str) -> Any:
    """Returns a factory of the file: `recipe.loss` is its `make_loss`."""
    if f'make_{name}' not in FACTORIES:
      raise AttributeError(name)
    return getattr(self.module, f'make_{name}')

  @property
  def identity(self) -> str:
    """A hash of all that decides what the run computes."""
    fields = {
      name: value
      for name, value in flatten(self.config).items()
      if not name.startswith(RESUMABLE)
    }
    text = json.dumps([self.sources, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def as_json(self) -> dict[str, Any]:
    """The run's description, as its directory keeps it."""
    return {
      'name': self.name,
      'config': dataclasses.asdict(self.config),
      'source': self.sources[f'{self.name}.py'],
      'identity': self.identity,
    }


def load(path: str, overrides: Sequence[str] = ()) -> Recipe:
  """Reads a config file and applies overrides to its fields.

  Args:
    path: of a Python file with `get_config()` and the factories; it may import
      its neighbours in the same directory.
    overrides: as on the command line, `--config.train.iterations=300`.

  Raises:
    ConfigError: for a file that is none, an unknown field (with the nearest
      name), a wrong type or a contradiction.
  """
  file = pathlib.Path(path)
  module, sources = import_recipe(file)
  default = module.get_config()
  if not isinstance(default, Config):
    raise ConfigError(
      f'get_config() must return a covrl Config, {path} returns '
      f'{type(default).__name__}'
    )
  _check_names(default, overrides)
  config = _override(file, overrides)
  check(config)
  return Recipe(name=file.stem, config=config, module=module, sources=sources)


def import_recipe(file: pathlib.Path) -> tuple[ModuleType, dict[str, str]]:
  """Loads a config file and the texts it consists of.

  Raises:
    ConfigError: if it is no Python file, or lacks a factory.
  """
  if not file.is_file():
    raise ConfigError(f'--config must name a Python file, got {str(file)!r}')
  with _neighbours(file.parent):
    spec = importlib.util.spec_from_file_location(f'recipe_{file.stem}', file)
    if spec is None or spec.loader is None:
      raise ConfigError(f'--config must name a Python file, got {str(file)!r}')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = [file, *_imported_from(file.parent).values()]
  for factory in ('get_config', *FACTORIES):
    if not hasattr(module, factory):
      raise ConfigError(
        f'a config file must define {factory}(), {file} does not'
      )
  return module, {each.name: each.read_text() for each in files}


def _override(file: pathlib.Path, overrides: Sequence[str]) -> Config:
  """The file's config, with ml_collections' flags applied to it."""
  from absl import flags
  from ml_collections import config_flags

  values = flags.FlagValues()
  argv = ['covrl', f'--config={file}', *overrides]
  holder = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  try:
    with _neighbours(file.parent):
      values(argv)
  except (flags.Error, TypeError, ValueError, KeyError) as error:
    raise ConfigError(f'cannot apply the overrides: {error}') from None
  # The flag library loads the file under a name of its own; take its values.
  return from_dict(dataclasses.asdict(holder.value))


@contextlib.contextmanager
def _neighbours(directory: pathlib.Path) -> Iterator[None]:
  """Lets a config file import the files beside it, and forgets them after."""
  entry = str(directory.absolute())
  before = set(sys.modules)
  sys.path.insert(0, entry)
  try:
    yield
  finally:
    sys.path.remove(entry)
    for name in _imported_from(directory).keys() - before:
      del sys.modules[name]


def _imported_from(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """The modules that are files of a directory."""
  files = {
    name: pathlib.Path(file)
    for name, module in sys.modules.items()
    if (file := getattr(module, '__file__', None))
  }
  return {
    name: file
    for name, file in files.items()
    if file.parent == directory.absolute()
  }


def _check_names(config: Config, overrides: Sequence[str]) -> None:
  """Refuses unknown fields, naming the nearest one."""
  known = flatten(config)
  for override in overrides:
    match = re.match(r'--?config\.([\w.]+)', override)
    if match and match.group(1) not in known:
      # What a field is called says more than where it is kept.
      leaf = match.group(1).rsplit('.', 1)[-1]
      leaves = {name.rsplit('.', 1)[-1]: name for name in known}
      near = difflib.get_close_matches(match.group(1), known, n=1, cutoff=0.5)
      near = near or [
        leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1)
      ]
      hint = f'; did you mean {near[0]}?' if near else ''
      raise ConfigError(f'there is no config field {match.group(1)!r}{hint}')
