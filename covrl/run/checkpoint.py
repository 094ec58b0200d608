# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are written whole or not at all and that detect damage.

Orbax writes the arrays. A manifest, written last and atomically, completes the
checkpoint: it lists the size and digest of every file (Orbax restores a flipped
bit without an error) and holds the JSON metadata, such as the position in the
data. The manifest has a digest of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from covrl import storage
from covrl.parallel import distributed

MANIFEST = 'manifest.json'


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
  """

  path: epath.Path
  position: int
  notes: dict[str, Any]
  files: dict[str, str]

  def restore(self, like: PyTree) -> PyTree:
    """Reads the arrays into a tree like `like`.

    Args:
      like: arrays or `jax.ShapeDtypeStruct` with the wanted shardings, which
        may be on another mesh than the saved ones.

    Raises:
      CheckpointError: files are damaged, or names or shapes differ from `like`.
    """
    self._verify()
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
    self._verify()
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

  def _verify(self) -> None:
    """Compares every file with the manifest."""
    found = storage.digests(self.path)
    for name, expected in self.files.items():
      if name not in found:
        raise _damage_error(self.path, f'{name} is missing')
      if found[name] != expected:
        raise _damage_error(self.path, f'{name} is not what was written')

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
      CheckpointError: the checkpoint's manifest is damaged.
    """
    complete = self._complete_paths()
    if not complete:
      return None
    path = complete[-1]
    try:
      manifest = json.loads((path / MANIFEST).read_text())
      content = {name: manifest[name] for name in ('notes', 'files')}
      digest = manifest['digest']
    except (ValueError, KeyError, TypeError):
      raise _damage_error(path, f'{MANIFEST} cannot be read') from None
    if digest != _digest(json.dumps(content).encode()):
      raise _damage_error(path, f'{MANIFEST} is not what was written')
    self.position = int(path.name)
    return Checkpoint(path=path, position=self.position, **content)

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
    if distributed.is_first():
      _remove(path)
      if not storage.is_bucket(path):
        path.mkdir(parents=True)
    distributed.barrier(f'{barrier_id}/begun')
    with ocp.StandardCheckpointer(**_multiprocess_options()) as checkpointer:
      checkpointer.save(path / 'arrays', leaves_by_path(arrays))
    distributed.barrier(f'{barrier_id}/written')
    if distributed.is_first():
      self._write_manifest(path, notes)
    distributed.barrier(f'{barrier_id}/complete')
    self.position = position

  def _write_manifest(self, path: epath.Path, notes: dict[str, Any]) -> None:
    """Completes a checkpoint, then removes the oldest ones."""
    content = {'notes': notes, 'files': storage.digests(path)}
    digest = _digest(json.dumps(content).encode())
    storage.write_atomically(
      path / MANIFEST, json.dumps(content | {'digest': digest}, indent=1)
    )
    for old in self._complete_paths()[: -self._keep]:
      _remove(old)

  def _complete_paths(self) -> list[epath.Path]:
    if not self._directory.is_dir():
      return []
    return sorted(
      path
      for path in self._directory.iterdir()
      if path.name.isdigit() and (path / MANIFEST).is_file()
    )


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


def _damage_error(directory: epath.Path, what: str) -> CheckpointError:
  return CheckpointError(
    f'the checkpoint {directory} is damaged: {what}; remove the directory to '
    'resume from the one before'
  )


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
