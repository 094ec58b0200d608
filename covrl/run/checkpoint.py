# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are written whole or not at all and that detect damage.

A manifest (`covrl.run.checkpoint_files`), written last and atomically, completes a
checkpoint. It has all files' digests, as Orbax restores flipped bits without an error.

A run resumes from the newest undamaged checkpoint. Damaged ones that are newer are
renamed to `NAME.damaged_N`, and kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jaxtyping import PyTree

from covrl import storage
from covrl.parallel import agreement, distributed
from covrl.run import checkpoint_files
from covrl.run.checkpoint_files import MANIFEST, has_all_files

# Names of a checkpoint and of a damaged one: ASCII digits with leading zeros.
_NAME = re.compile(r'([0-9]{8,})(\.damaged_[0-9]+)?')

NO_RESTART = (
  'a run that has trained does not start again from the beginning by itself;'
  ' use another --workdir for that'
)
"""End of the errors about a run that has trained and lost all checkpoints."""


class CheckpointError(ValueError):
  """An unusable checkpoint, described in one sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """A complete checkpoint on disk.

  Attributes:
    path: the checkpoint's directory.
    position: number of optimiser updates before it.
    metadata: JSON data saved with the arrays.
    files: size and digest of every file, by its path below the directory.
    is_verified: whether the files have been compared with `files`.
  """

  path: epath.Path
  position: int
  metadata: dict[str, Any]
  files: dict[str, str]
  is_verified: bool = False

  def restore(self, like: PyTree) -> PyTree:
    """Reads the arrays into a tree like `like`.

    Args:
      like: arrays or `jax.ShapeDtypeStruct` with the requested shardings, which
        may be on another mesh than the saved ones.

    Raises:
      CheckpointError: files are damaged, or names or shapes differ from `like`.
    """
    self._require_verified()
    return checkpoint_files.read_arrays(self.path, like, self._check_shapes)

  def restore_subtree(self, prefix: str, like: PyTree) -> PyTree:
    """Reads the arrays of one subtree; see `restore`.

    Args:
      prefix: dotted path of the subtree.
      like: shapes and shardings of the subtree.
    """
    self._require_verified()
    return checkpoint_files.read_subtree(
      self.path, prefix, like, self._check_shapes
    )

  def find_damage(self) -> str | None:
    """Compares every file with the manifest; describes the first difference.

    The processes of a run share the work and return the same.
    """
    names = list(self.files)[jax.process_index() :: jax.process_count()]
    differences = checkpoint_files.differences(self.path, names, self.files)
    return agreement.first_text(next(differences, None))

  def _require_verified(self) -> None:
    if not self.is_verified and (damage := self.find_damage()):
      raise _damage_error(self.path, damage)

  def _check_shapes(
    self, like: Mapping[str, Any], saved: Mapping[str, Any]
  ) -> None:
    def describe(leaf: Any) -> str:
      return 'nothing' if leaf is None else f'{leaf.dtype}{list(leaf.shape)}'

    for name in sorted(like.keys() | saved.keys()):
      required, actual = describe(like.get(name)), describe(saved.get(name))
      if required != actual:
        raise CheckpointError(
          f'the checkpoint {self.path} is of another program: {name} must be '
          f'{required}, got {actual}'
        )


class CheckpointStore:
  """The checkpoints of a run, one subdirectory each.

  Args:
    directory: the parent of all checkpoints; created when needed.
    keep: number of checkpoints to keep.
    before_write: called before each write, by process 0 only; raises an error if
      the run must not write.

  Attributes:
    position: that of the checkpoint `latest` has returned or `save` has written.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    keep: int,
    before_write: Callable[[], object] = lambda: None,
  ) -> None:
    # Orbax requires absolute paths.
    self._directory = storage.absolute(storage.as_path(directory))
    self._keep = keep
    self._before_write = before_write
    self._saves = 0
    self._warn: Callable[[str], object] = lambda text: None
    self._unremoved: set[str] = set()
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
      if not storage.is_regular_file(paths[-1] / MANIFEST):
        # The run has removed it meanwhile, after it had written a newer one.
        return self.latest()
      raise _damage_error(paths[-1], checkpoint)
    self.position = checkpoint.position
    return checkpoint

  def read_latest(
    self, read: Callable[[Checkpoint], PyTree]
  ) -> tuple[Checkpoint, PyTree]:
    """Returns the newest complete checkpoint and what `read` returns for it.

    `read` is called again if the run, which may go on, has removed the checkpoint.

    Raises:
      CheckpointError: there is no checkpoint, or see `latest`.
    """
    while saved := self.latest():
      try:
        return saved, read(saved)
      except Exception:
        if storage.is_regular_file(saved.path / MANIFEST):
          raise
    raise CheckpointError(
      f'{self._directory} must have a finished checkpoint, got none'
    )

  def newest_undamaged(
    self,
    *,
    strict: bool = False,
    warn: Callable[[str], object] = lambda text: None,
  ) -> Checkpoint | None:
    """Returns the newest undamaged checkpoint, or `None` if none was completed.

    Every file of it has been read. Damaged checkpoints that are newer are
    renamed, unless all are damaged. All processes of a run call this together.

    Args:
      strict: whether to refuse a damaged checkpoint instead.
      warn: receives a sentence for each damaged checkpoint, and later for each
        old one that cannot be removed.

    Raises:
      CheckpointError: all checkpoints are damaged, or the newest one if
        `strict`, or only checkpoints that were set aside are left.
    """
    self._warn = warn
    damaged: list[tuple[epath.Path, str]] = []
    names = [path.name for path in self._complete_paths()]
    if distributed.process_count() > 1:
      names = distributed.gather_objects(names)[0]
    for name in reversed(names):
      path = self._directory / name
      checkpoint = _read(path)
      damage = agreement.first_text(
        checkpoint if isinstance(checkpoint, str) else None
      )
      if damage is None and isinstance(checkpoint, Checkpoint):
        damage = checkpoint.find_damage()
      if damage is None and isinstance(checkpoint, Checkpoint):
        self._set_aside(damaged, warn)
        self.position = checkpoint.position
        return dataclasses.replace(checkpoint, is_verified=True)
      if strict:
        raise _damage_error(path, str(damage))
      damaged.append((path, str(damage)))
    if damaged:
      listed = '; '.join(f'{path.name}: {damage}' for path, damage in damaged)
      raise CheckpointError(
        f'{self._directory} must have a whole checkpoint, got damaged ones'
        f' ({listed}); {NO_RESTART}'
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
      for path, damage in damaged:
        renamed = storage.numbered_sibling(path, 'damaged')
        storage.move(path, renamed)
        warn(
          f'the checkpoint {path} is damaged: {damage}; it is kept as'
          f' {renamed.name}, and the run resumes from the one before'
        )
    distributed.barrier(f'{damaged[0][0]}/set aside')

  def _refuse_lost_checkpoints(self) -> None:
    """Refuses a store of which only checkpoints that were set aside are left."""
    for path in storage.entries(self._directory):
      match = _NAME.fullmatch(path.name)
      if match and match[2]:
        raise CheckpointError(
          f'{self._directory} must have a finished checkpoint, got'
          f' {path.name} only; {NO_RESTART}'
        )

  def save(
    self, position: int, arrays: PyTree, metadata: dict[str, Any]
  ) -> None:
    """Writes a checkpoint, then removes the oldest ones beyond `keep`.

    Each process writes the shards of its own devices, process 0 the manifest.

    Args:
      position: number of updates so far; replaces a checkpoint of the same.
      arrays: device or host arrays.
      metadata: JSON data.
    """
    path = self._directory / f'{position:08d}'
    self._saves += 1
    barrier_id = f'{path}/{self._saves}'
    with self._discarded_on_failure(path):
      if distributed.is_first():
        self._before_write()
        self._refuse_later_than(position)
        with storage.writing(path):
          _remove(path)
          if not storage.is_bucket(path):
            storage.make_directories(path)
      distributed.barrier(f'{barrier_id}/begun')
      checkpoint_files.write_arrays(path, arrays)
      distributed.barrier(f'{barrier_id}/written')
      # Before the manifest names them, and an older checkpoint is removed.
      checkpoint_files.sync(path)
      distributed.barrier(f'{barrier_id}/synced')
      if distributed.is_first():
        self._complete(path, metadata)
    distributed.barrier(f'{barrier_id}/complete')
    self.position = position
    checkpoint_files.return_freed_memory()

  def replace_metadata(self, metadata: dict[str, Any]) -> bool:
    """Replaces the metadata of the checkpoint at `position`, not its arrays.

    The manifest is replaced atomically. All processes of a run call this together.

    Args:
      metadata: JSON data.

    Returns:
      Whether the checkpoint has all its files. If not, it is to be saved again.
    """
    path = self._directory / f'{self.position:08d}'
    self._saves += 1
    is_whole = True
    if distributed.is_first():
      self._before_write()
      self._refuse_later_than(int(path.name))
      saved = _read(path)
      if isinstance(saved, str) or not has_all_files(path, saved.files):
        is_whole = False
        self._warn(f'{path} lost files during the run; it is written again')
      elif saved.metadata != json.loads(json.dumps(metadata)):
        checkpoint_files.write_manifest(path, metadata, saved.files)
    return agreement.value_of_process_0(f'{path}/{self._saves}/whole', is_whole)

  def _refuse_later_than(self, position: int) -> None:
    """Refuses to write where another run has, as in a synchronised directory."""
    paths, own = self._complete_paths(), self.position
    newest = int(paths[-1].name) if paths else 0
    if own is not None and newest > own and newest != position:
      raise CheckpointError(
        f'{self._directory} must have no later checkpoint than {own:08d} of this run,'
        f' got {newest:08d}: another run has used it meanwhile'
      )

  @contextlib.contextmanager
  def _discarded_on_failure(self, path: epath.Path) -> Iterator[None]:
    """Removes an incomplete checkpoint, which may fill the disk, on errors."""
    try:
      yield
    except OSError:
      if distributed.is_first() and not storage.is_regular_file(
        path / MANIFEST
      ):
        with contextlib.suppress(OSError):
          checkpoint_files.discard(path)
      raise

  def _complete(self, path: epath.Path, metadata: dict[str, Any]) -> None:
    """Completes a checkpoint; removes the oldest ones and incomplete ones."""
    checkpoint_files.write_manifest(path, metadata, storage.digest_files(path))
    newest = self._complete_paths()[-self._keep :]
    for old in self._named_paths():
      if old not in newest:
        self._remove_or_warn(old)

  def _remove_or_warn(self, path: epath.Path) -> None:
    """Removes a checkpoint; warns once if it cannot, since the newest is whole."""
    try:
      _remove(path)
    except storage.StorageError as error:
      if path.name not in self._unremoved:
        self._unremoved.add(path.name)
        self._warn(f'an old checkpoint cannot be removed: {error}')

  def _complete_paths(self) -> list[epath.Path]:
    """Returns the complete checkpoints, in the order of their positions."""
    return [
      path
      for path in self._named_paths()
      if storage.is_regular_file(path / MANIFEST)
    ]

  def _named_paths(self) -> list[epath.Path]:
    """Returns the checkpoints, complete or not, in the order of positions."""
    matches = map(
      _NAME.fullmatch, (path.name for path in storage.entries(self._directory))
    )
    names = [match[0] for match in matches if match and not match[2]]
    return [self._directory / name for name in sorted(names, key=int)]


def _remove(directory: epath.Path) -> None:
  """Removes a complete or incomplete checkpoint."""
  with storage.writing(directory):
    if storage.is_directory(directory):
      # First the manifest, so that an interrupted removal leaves no checkpoint. A
      # link is removed at once, and its target is left as it is.
      if not storage.is_link(directory):
        (directory / MANIFEST).unlink(missing_ok=True)
      storage.remove(directory)


def _read(path: epath.Path) -> Checkpoint | str:
  """Reads a checkpoint; returns a description if its manifest is damaged."""
  manifest = checkpoint_files.read_manifest(path)
  if isinstance(manifest, str):
    return manifest
  return Checkpoint(path=path, **manifest)


def _damage_error(directory: epath.Path, damage: str) -> CheckpointError:
  return CheckpointError(
    f'the checkpoint {directory} is damaged: {damage}; remove the directory to '
    'use the one before'
  )
