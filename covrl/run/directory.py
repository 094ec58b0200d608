# SPDX-License-Identifier: Apache-2.0
"""The files of a run directory.

config.json      the resolved configuration and the run's identity
recipe/          a copy of the recipe file
task.json        description of the problems and notes on them
notices.jsonl    warnings that concern the results, such as damaged files
metrics.jsonl    one JSON object per line; in a bucket in parts, metrics/
wandb_id.txt     id of the run in Weights & Biases
rollouts/        logged samples
evaluation/      results per problem, of the run's evaluations and of suites
checkpoints/     see `covrl.run.checkpoint`
report.html      see `covrl.report`
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from covrl import storage
from covrl.config import ConfigError, Recipe, from_dict, restore
from covrl.parallel import distributed
from covrl.run import lock, notices
from covrl.run.checkpoint import (
  NO_RESTART,
  CheckpointError,
  CheckpointStore,
)
from covrl.run.checkpoint_files import MANIFEST, damaged_files
from covrl.run.config_difference import describe_edit, difference
from covrl.run.trust import check_files, check_owner
from covrl.run.workdir_checks import (
  WORKDIR,
  check_not_shared,
  check_path,
  identity,
)
from covrl.storage.append_log import read_log

_CONFIG = 'config.json'
_FOLDERS = (
  *('checkpoints', 'warm_start', 'rollouts', 'evaluation', 'recipe', 'tb'),
  'metrics',
)
# Files that a run leaves which has made no progress.
_LEFTOVERS = (notices.FILE_NAME, 'report.html', 'task.json', 'wandb_id.txt')
_FILES = (_CONFIG, 'metrics.jsonl', 'tokenizer.model', *_LEFTOVERS)
_RESULTS = ('rollouts/', 'evaluation/')
RECIPE = 'recipe'
"""Name of the recipe's identity among the inputs recorded in checkpoints."""


class RunDirectory:
  """A run directory, on a disk or in a bucket.

  Attributes:
    path: the directory.
    writes: whether this process writes files; only process 0 does.
    result_digests: digests of the samples and evaluations that the run has
      written, by path below the directory; checkpoints store them.
  """

  def __init__(self, path: epath.PathLike, *, writes: bool = True) -> None:
    self.path = storage.as_path(path)
    self.writes = writes
    self.result_digests: dict[str, str] = {}
    self._notices = notices.Notices(self.path, self._write)
    self._lock: lock.Lock | None = None
    self._recipe_files: dict[str, bytes] = {}
    self._warn: Callable[[str], object] = lambda text: None

  @property
  def metrics(self) -> epath.Path:
    """Path of the metrics file."""
    return self.path / 'metrics.jsonl'

  @property
  def checkpoints(self) -> epath.Path:
    """Path of the checkpoints' directory."""
    return self.path / 'checkpoints'

  def write_json(self, name: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON file below the directory, atomically."""
    if self.writes:
      self._write(name, json.dumps(content))

  def write_jsonl(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON objects, one per line, atomically."""
    if self.writes:
      text = ''.join(f'{json.dumps(line)}\n' for line in lines)
      self._write(name, text)

  def write_bytes(self, name: str, content: bytes) -> None:
    """Writes a file in the directory, atomically."""
    if self.writes:
      self._write(name, content)

  def add_notice(self, text: str) -> None:
    """Records a warning that the report shows, once."""
    if self.writes:
      self._notices.add(text)

  def read_config(self) -> dict[str, Any]:
    """Returns the content of `config.json`; see `Recipe.as_json`.

    Raises:
      ConfigError: the directory has no readable `config.json`.
    """
    file = self.path / _CONFIG
    if not storage.is_regular_file(file):
      found = 'no config.json in it' if self.path.exists() else 'none there'
      raise ConfigError(f'{self.path} must be a run directory, got {found}')
    try:
      saved = json.loads(storage.read_bytes(file).decode())
    except (ValueError, RecursionError):
      raise ConfigError(f'{file} is damaged: it is not valid JSON') from None
    for name, kind in (('name', str), ('config', dict), ('identity', str)):
      if not isinstance(saved, dict) or not isinstance(saved.get(name), kind):
        raise ConfigError(
          f'{file} is damaged: it must be an object with {name!r}'
          f' ({kind.__name__})'
        )
    try:
      from_dict(saved['config'])
    except ConfigError as error:
      raise ConfigError(f'{file} is damaged: {error}') from None
    return saved

  def check(self, recipe: Recipe) -> None:
    """Checks that the directory is empty or holds a run of this recipe.

    A run of another recipe that has nothing to resume from may be replaced. If
    `config.json` is missing, damaged or edited, the newest checkpoint decides.

    Raises:
      ConfigError: the directory holds a run of another configuration (the
        message names the difference) or other files, or a file has the name of
        one of its directories, or something else that of a file, or another run
        uses one of its directories.
    """
    if not self.writes:
      # Process 0 checks before it writes.
      return
    for name in _FOLDERS:
      folder = self.path / name
      if folder.exists() and not storage.is_directory(folder):
        raise ConfigError(f'{folder} must be a directory, got a file')
    for name in _FILES:
      file = self.path / name
      # Reading a pipe would wait for its writer.
      if file.exists() and not storage.is_regular_file(file):
        raise ConfigError(f'{file} must be a file, got something else')
    check_not_shared(self.path, _FOLDERS, self._newest_metadata())
    try:
      self._check_config(recipe)
    except ConfigError:
      if self._recorded_identity() != recipe.identity:
        raise

  def _check_config(self, recipe: Recipe) -> None:
    if storage.is_regular_file(self.path / _CONFIG):
      saved = self.read_config()
      if saved['identity'] != recipe.identity and (
        self.has_checkpoint() or any(self._traces_of_training())
      ):
        raise ConfigError(
          f"{self.path} holds another configuration's run "
          f'({difference(saved, recipe)}); use another --workdir'
        )
    elif any(
      name not in (lock.FILE_NAME, notices.FILE_NAME)
      and not storage.is_temporary(name)
      for name in self._file_names()
    ):
      raise ConfigError(
        '--workdir must be a run directory or empty, got other files in'
        f' {self.path}'
      )

  def _recorded_identity(self) -> str | None:
    """Returns the identity of the recipe recorded in the newest checkpoint."""
    return self._newest_metadata().get('inputs', {}).get(RECIPE)

  def _newest_metadata(self) -> Mapping[str, Any]:
    """Returns the metadata of the newest checkpoint, empty without a readable one."""
    for folder in (self.checkpoints, self.path / 'warm_start'):
      with contextlib.suppress(CheckpointError):
        if saved := CheckpointStore(folder, keep=1).latest():
          return saved.metadata
    return {}

  def refuse_restart(self) -> None:
    """Refuses to start a run from the beginning that has trained before.

    Its first checkpoint precedes the first rollout, so that the directory of a
    run without checkpoints has no traces of training.

    Raises:
      CheckpointError: the directory has such traces; the message names one.
    """
    if not self.writes:
      return
    for trace in self._traces_of_training():
      raise CheckpointError(
        f'{self.path} must have a checkpoint beside {trace}, got none; {NO_RESTART}'
      )

  def _traces_of_training(self) -> Iterator[str]:
    """Yields the traces that a run leaves once it has made its first rollout."""
    for name in ('checkpoints', 'rollouts', 'evaluation', 'tb/train'):
      for entry in storage.entries(self.path / name):
        # The first checkpoint and evaluation may be those of iteration 0.
        number = re.fullmatch(r'(?:iteration_)?([0-9]+)[.a-z]*', entry.name)
        if name == 'tb/train' or (
          number and (int(number[1]) or name == 'rollouts')
        ):
          yield f'{name}/{entry.name}'
    if '"phase": "train"' in (read_log(self.metrics, 'replace') or ''):
      yield f'metrics of training in {self.metrics.name}'

  def has_checkpoint(self) -> bool:
    """Returns whether the run or its warm start has one, even a damaged one."""
    return any(
      storage.is_regular_file(entry / MANIFEST)
      for folder in (self.checkpoints, self.path / 'warm_start')
      for entry in storage.entries(folder)
    )

  def write_recipe(
    self, recipe: Recipe, warn: Callable[[str], object] = lambda text: None
  ) -> None:
    """Writes the recipe to the directory; see `check`.

    Args:
      recipe: the recipe.
      warn: receives a sentence for every file of the recipe that another program
        has changed, now or later; see `check_files`.
    """
    if not self.writes:
      return
    self._warn = warn
    content = json.dumps(recipe.as_json()).encode()
    sources = {
      f'recipe/{name}': text.encode() for name, text in recipe.sources.items()
    }
    try:
      saved = self.read_config()
    except ConfigError:
      saved = None
    if self._recorded_identity() == recipe.identity:
      if change := describe_edit(saved, recipe):
        self._restore(_CONFIG, content, change)
      for name, text in sources.items():
        self._restore_changed(name, text, 'was changed')
    elif saved is not None and saved['identity'] != recipe.identity:
      # The leftovers of a run without progress; metrics are overwritten.
      for name in ('checkpoints', 'warm_start', 'recipe', 'tb'):
        storage.remove(self.path / name)
      for name in _LEFTOVERS:
        with storage.writing(self.path / name):
          (self.path / name).unlink(missing_ok=True)
    # First the file by which a directory is recognised as a run directory.
    self._recipe_files = {_CONFIG: content} | sources
    for name, written in self._recipe_files.items():
      self._write(name, written)

  def check_files(self) -> None:
    """Checks the lock, and restores the files of the recipe.

    One that another program has changed is kept under another name.

    Raises:
      ConfigError: another run has locked the directory.
      StorageError: it was moved, removed or replaced, or a file cannot be
        restored.
    """
    self.check_lock()
    for name, content in self._recipe_files.items():
      self._restore_changed(name, content, 'was changed while the run used it')

  @property
  def records(self) -> dict[str, Any]:
    """The run's files as a checkpoint describes them, for `check_records`."""
    return {
      'results': self.result_digests,
      'notices': self._notices.content,
      WORKDIR: identity(self.path),
    }

  def check_records(
    self, saved: Mapping[str, Any], warn: Callable[[str], object]
  ) -> None:
    """Warns of samples, evaluations and notices that another program has changed.

    Args:
      saved: `records` of the run so far, or metadata of the checkpoint to resume.
      warn: receives a sentence about them.
    """
    if not self.writes:
      return
    if lost := self._notices.restore(saved.get('notices', '')):
      file = self.path / notices.FILE_NAME
      warn(f'{file} has lost {lost} notices; they are written again')
    self.result_digests = dict(saved.get('results', {}))
    if damage := damaged_files(self.path, self.result_digests):
      warn(
        f'of samples and evaluations in {self.path} {damage}; the run does not write'
        ' them again'
      )

  def _content(self, name: str) -> bytes | None:
    """Returns the content of a file, `None` without one."""
    file = self.path / name
    return storage.read_bytes(file) if storage.is_regular_file(file) else None

  def _restore_changed(self, name: str, content: bytes, change: str) -> None:
    if self._content(name) != content:
      self._restore(name, content, change)

  def _restore(self, name: str, content: bytes, change: str) -> None:
    """Writes a file again that another program has changed or removed."""
    file, current = self.path / name, self._content(name)
    if current is None:
      self._warn(f'{file} was removed; it is written again')
    else:
      copy = self.path / name.replace('/', '_')
      copy = storage.numbered_sibling(copy, 'changed')
      storage.write_atomically(copy, current)
      self._warn(
        f'{file} {change}; it is written again, its old content is kept as'
        f' {copy.name}'
      )
    self._write(name, content)

  def recipe(self, *, trust: bool = False) -> Recipe:
    """Loads the run's recipe: executes the copy in the directory.

    Args:
      trust: whether to execute code that another user may have written.

    Raises:
      ConfigError: the directory is not a run directory, or it is another user's
        and not trusted.
    """
    saved = self.read_config()
    check_files(self.path)
    if not trust:
      check_owner(self.path)
    copies = storage.local_copy(self.path / 'recipe')
    return restore(copies, saved)

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Locks the directory against the processes of other runs.

    Raises:
      ConfigError: another run has locked it, or the path is a file, has
        characters of glob patterns or is not Unicode.
    """
    check_path(self.path)
    if not self.writes:
      distributed.barrier('covrl/locked')
      yield
      return
    with lock.acquire(self.path) as self._lock:
      distributed.barrier('covrl/locked')
      try:
        yield
      finally:
        self._lock = None

  def check_lock(self) -> None:
    """Checks that the directory that was locked is still there, and this run's.

    Raises:
      ConfigError: another run has locked it.
      StorageError: it was moved, removed or replaced.
    """
    if self._lock is not None:
      self._lock.check()

  def _write(self, name: str, content: str | bytes) -> None:
    self.check_lock()
    storage.write_atomically(self.path / name, content)
    if name.startswith(_RESULTS):
      folder, _, file = name.rpartition('/')
      digests = storage.digest_files(self.path / folder, [file])
      self.result_digests |= {
        f'{folder}/{file}': text for text in digests.values()
      }

  def _file_names(self) -> list[str]:
    return [entry.name for entry in storage.entries(self.path)]
