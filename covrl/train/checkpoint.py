# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there, and that notice damage.

Orbax writes the arrays; a manifest, written last and atomically, makes the
checkpoint one. It lists every file with its size and digest, because Orbax
restores a flipped bit without a word, and keeps the small things: where the
run stands in its data, its metrics and its unfinished iteration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

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
  """

  path: pathlib.Path
  position: int
  notes: dict[str, Any]

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
    with ocp.StandardCheckpointer() as checkpointer:
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
    manifest = json.loads((self.path / MANIFEST).read_text())
    for name, expected in manifest['files'].items():
      file = self.path / name
      if not file.is_file():
        raise CheckpointError(
          f'the checkpoint {self.path} is damaged: {name} is missing; remove '
          'the directory to resume from the one before'
        )
      if _digest(file) != expected:
        raise CheckpointError(
          f'the checkpoint {self.path} is damaged: {name} is not what was '
          'written; remove the directory to resume from the one before'
        )

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

  def __init__(self, directory: pathlib.Path, keep: int) -> None:
    # Orbax takes absolute paths only.
    self._directory = directory.absolute()
    self._keep = keep

  def latest(self) -> Checkpoint | None:
    """The newest finished checkpoint, or `None`; unfinished ones are ignored.

    Raises:
      CheckpointError: if its manifest cannot be read.
    """
    found = self._finished()
    if not found:
      return None
    try:
      manifest = json.loads((found[-1] / MANIFEST).read_text())
      notes = manifest['notes']
    except (ValueError, KeyError):
      raise CheckpointError(
        f'the checkpoint {found[-1]} is damaged: {MANIFEST} cannot be read; '
        'remove the directory to resume from the one before'
      ) from None
    return Checkpoint(path=found[-1], position=int(found[-1].name), notes=notes)

  def save(self, position: int, arrays: PyTree, notes: dict[str, Any]) -> None:
    """Writes a checkpoint and then forgets the oldest.

    Args:
      position: updates so far; a later checkpoint has a higher one, or
        replaces that of the same position.
      arrays: device or host arrays.
      notes: plain JSON.
    """
    path = self._directory / f'{position:08d}'
    # What an interrupted save left here was never a checkpoint.
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(path / 'arrays', flat_names(arrays))
    files = {
      str(file.relative_to(path)): _digest(file)
      for file in sorted(path.rglob('*'))
      if file.is_file()
    }
    write_atomically(
      path / MANIFEST, json.dumps({'notes': notes, 'files': files}, indent=1)
    )
    for old in self._finished()[: -self._keep]:
      # Without its manifest it is no checkpoint, whenever removal is cut short.
      (old / MANIFEST).unlink()
      shutil.rmtree(old)

  def _finished(self) -> list[pathlib.Path]:
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


def write_atomically(file: pathlib.Path, text: str) -> None:
  """Writes a file that is there whole or not at all."""
  draft = file.with_name(f'.{file.name}.tmp')
  with draft.open('w') as stream:
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())
  draft.replace(file)


def as_host(tree: PyTree) -> PyTree:
  """Arrays as numpy arrays."""
  return jax.tree.map(np.asarray, jax.device_get(tree))


def _digest(file: pathlib.Path) -> str:
  with file.open('rb') as stream:
    return f'{file.stat().st_size}:{hashlib.file_digest(stream, "sha256").hexdigest()}'
