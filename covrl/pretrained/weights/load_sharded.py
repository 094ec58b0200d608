# SPDX-License-Identifier: Apache-2.0
"""Loads checkpoint tensors into sharded arrays.

Each device receives its own slices of the files, one after the other, and
converts them. The host never holds more than a slice of one tensor.
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

from covrl.pretrained.families.tensor_names import TensorNames
from covrl.pretrained.weights.param_mapping import MappedParam, map_params
from covrl.pretrained.weights.tensors import Tensors

Index = tuple[slice, ...]


def load_arrays(
  abstract_params: PyTree,
  names: TensorNames,
  tensors: Tensors,
  *,
  redundant: Collection[str] = (),
  owner: str,
) -> PyTree:
  """Loads parameters, after checking names and shapes of all tensors.

  Args:
    abstract_params: shapes, dtypes and shardings of the parameters; those
      without a sharding are loaded to the default device.
    names: the family's tensor names.
    tensors: the checkpoint.
    redundant: names of tensors that the model does not need.
    owner: description of the model, for errors.

  Raises:
    ValueError: a tensor is missing, has another shape, or is unknown, or a file
      has changed while it was read.
  """
  params = list(map_params(abstract_params, names))
  for param in params:
    for index in param.stack_indices:
      tensors.check(param.tensor_name(index), param.tensor_shape)
  known_names = {
    param.tensor_name(index)
    for param in params
    for index in param.stack_indices
  }
  _check_no_unknown_tensors(tensors, known_names | set(redundant), owner)
  leaves = [_load_param(param, tensors) for param in params]
  tensors.check_unchanged()
  return jax.tree.unflatten(jax.tree.structure(abstract_params), leaves)


def _check_no_unknown_tensors(
  tensors: Tensors,
  known_names: Collection[str],
  owner: str,
) -> None:
  """Checks that the checkpoint has no unknown tensors."""
  for name, file in tensors.files.items():
    if name not in known_names:
      raise ValueError(
        f'{file} must hold tensors of a {owner} alone, got {name}'
      )


def _load_param(param: MappedParam, tensors: Tensors) -> Array:
  """Loads one parameter: the tensors of all layers and experts."""
  sharding = param.array.sharding or SingleDeviceSharding(jax.devices()[0])
  tensor_sharding: Sharding = sharding
  if isinstance(sharding, NamedSharding):
    tensor_sharding = NamedSharding(
      sharding.mesh, param.tensor_spec(sharding.spec)
    )
  # Each device holds `local_stack` tensors of the stack, and `num_shards` groups of
  # devices hold different ones. Each step writes one tensor of every group.
  depth = len(param.stack_shape)
  local_shape = sharding.shard_shape(param.array.shape)
  local_stack = local_shape[:depth]
  num_shards = tuple(
    size // local
    for size, local in zip(param.stack_shape, local_stack, strict=True)
  )

  def read(
    local_index: tuple[int, ...], index: Index
  ) -> Shaped[np.ndarray, '...']:
    starts = [
      axis_slice.indices(size)[0]
      for axis_slice, size in zip(index[:depth], num_shards, strict=True)
    ]
    stack_index = [
      start * size + offset
      for start, size, offset in zip(
        starts, local_stack, local_index, strict=True
      )
    ]
    tensor = tensors.read(
      param.tensor_name(stack_index), index[depth:], param.array.dtype
    )
    return tensor.reshape(*(1,) * depth, *tensor.shape)

  write_slice = _slice_writer(
    sharding,
    tensor_sharding,
    local_shape[depth:],
    str(param.array.dtype),
    param.tensor.input_axes > 0,
  )

  def write(array: Array | None, local_index: tuple[int, ...]) -> Array:
    slices = _read_array(
      (*num_shards, *param.tensor_shape),
      tensor_sharding,
      functools.partial(read, local_index),
    )
    return write_slice(array, slices, np.asarray(local_index, np.int32))

  if not depth:
    return write(None, ())
  zeros = functools.partial(jnp.zeros, param.array.shape, param.array.dtype)
  array = jax.jit(zeros, out_shardings=sharding)()
  for local_index in np.ndindex(local_stack):
    array = write(array, local_index)
  return array


def _read_array(
  shape: tuple[int, ...],
  sharding: Sharding,
  read: Callable[[Index], Shaped[np.ndarray, '...']],
) -> Array:
  """Reads an array shard by shard, each once, holding one of them at a time."""
  arrays: list[Array] = []
  for index, devices in _distinct_shards(shape, sharding):
    shard = read(index)
    arrays += [jax.device_put(shard, device) for device in devices]
    jax.block_until_ready(arrays)
  return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _distinct_shards(
  shape: tuple[int, ...], sharding: Sharding
) -> Iterator[tuple[Index, list[Any]]]:
  """Index of each distinct shard, and the devices that hold it."""
  shards: dict[tuple[tuple[int, int, int], ...], tuple[Index, list[Any]]] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    index = index or (slice(None),) * len(shape)
    key = tuple(
      axis_slice.indices(size)
      for axis_slice, size in zip(index, shape, strict=True)
    )
    shards.setdefault(key, (index, []))[1].append(device)
  yield from shards.values()


@functools.cache
def _slice_writer(
  sharding: Sharding,
  tensor_sharding: Sharding,
  slice_shape: tuple[int, ...],
  dtype: str,
  is_transposed: bool,
) -> Callable[[Array | None, Array, Any], Array]:
  """Compiled function that writes one tensor into each device's stack, in place.

  Args:
    sharding: sharding of the parameter.
    tensor_sharding: sharding of its stacked tensors.
    slice_shape: shape of a device's part of one tensor, in the parameter's
      axes.
    dtype: dtype of the parameter.
    is_transposed: whether the tensors are transposed.
  """

  def write(
    stack: Shaped[Array, '...'] | None,
    tensors: Shaped[Array, '...'],
    index: Int[Array, ' depth'],
  ) -> Shaped[Array, '...']:
    depth = index.size
    slices = tensors.swapaxes(-1, -2) if is_transposed else tensors
    slices = slices.reshape(*(1,) * depth, *slice_shape).astype(dtype)
    if stack is None:
      return slices
    start = (*index, *(0,) * len(slice_shape))
    return jax.lax.dynamic_update_slice(stack, slices, start)

  if isinstance(sharding, NamedSharding) and isinstance(
    tensor_sharding, NamedSharding
  ):
    write = jax.shard_map(
      write,
      mesh=sharding.mesh,
      in_specs=(sharding.spec, tensor_sharding.spec, P()),
      out_specs=sharding.spec,
    )
  return jax.jit(write, donate_argnums=0, out_shardings=sharding)
