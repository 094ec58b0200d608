# SPDX-License-Identifier: Apache-2.0
"""Files of a checkpoint: arrays that Orbax writes, and a manifest.

The manifest is written last. It has the size and digest of every file, the JSON
metadata and a digest of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from covrl import storage
from covrl.parallel import distributed
from covrl.storage.orbax_errors import without_repeated_errors

MANIFEST = 'manifest.json'
_ARRAYS = 'arrays'
# Attempts at reading, and seconds between two: a network file system may fail
# once.
_ATTEMPTS, _PAUSE = 3, 1.0
# Seconds between two looks at a discarded checkpoint, looks that must find nothing,
# and looks at most.
_LOOK_SECONDS, _EMPTY_LOOKS, _MAX_LOOKS = 0.2, 5, 50

# Implementations of random keys.
_KEY_IMPLS = ('threefry2x32', 'rbg', 'unsafe_rbg')

T = TypeVar('T')

ShapeCheck = Callable[[Mapping[str, Any], Mapping[str, Any]], None]


class Manifest(TypedDict):
  """Content of a manifest, without its own digest.

  Attributes:
    position: number of optimiser updates before the checkpoint.
    metadata: JSON data.
    files: size and digest of every file, by its path below the directory.
  """

  position: int
  metadata: dict[str, Any]
  files: dict[str, str]


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves by their dotted path, in the order of the tree.

  Raises:
    ValueError: two leaves have the same path.

  >>> leaves_by_path({'b': {'c': 1}, 'a': 2})
  {'a': 2, 'b.c': 1}
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  named = {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in leaves
  }
  if len(named) < len(leaves):
    raise ValueError(
      'arrays of a checkpoint must have different dotted paths, got'
      f' {len(leaves) - len(named)} of a path that another has; keys with dots'
      ' can be renamed'
    )
  return named


def _stored_leaves(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves by their dotted path, random keys as the integers they are.

  Orbax does not restore typed keys, which states of chains such as
  `optax.add_noise` have.
  """

  def stored(leaf: Any) -> Any:
    if not _is_key(leaf):
      return leaf
    if isinstance(leaf, jax.Array):
      return jax.random.key_data(leaf)
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)

  return {name: stored(leaf) for name, leaf in leaves_by_path(tree).items()}


def _unflatten(like: PyTree, stored: Sequence[Any]) -> PyTree:
  """Returns a tree like `like` of stored leaves, see `_stored_leaves`."""

  def leaf_of(like: Any, stored: Any) -> Any:
    if not _is_key(like):
      return stored
    (impl,) = (i for i in _KEY_IMPLS if like.dtype == _key_dtype(i))
    return jax.random.wrap_key_data(stored, impl=impl)

  leaves, structure = jax.tree.flatten(like)
  return jax.tree.unflatten(structure, map(leaf_of, leaves, stored))


def _is_key(leaf: Any) -> bool:
  """Returns whether a leaf is a typed random key."""
  dtype = getattr(leaf, 'dtype', None)
  return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _key_dtype(impl: str) -> Any:
  """Returns the dtype of typed random keys of an implementation."""
  return jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype


def write_arrays(path: epath.Path, arrays: PyTree) -> None:
  """Writes the arrays of a checkpoint, each process its own shards."""
  try:
    with (
      without_repeated_errors(),
      ocp.StandardCheckpointer(**_multiprocess_options()) as checkpointer,
    ):
      checkpointer.save(path / _ARRAYS, _stored_leaves(arrays))
  except Exception as error:
    if distributed.is_peer_loss(error):
      raise
    with storage.writing(path / _ARRAYS):
      raise


def sync(path: epath.Path) -> None:
  """Makes the files of a checkpoint outlast a power cut.

  Orbax forces arrays to the disk, but not the files that describe them. Each
  process has to call it, since another host's disk cache may have its files.
  """
  if not storage.is_bucket(path):
    with storage.writing(path):
      storage.sync_tree(path)


def discard(path: epath.Path) -> None:
  """Removes a checkpoint whose write has failed, with what is still being written.

  Orbax raises the first error of its threads and does not wait for the others,
  which may create files after a removal.

  Raises:
    StorageError: it cannot be removed.
  """
  empty_looks = 0
  for _ in range(_MAX_LOOKS):
    if storage.is_directory(path):
      storage.remove(path)
      empty_looks = 0
    elif empty_looks == _EMPTY_LOOKS:
      return
    empty_looks += 1
    time.sleep(_LOOK_SECONDS)


def read_arrays(path: epath.Path, like: PyTree, check: ShapeCheck) -> PyTree:
  """Reads all arrays of a checkpoint into a tree like `like`.

  Args:
    path: the checkpoint's directory.
    like: arrays or `jax.ShapeDtypeStruct` with the requested shardings.
    check: called with the requested and the saved arrays by path, before reading.
  """
  requested = _stored_leaves(like)

  def read() -> Mapping[str, Any]:
    with ocp.StandardCheckpointer(**_multiprocess_options()) as checkpointer:
      check(requested, _saved_leaves(checkpointer, path))
      return checkpointer.restore(path / _ARRAYS, requested)

  restored = _retry_array_read(path, read)
  return _unflatten(like, [restored[name] for name in requested])


def read_subtree(
  path: epath.Path, prefix: str, like: PyTree, check: ShapeCheck
) -> PyTree:
  """Reads the arrays of one subtree; see `read_arrays`.

  Args:
    path: the checkpoint's directory.
    prefix: dotted path of the subtree.
    like: shapes and shardings of the subtree.
    check: see `read_arrays`.
  """
  requested = _stored_leaves(like)

  def read() -> Mapping[str, Any]:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      subtree = {
        name.removeprefix(f'{prefix}.'): leaf
        for name, leaf in _saved_leaves(checkpointer, path).items()
        if name.startswith(f'{prefix}.')
      }
      check(requested, subtree)
      return checkpointer.restore(
        path / _ARRAYS,
        args=ocp.args.PyTreeRestore(
          item={f'{prefix}.{name}': leaf for name, leaf in requested.items()},
          restore_args={
            f'{prefix}.{name}': ocp.ArrayRestoreArgs(
              sharding=leaf.sharding, dtype=leaf.dtype
            )
            for name, leaf in requested.items()
          },
          partial_restore=True,
        ),
      )

  restored = _retry_array_read(path, read)
  return _unflatten(like, [restored[f'{prefix}.{name}'] for name in requested])


def _saved_leaves(checkpointer: Any, path: epath.Path) -> dict[str, Any]:
  """Returns the metadata of the saved arrays by path.

  Raises:
    OSError: Orbax has not found any, as on a failing device.
  """
  saved = checkpointer.metadata(path / _ARRAYS).item_metadata
  if saved is None:
    raise _unreadable(path)
  return dict(saved)


def _unreadable(path: epath.Path) -> OSError:
  return OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(path / _ARRAYS))


def _retry_array_read(path: epath.Path, read: Callable[[], T]) -> T:
  """Calls a function that reads arrays, with retries if the file system fails.

  Several processes read together, so that none of them can repeat it alone.
  """

  def attempt() -> T:
    try:
      return read()
    except FileNotFoundError as error:
      # Orbax takes a directory that the system cannot examine for an absent one.
      if storage.is_directory(path / _ARRAYS):
        raise _unreadable(path) from error
      raise
    except Exception as error:
      if distributed.is_peer_loss(error):
        raise
      with storage.reading(path / _ARRAYS):
        raise

  return attempt() if jax.process_count() > 1 else _retry_read(attempt)


def write_manifest(
  path: epath.Path, metadata: Mapping[str, Any], files: Mapping[str, str]
) -> None:
  """Writes a checkpoint's manifest atomically."""
  content = {'notes': metadata, 'files': files, 'position': int(path.name)}
  digest = _digest(json.dumps(content).encode())
  storage.write_atomically(
    path / MANIFEST, json.dumps(content | {'digest': digest}, indent=1)
  )


def read_manifest(path: epath.Path) -> Manifest | str:
  """Reads a checkpoint's manifest; returns a description if it is damaged."""
  try:
    manifest = json.loads(
      _retry_read(lambda: storage.read_bytes(path / MANIFEST))
    )
    content = {name: manifest[name] for name in ('notes', 'files')}
    digest = manifest['digest']
  except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
    return f'{MANIFEST} cannot be read'
  except OSError:
    if storage.is_bucket(path):
      raise
    return f'{MANIFEST} cannot be read'
  if 'position' in manifest:
    content['position'] = manifest['position']
  if digest != _digest(json.dumps(content).encode()):
    return f'{MANIFEST} is not what was written'
  if not all(isinstance(content[name], dict) for name in ('notes', 'files')):
    return f'{MANIFEST} has other types than were written'
  position = content.pop('position', int(path.name))
  if position != int(path.name):
    return f'{MANIFEST} is that of {position:08d}'
  return Manifest(
    position=position, metadata=content['notes'], files=content['files']
  )


def differences(
  path: epath.Path, names: Sequence[str], expected: Mapping[str, str]
) -> Iterator[str]:
  """Describes the files that are not as expected.

  Args:
    path: the directory of the files.
    names: names of the files to compare, below the directory.
    expected: size and digest of each, see `covrl.storage.digest_files`.
  """
  try:
    digests = _retry_read(lambda: storage.digest_files(path, names, expected))
  except OSError as error:
    if storage.is_bucket(path):
      raise
    yield f'{error.filename} cannot be read ({error.strerror})'
    return
  for name in names:
    if name not in digests:
      yield f'{name} is missing'
    elif digests[name] != expected[name]:
      yield f'{name} is not what was written'


def has_all_files(path: epath.Path, expected: Mapping[str, str]) -> bool:
  """Returns whether a checkpoint has its files, of the expected sizes.

  Args:
    path: the checkpoint's directory.
    expected: size and digest of each by name, see `covrl.storage.digest_files`.
  """
  sizes = {name: int(text.partition(':')[0]) for name, text in expected.items()}
  return storage.is_regular_file(path / MANIFEST) and all(
    storage.is_regular_file(path / name)
    and storage.file_size(path / name) == size
    for name, size in sizes.items()
  )


def damaged_files(path: epath.Path, expected: Mapping[str, str]) -> str:
  """Describes the files that are not as expected; empty if all are.

  Args:
    path: the directory of the files.
    expected: size and digest of each by name, see `covrl.storage.digest_files`.
  """
  damaged = [*differences(path, [*expected], expected)]
  if not damaged:
    return ''
  return (
    f'{len(damaged)} of {len(expected)} files are damaged: '
    f'{", ".join(damaged[:3])}{", …" * (len(damaged) > 3)}'
  )


def _retry_read(read: Callable[[], T]) -> T:
  """Calls a function that reads files, with retries if the file system fails."""
  for _ in range(_ATTEMPTS - 1):
    try:
      return read()
    except OSError as error:
      if storage.read_failure_message(error) is None:
        raise
      time.sleep(_PAUSE)
  return read()


def return_freed_memory() -> None:
  """Returns freed memory to the system, where the C library can.

  Each save allocates from many threads of Orbax, whose freed memory glibc keeps
  in as many arenas: about 1 MB more in use per save.
  """
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).malloc_trim(0)


def _multiprocess_options() -> dict[str, Any]:
  """Makes Orbax synchronise processes without their devices, which may be busy."""
  if jax.process_count() == 1:
    return {}
  return {
    'multiprocessing_options': ocp.options.MultiprocessingOptions(
      primary_host=0, active_processes=set(range(jax.process_count()))
    )
  }


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
