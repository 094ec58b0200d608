# SPDX-License-Identifier: Apache-2.0
"""The tensors of a checkpoint as sharded arrays.

Each device is given its own slices as the files have them, read one after the
other, and turns them into what they are here. So the host never holds more
than a slice of one tensor, and copies nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding
from jaxtyping import Array, Int, PyTree, Shaped

from covrl.pretrained.names import Names
from covrl.pretrained.param_mapping import Place, places
from covrl.pretrained.tensors import Tensors

Index = tuple[slice, ...]


def read_arrays(
  like: PyTree,
  names: Names,
  tensors: Tensors,
  *,
  spare: Callable[[str], bool],
  described_by: str,
) -> PyTree:
  """Reads parameters, once it is known that all of them can be read.

  Args:
    like: shapes, dtypes and shardings; without these, for the default device.
    names: where each is in a checkpoint.
    tensors: the checkpoint.
    spare: tells whether a tensor may be left unread.
    described_by: whose tensors they must be, for errors.

  Raises:
    ValueError: a tensor is missing, of another shape, or left over.
  """
  wanted = list(places(like, names))
  for place in wanted:
    for entry in place.entries:
      tensors.check(place.name(entry), place.stored_shape)
  known = {place.name(entry) for place in wanted for entry in place.entries}
  _refuse_others(tensors, known, spare, described_by)
  leaves = [_load(place, tensors) for place in wanted]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _refuse_others(
  tensors: Tensors,
  known: Collection[str],
  spare: Callable[[str], bool],
  described_by: str,
) -> None:
  """Refuses a checkpoint of which something would be left out."""
  for name, file in tensors.files.items():
    if name not in known and not spare(name):
      raise ValueError(f'{file}: holds {name}, which no {described_by} has')


def _load(place: Place, tensors: Tensors) -> Array:
  """One parameter, all its layers and experts."""
  whole = place.like.sharding or SingleDeviceSharding(jax.devices()[0])
  stored: Sharding = whole
  if isinstance(whole, NamedSharding):
    stored = NamedSharding(whole.mesh, place.stored_spec(whole.spec))
  # A device has so many entries of the stack, and there are so many devices
  # with different ones: one entry of each of them is written at a time.
  depth = len(place.stack)
  local = whole.shard_shape(place.like.shape)
  held = local[:depth]
  shards = tuple(
    size // part for size, part in zip(place.stack, held, strict=True)
  )

  def read(entry: tuple[int, ...], index: Index) -> Shaped[np.ndarray, '...']:
    starts = [
      cut.indices(size)[0]
      for cut, size in zip(index[:depth], shards, strict=True)
    ]
    at = [
      start * size + offset
      for start, size, offset in zip(starts, held, entry, strict=True)
    ]
    found = tensors.read(place.name(at), index[depth:])
    return found.reshape(*(1,) * depth, *found.shape)

  put = _putter(
    whole, stored, local[depth:], str(place.like.dtype), place.stored.inputs > 0
  )

  def write(array: Array | None, entry: tuple[int, ...]) -> Array:
    ones = _placed(
      (*shards, *place.stored_shape), stored, functools.partial(read, entry)
    )
    return put(array, ones, np.asarray(entry, np.int32))

  if not depth:
    return write(None, ())
  zeros = functools.partial(jnp.zeros, place.like.shape, place.like.dtype)
  array = jax.jit(zeros, out_shardings=whole)()
  for entry in np.ndindex(held):
    array = write(array, entry)
  return array


def _placed(
  shape: tuple[int, ...],
  sharding: Sharding,
  read: Callable[[Index], Shaped[np.ndarray, '...']],
) -> Array:
  """An array of which the host holds one part at a time, each read once."""
  arrays: list[Array] = []
  for index, devices in _parts(shape, sharding):
    part = read(index)
    arrays += [jax.device_put(part, device) for device in devices]
    jax.block_until_ready(arrays)
  return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _parts(
  shape: tuple[int, ...], sharding: Sharding
) -> Iterator[tuple[Index, list[Any]]]:
  """The different parts of an array, and the devices that have each."""
  parts: dict[tuple[tuple[int, int, int], ...], tuple[Index, list[Any]]] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    index = index or (slice(None),) * len(shape)
    key = tuple(
      cut.indices(size) for cut, size in zip(index, shape, strict=True)
    )
    parts.setdefault(key, (index, []))[1].append(device)
  yield from parts.values()


@functools.cache
def _putter(
  whole: Sharding,
  stored: Sharding,
  shape: tuple[int, ...],
  dtype: str,
  transposed: bool,
) -> Callable[[Array | None, Array, Any], Array]:
  """A program that writes an entry of each device's stack, there and in place.

  Args:
    whole: how the parameter lies.
    stored: how its tensors do.
    shape: of what a device has of one tensor, as it is here.
    dtype: of the parameter.
    transposed: whether the tensors are.
  """

  def put(
    stacked: Shaped[Array, '...'] | None,
    ones: Shaped[Array, '...'],
    entry: Int[Array, ' depth'],
  ) -> Shaped[Array, '...']:
    depth = entry.size
    ours = ones.swapaxes(-1, -2) if transposed else ones
    ours = ours.reshape(*(1,) * depth, *shape).astype(dtype)
    if stacked is None:
      return ours
    start = (*entry, *(0,) * len(shape))
    return jax.lax.dynamic_update_slice(stacked, ours, start)

  if isinstance(whole, NamedSharding) and isinstance(stored, NamedSharding):
    put = jax.shard_map(
      put,
      mesh=whole.mesh,
      in_specs=(whole.spec, stored.spec, P()),
      out_specs=whole.spec,
    )
  return jax.jit(put, donate_argnums=0, out_shardings=whole)
