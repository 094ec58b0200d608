# SPDX-License-Identifier: Apache-2.0
"""A run's directory: its description, its metrics and its samples.

config.json      the resolved configuration and the run's identity
recipe/          the config file it was made with
task.json        what to know about its problems: their number, their judges
metrics.jsonl    one JSON object a line; in a bucket in parts, metrics/
rollouts/        kept samples
evaluation/      results by problem: of the run's own evaluations, and of sets
checkpoints/     see `covrl.run.checkpoint`
report.html      see `covrl.report`
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from covrl import storage
from covrl.config import (
  RESUMABLE,
  ConfigError,
  Recipe,
  flatten,
  from_dict,
  import_recipe,
)
from covrl.parallel import distributed
from covrl.run import lock


class RunDirectory:
  """The files of one run.

  Attributes:
    path: where they are.
    writes: whether this process is the one that writes them.
  """

  def __init__(self, path: epath.PathLike, *, writes: bool = True) -> None:
    self.path = storage.path_of(path)
    self.writes = writes

  @property
  def metrics(self) -> epath.Path:
    """The metrics file."""
    return self.path / 'metrics.jsonl'

  @property
  def checkpoints(self) -> epath.Path:
    """The checkpoints' directory."""
    return self.path / 'checkpoints'

  def write(self, name: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON file below the directory, whole or not at all."""
    if not self.writes:
      return
    storage.write_atomically(self.path / name, json.dumps(content))

  def write_lines(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON objects, one a line, whole or not at all."""
    if not self.writes:
      return
    text = ''.join(f'{json.dumps(line)}\n' for line in lines)
    storage.write_atomically(self.path / name, text)

  def write_bytes(self, name: str, content: bytes) -> None:
    """Writes a file in the directory."""
    if self.writes:
      (self.path / name).write_bytes(content)

  def describe(self) -> dict[str, Any]:
    """What `config.json` says.

    Raises:
      ConfigError: if this is no run directory.
    """
    file = self.path / 'config.json'
    if not file.is_file():
      raise ConfigError(
        f'{self.path} is no run directory: it has no config.json'
      )
    try:
      return json.loads(file.read_text())
    except ValueError:
      raise ConfigError(f'{file} is damaged: it is no JSON') from None

  def check(self, recipe: Recipe) -> None:
    """Refuses a directory that is not this recipe's to use.

    Raises:
      ConfigError: if it holds another configuration's run (says what differs)
        or other files.
    """
    if not self.writes:
      # The first process looks, before it writes.
      return
    if (self.path / 'config.json').exists():
      described = self.describe()
      if described['identity'] != recipe.identity:
        raise ConfigError(
          f"{self.path} holds another configuration's run "
          f'({_difference(described, recipe)}); use another --workdir'
        )
    elif any(name != lock.NAME for name in self._names()):
      raise ConfigError(
        f'--workdir must be a run directory or empty, {self.path} holds '
        'other files'
      )

  def claim(self, recipe: Recipe) -> None:
    """Makes the directory this recipe's; see `check`."""
    if not self.writes:
      return
    # The description comes first: by it a directory is known as a run's.
    self.write('config.json', recipe.as_json())
    for name, text in recipe.sources.items():
      storage.write_atomically(self.path / 'recipe' / name, text)

  def recipe(self) -> Recipe:
    """The recipe that the directory is of, from its own copy.

    Raises:
      ConfigError: if this is no run directory.
    """
    described = self.describe()
    copies = storage.local(self.path / 'recipe')
    module, sources = import_recipe(copies / f'{described["name"]}.py')
    return Recipe(
      name=described['name'],
      config=from_dict(described['config']),
      module=module,
      sources=sources,
    )

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other runs' processes out of the directory.

    Raises:
      ConfigError: if another process is in it, or it is a file.
    """
    if self.path.exists() and not self.path.is_dir():
      raise ConfigError(f'--workdir must be a directory, {self.path} is none')
    if not self.writes:
      distributed.meet('covrl/locked')
      yield
      return
    with lock.held(self.path):
      distributed.meet('covrl/locked')
      yield

  def _names(self) -> list[str]:
    """What is in the directory."""
    if not self.path.is_dir():
      return []
    return [entry.name for entry in self.path.iterdir()]


def _difference(described: dict[str, Any], recipe: Recipe) -> str:
  if described['name'] != recipe.name:
    return f'of {described["name"]}.py, and not of {recipe.name}.py'
  theirs = flatten(from_dict(described['config']))
  ours = flatten(recipe.config)
  for name, value in ours.items():
    if theirs[name] != value and not name.startswith(RESUMABLE):
      return f'{name} is {theirs[name]!r} there and {value!r} here'
  return 'the config file has changed since'
