# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are written whole or not at all and that detect damage.

Orbax writes the arrays. A manifest, written last and atomically, completes the
checkpoint: it lists the size and digest of every file (Orbax restores a flipped
bit without an error) and holds the JSON metadata, such as the position in the
data. The manifest has a digest of its own.

A run resumes from the newest whole checkpoint. Damaged ones that are newer are
renamed to `NAME.damaged_N`, and kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from covrl import storage
from covrl.parallel import distributed

MANIFEST = 'manifest.json'

# Names of a checkpoint and of a damaged one: ASCII digits, zeros in front.
_NAME = re.compile(r'([0-9]{8,})(\.damaged_[0-9]+)?')

NO_RESTART = (
  'a run that has trained does not start again from the beginning by itself;'
  ' use another --workdir for that'
)
"""End of the error about a run whose checkpoints are all lost."""


class CheckpointError(ValueError):
  """An unusable checkpoint, described in one sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """A complete checkpoint on disk.

  Attributes:
    path: the checkpoint's directory.
    position: number of optimiser updates before it.
    notes: JSON metadata saved with the arrays.
    files: size and digest of every file, by its path below the directory.
    is_verified: whether the files have been compared with `files`.
  """

  path: epath.Path
  position: int
  notes: dict[str, Any]
  files: dict[str, str]
  is_verified: bool = False

  def restore(self, like: PyTree) -> PyTree:
    """Reads the arrays into a tree like `like`.

    Args:
      like: arrays or `jax.ShapeDtypeStruct` with the wanted shardings, which
        may be on another mesh than the saved ones.

    Raises:
      CheckpointError: files are damaged, or names or shapes differ from `like`.
    """
    self._require_verified()
    wanted = leaves_by_path(like)
    with ocp.StandardCheckpointer(**_multiprocess_options()) as checkpointer:
      saved = dict(checkpointer.metadata(self.path / 'arrays').item_metadata)
      self._check_shapes(wanted, saved)
      restored = checkpointer.restore(self.path / 'arrays', wanted)
    leaves = [restored[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

  def restore_subtree(self, prefix: str, like: PyTree) -> PyTree:
    """Reads the arrays of one subtree; see `restore`.

    Args:
      prefix: dotted path of the subtree.
      like: shapes and shardings of the subtree.
    """
    self._require_verified()
    wanted = leaves_by_path(like)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      saved = checkpointer.metadata(self.path / 'arrays').item_metadata
      subtree = {
        name.removeprefix(f'{prefix}.'): leaf
        for name, leaf in dict(saved).items()
        if name.startswith(f'{prefix}.')
      }
      self._check_shapes(wanted, subtree)
      restored = checkpointer.restore(
        self.path / 'arrays',
        args=ocp.args.PyTreeRestore(
          item={f'{prefix}.{name}': leaf for name, leaf in wanted.items()},
          restore_args={
            f'{prefix}.{name}': ocp.ArrayRestoreArgs(
              sharding=leaf.sharding, dtype=leaf.dtype
            )
            for name, leaf in wanted.items()
          },
          partial_restore=True,
        ),
      )
    leaves = [restored[f'{prefix}.{name}'] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

  def damage(self) -> str | None:
    """Compares every file with the manifest; describes the first difference.

    The processes of a run share the work and return the same.
    """
    names = list(self.files)[jax.process_index() :: jax.process_count()]
    return _first_of_processes(_differing_file(self.path, names, self.files))

  def _require_verified(self) -> None:
    if not self.is_verified and (what := self.damage()):
      raise _damage_error(self.path, what)

  def _check_shapes(
    self, wanted: dict[str, Any], saved: dict[str, Any]
  ) -> None:
    def describe(leaf: Any) -> str:
      return 'nothing' if leaf is None else f'{leaf.dtype}{list(leaf.shape)}'

    for name in sorted(wanted.keys() | saved.keys()):
      required, found = describe(wanted.get(name)), describe(saved.get(name))
      if required != found:
        raise CheckpointError(
          f'the checkpoint {self.path} is of another program: {name} must be '
          f'{required}, got {found}'
        )


class CheckpointStore:
  """The checkpoints of a run, one subdirectory each.

  Args:
    directory: the parent of all checkpoints; created when needed.
    keep: number of checkpoints to keep.

  Attributes:
    position: position of the checkpoint that `latest` has returned or `save`
      has written last.
  """

  def __init__(self, directory: epath.PathLike, keep: int) -> None:
    # Orbax requires absolute paths.
    self._directory = storage.absolute(storage.as_path(directory))
    self._keep = keep
    self._saves = 0
    self.position: int | None = None

  def latest(self) -> Checkpoint | None:
    """Returns the newest complete checkpoint, or `None`.

    Raises:
      CheckpointError: the checkpoint's manifest is damaged, or only checkpoints
        that were set aside are left.
    """
    paths = self._complete_paths()
    if not paths:
      self._refuse_lost_checkpoints()
      return None
    checkpoint = _read(paths[-1])
    if isinstance(checkpoint, str):
      raise _damage_error(paths[-1], checkpoint)
    self.position = checkpoint.position
    return checkpoint

  def newest_whole(
    self,
    *,
    strict: bool = False,
    warn: Callable[[str], object] = lambda text: None,
  ) -> Checkpoint | None:
    """Returns the newest whole checkpoint, or `None` if none was completed.

    Every file of it has been read. Damaged checkpoints that are newer are
    renamed, unless all are damaged. All processes of a run call this together.

    Args:
      strict: whether to refuse a damaged checkpoint instead.
      warn: receives a sentence for each damaged checkpoint.

    Raises:
      CheckpointError: all checkpoints are damaged, or the newest one if
        `strict`, or only checkpoints that were set aside are left.
    """
    damaged: list[tuple[epath.Path, str]] = []
    names = [path.name for path in self._complete_paths()]
    if distributed.process_count() > 1:
      names = distributed.gather_objects(names)[0]
    for name in reversed(names):
      path = self._directory / name
      checkpoint = _read(path)
      what = _first_of_processes(
        checkpoint if isinstance(checkpoint, str) else None
      )
      if what is None and isinstance(checkpoint, Checkpoint):
        what = checkpoint.damage()
      if what is None and isinstance(checkpoint, Checkpoint):
        self._set_aside(damaged, warn)
        self.position = checkpoint.position
        return dataclasses.replace(checkpoint, is_verified=True)
      if strict:
        raise _damage_error(path, str(what))
      damaged.append((path, str(what)))
    if damaged:
      listed = '; '.join(f'{path.name}: {what}' for path, what in damaged)
      raise CheckpointError(
        f'{self._directory} has no whole checkpoint ({listed}); {NO_RESTART}'
      )
    self._refuse_lost_checkpoints()
    return None

  def _set_aside(
    self,
    damaged: list[tuple[epath.Path, str]],
    warn: Callable[[str], object],
  ) -> None:
    """Renames damaged checkpoints."""
    if not damaged:
      return
    if distributed.is_first():
      for path, what in damaged:
        copy = storage.numbered_sibling(path, 'damaged')
        storage.move(path, copy)
        warn(
          f'the checkpoint {path} is damaged: {what}; it is kept as'
          f' {copy.name}, and the run resumes from the one before'
        )
    distributed.barrier(f'{damaged[0][0]}/set aside')

  def _refuse_lost_checkpoints(self) -> None:
    """Refuses a store of which only checkpoints that were set aside are left."""
    for path in self._entries():
      match = _NAME.fullmatch(path.name)
      if match and match[2]:
        raise CheckpointError(
          f'{self._directory} has no finished checkpoint left, only {path.name};'
          f' {NO_RESTART}'
        )

  def save(self, position: int, arrays: PyTree, notes: dict[str, Any]) -> None:
    """Writes a checkpoint, then removes the oldest ones beyond `keep`.

    Each process writes the shards of its own devices; process 0 writes the
    manifest.

    Args:
      position: number of updates so far. An existing checkpoint of the same
        position is replaced.
      arrays: device or host arrays.
      notes: JSON metadata.
    """
    path = self._directory / f'{position:08d}'
    self._saves += 1
    barrier_id = f'{path}/{self._saves}'
    with self._discarded_on_failure(path):
      if distributed.is_first():
        with storage.writing(path):
          _remove(path)
          if not storage.is_bucket(path):
            path.mkdir(parents=True)
      distributed.barrier(f'{barrier_id}/begun')
      _write_arrays(path / 'arrays', arrays)
      distributed.barrier(f'{barrier_id}/written')
      if distributed.is_first():
        self._complete(path, notes)
    distributed.barrier(f'{barrier_id}/complete')
    self.position = position
    _return_freed_memory()

  def replace_notes(self, notes: dict[str, Any]) -> None:
    """Replaces the metadata of the checkpoint at `position`, not its arrays.

    The manifest is replaced atomically.

    Args:
      notes: JSON metadata.

    Raises:
      CheckpointError: the checkpoint's manifest is damaged.
    """
    if not distributed.is_first():
      return
    path = self._directory / f'{self.position:08d}'
    checkpoint = _read(path)
    if isinstance(checkpoint, str):
      raise _damage_error(path, checkpoint)
    if checkpoint.notes != json.loads(json.dumps(notes)):
      _write_manifest(path, notes, checkpoint.files)

  @contextlib.contextmanager
  def _discarded_on_failure(self, path: epath.Path) -> Iterator[None]:
    """Removes an incomplete checkpoint, which may fill the disk, on errors."""
    try:
      yield
    except storage.StorageError:
      if distributed.is_first() and not (path / MANIFEST).exists():
        with contextlib.suppress(storage.StorageError):
          storage.remove(path)
      raise

  def _complete(self, path: epath.Path, notes: dict[str, Any]) -> None:
    """Completes a checkpoint; removes the oldest ones and incomplete ones."""
    _write_manifest(path, notes, storage.digests(path))
    complete = self._complete_paths()
    for old in complete[: -self._keep]:
      _remove(old)
    for incomplete in self._named_paths():
      if incomplete not in complete:
        _remove(incomplete)

  def _complete_paths(self) -> list[epath.Path]:
    """Returns the complete checkpoints, in the order of their positions."""
    return [path for path in self._named_paths() if (path / MANIFEST).is_file()]

  def _named_paths(self) -> list[epath.Path]:
    """Returns the checkpoints, complete or not, in the order of positions."""
    matches = map(_NAME.fullmatch, (path.name for path in self._entries()))
    names = [match[0] for match in matches if match and not match[2]]
    return [self._directory / name for name in sorted(names, key=int)]

  def _entries(self) -> list[epath.Path]:
    if not self._directory.is_dir():
      return []
    return sorted(self._directory.iterdir(), key=lambda path: path.name)


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves by their dotted path, in the order of the tree.

  >>> leaves_by_path({'b': {'c': 1}, 'a': 2})
  {'a': 2, 'b.c': 1}
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in leaves
  }


def _multiprocess_options() -> dict[str, Any]:
  """Makes Orbax synchronise processes without their devices, which may be busy."""
  if jax.process_count() == 1:
    return {}
  return {
    'multiprocessing_options': ocp.options.MultiprocessingOptions(
      primary_host=0, active_processes=set(range(jax.process_count()))
    )
  }


def to_host(tree: PyTree) -> PyTree:
  """Converts device arrays to numpy arrays."""
  return jax.tree.map(np.asarray, jax.device_get(tree))


def _remove(directory: epath.Path) -> None:
  """Removes a complete or incomplete checkpoint."""
  if directory.exists():
    # First the manifest, so that an interrupted removal leaves no checkpoint.
    (directory / MANIFEST).unlink(missing_ok=True)
    storage.remove(directory)


def _return_freed_memory() -> None:
  """Returns freed memory to the system, where the C library can.

  Each save allocates from many threads of Orbax, whose freed memory glibc keeps
  in as many arenas: about 1 MB more in use per save.
  """
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).malloc_trim(0)


def _write_manifest(
  path: epath.Path, notes: Mapping[str, Any], files: Mapping[str, str]
) -> None:
  """Writes a checkpoint's manifest atomically."""
  content = {'notes': notes, 'files': files, 'position': int(path.name)}
  digest = _digest(json.dumps(content).encode())
  storage.write_atomically(
    path / MANIFEST, json.dumps(content | {'digest': digest}, indent=1)
  )


def _read(path: epath.Path) -> Checkpoint | str:
  """Reads a checkpoint's manifest; returns what is damaged if it is."""
  try:
    manifest = json.loads((path / MANIFEST).read_bytes())
    content = {name: manifest[name] for name in ('notes', 'files')}
    digest = manifest['digest']
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return f'{MANIFEST} cannot be read'
  except OSError:
    if storage.is_bucket(path):
      raise
    return f'{MANIFEST} cannot be read'
  if 'position' in manifest:
    content['position'] = manifest['position']
  if digest != _digest(json.dumps(content).encode()):
    return f'{MANIFEST} is not what was written'
  position = content.pop('position', int(path.name))
  if position != int(path.name):
    return f'{MANIFEST} is that of {position:08d}'
  return Checkpoint(path=path, position=position, **content)


def _differing_file(
  path: epath.Path, names: Sequence[str], expected: Mapping[str, str]
) -> str | None:
  """Describes the first of some files that is not as expected."""
  try:
    found = storage.digests(path, names)
  except OSError as error:
    if storage.is_bucket(path):
      raise
    return f'{error.filename} cannot be read ({error.strerror})'
  for name in names:
    if name not in found:
      return f'{name} is missing'
    if found[name] != expected[name]:
      return f'{name} is not what was written'
  return None


def _write_arrays(path: epath.Path, arrays: PyTree) -> None:
  """Writes arrays with Orbax, each process its own shards."""
  try:
    with (
      _without_repeated_errors(),
      ocp.StandardCheckpointer(**_multiprocess_options()) as checkpointer,
    ):
      checkpointer.save(path, leaves_by_path(arrays))
  except Exception as error:
    if distributed.is_peer_loss(error):
      raise
    with storage.writing(path):
      raise


@contextlib.contextmanager
def _without_repeated_errors() -> Iterator[None]:
  """Hides the tracebacks that Orbax prints of an error that it also raises.

  Its threads log each failed file, and TensorStore reports writes that end after
  the first error has closed their event loop. They may do so after the context,
  which therefore ends only without an error.
  """
  if os.environ.get('COVRL_TRACEBACK'):
    yield
    return
  logger, hook = logging.getLogger('absl'), sys.unraisablehook

  def is_own(record: logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}' not in record.pathname

  def report(raised: Any) -> None:
    if str(raised.exc_value) != 'Event loop is closed':
      hook(raised)

  logger.addFilter(is_own)
  sys.unraisablehook = report
  yield
  sys.unraisablehook = hook
  logger.removeFilter(is_own)


def _first_of_processes(what: str | None) -> str | None:
  """Returns the first text that any process has, the same on all processes."""
  if distributed.process_count() == 1:
    return what
  return next(filter(None, distributed.gather_objects(what)), None)


def _damage_error(directory: epath.Path, what: str) -> CheckpointError:
  return CheckpointError(
    f'the checkpoint {directory} is damaged: {what}; remove the directory to '
    'use the one before'
  )


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
