# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there, and that notice damage.

Orbax writes the arrays; a manifest, written last and atomically, makes the
checkpoint one. It lists every file with its size and digest, because Orbax
restores a flipped bit without a word, and keeps the small things: where the
run stands in its data, its metrics and its unfinished iteration. It has a
digest of its own.
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
  """A checkpoint that cannot be used, in one sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """A finished checkpoint on disk.

  Attributes:
    path: its directory.
    position: how many updates, the warm start's among them, came before.
    notes: what was saved beside the arrays, plain JSON.
    files: every file's size and digest, by its path below the directory.
  """

  path: epath.Path
  position: int
  notes: dict[str, Any]
  files: dict[str, str]

  def restore(self, like: PyTree) -> PyTree:
    """Reads the arrays into a tree like `like`.

    Args:
      like: arrays or `jax.ShapeDtypeStruct` with the shardings wanted, which
        may be another mesh's than the one that saved.

    Raises:
      CheckpointError: if files are damaged, or are another program's.
    """
    self._verify()
    wanted = flat_names(like)
    with ocp.StandardCheckpointer(**_together()) as checkpointer:
      saved = dict(checkpointer.metadata(self.path / 'arrays').item_metadata)
      self._check_shapes(wanted, saved)
      restored = checkpointer.restore(self.path / 'arrays', wanted)
    leaves = [restored[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

  def restore_part(self, prefix: str, like: PyTree) -> PyTree:
    """Reads the arrays of one branch of the saved tree; see `restore`.

    Args:
      prefix: dotted path of the branch.
      like: its shapes and shardings.
    """
    self._verify()
    wanted = flat_names(like)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      saved = checkpointer.metadata(self.path / 'arrays').item_metadata
      branch = {
        name.removeprefix(f'{prefix}.'): leaf
        for name, leaf in dict(saved).items()
        if name.startswith(f'{prefix}.')
      }
      self._check_shapes(wanted, branch)
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
    found = storage.digests(self.path)
    for name, expected in self.files.items():
      if name not in found:
        raise _damaged(self.path, f'{name} is missing')
      if found[name] != expected:
        raise _damaged(self.path, f'{name} is not what was written')

  def _check_shapes(
    self, wanted: dict[str, Any], saved: dict[str, Any]
  ) -> None:
    def describe(leaf: Any) -> str:
      return 'nothing' if leaf is None else f'{leaf.dtype}{list(leaf.shape)}'

    for name in sorted(wanted.keys() | saved.keys()):
      ours, theirs = wanted.get(name), saved.get(name)
      if describe(ours) != describe(theirs):
        raise CheckpointError(
          f'the checkpoint {self.path} is of another program: {name} must be '
          f'{describe(ours)}, got {describe(theirs)}'
        )


class CheckpointStore:
  """The checkpoints of a run, in one directory."""

  def __init__(self, directory: epath.PathLike, keep: int) -> None:
    # Orbax takes absolute paths only.
    self._directory = storage.absolute(storage.path_of(directory))
    self._keep = keep
    self._saves = 0

  def latest(self) -> Checkpoint | None:
    """The newest finished checkpoint, or `None`; unfinished ones are ignored.

    Raises:
      CheckpointError: if its manifest is damaged.
    """
    found = self._finished()
    if not found:
      return None
    path = found[-1]
    try:
      manifest = json.loads((path / MANIFEST).read_text())
      content = {name: manifest[name] for name in ('notes', 'files')}
      digest = manifest['digest']
    except (ValueError, KeyError, TypeError):
      raise _damaged(path, f'{MANIFEST} cannot be read') from None
    if digest != _digest(json.dumps(content).encode()):
      raise _damaged(path, f'{MANIFEST} is not what was written')
    return Checkpoint(path=path, position=int(path.name), **content)

  def save(self, position: int, arrays: PyTree, notes: dict[str, Any]) -> None:
    """Writes a checkpoint and then forgets the oldest.

    Of several processes each writes what its devices hold; the first one makes
    it a checkpoint.

    Args:
      position: updates so far; a later checkpoint has a higher one, or
        replaces that of the same position.
      arrays: device or host arrays.
      notes: plain JSON.
    """
    path = self._directory / f'{position:08d}'
    self._saves += 1
    place = f'{path}/{self._saves}'
    if distributed.is_first():
      _remove(path)
      if not storage.is_bucket(path):
        path.mkdir(parents=True)
    distributed.meet(f'{place}/begun')
    with ocp.StandardCheckpointer(**_together()) as checkpointer:
      checkpointer.save(path / 'arrays', flat_names(arrays))
    distributed.meet(f'{place}/written')
    if distributed.is_first():
      self._complete(path, notes)
    distributed.meet(f'{place}/complete')

  def _complete(self, path: epath.Path, notes: dict[str, Any]) -> None:
    """Makes what has been written a checkpoint, and forgets the oldest."""
    content = {'notes': notes, 'files': storage.digests(path)}
    digest = _digest(json.dumps(content).encode())
    storage.write_atomically(
      path / MANIFEST, json.dumps(content | {'digest': digest}, indent=1)
    )
    for old in self._finished()[: -self._keep]:
      _remove(old)

  def _finished(self) -> list[epath.Path]:
    if not self._directory.is_dir():
      return []
    return sorted(
      path
      for path in self._directory.iterdir()
      if path.name.isdigit() and (path / MANIFEST).is_file()
    )


def flat_names(tree: PyTree) -> dict[str, Any]:
  """Leaves by their dotted path, in the order of the tree.

  >>> flat_names({'b': {'c': 1}, 'a': 2})
  {'a': 2, 'b.c': 1}
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in leaves
  }


def _together() -> dict[str, Any]:
  """Has Orbax's processes meet without their devices, which may be busy."""
  if jax.process_count() == 1:
    return {}
  return {
    'multiprocessing_options': ocp.options.MultiprocessingOptions(
      primary_host=0, active_processes=set(range(jax.process_count()))
    )
  }


def as_host(tree: PyTree) -> PyTree:
  """Arrays as numpy arrays."""
  return jax.tree.map(np.asarray, jax.device_get(tree))


def _remove(directory: epath.Path) -> None:
  """Removes a checkpoint, or what an interrupted save left of one."""
  if directory.exists():
    # Without its manifest it is no checkpoint, whenever removal is cut short.
    (directory / MANIFEST).unlink(missing_ok=True)
    storage.remove(directory)


def _damaged(directory: epath.Path, what: str) -> CheckpointError:
  return CheckpointError(
    f'the checkpoint {directory} is damaged: {what}; remove the directory to '
    'resume from the one before'
  )


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
