# SPDX-License-Identifier: Apache-2.0
"""Meshes, and rules that map logical axes to mesh axes.

Parameters and activations name their axes by meaning (`'embed'`, `'heads'`,
`'batch'`); a rules table gives the mesh axes, if any, that shard each of them.
There is one table for training and one for sampling; no other module names
mesh axes.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
from jaxtyping import PyTree

from covrl.array_checks import check_integer
from covrl.config.divisors import divisor_hint, divisors, multiples, nearest
from covrl.parallel import distributed

MESH_AXES = ('data', 'fsdp', 'tensor', 'expert', 'context')

MeshAxes: TypeAlias = str | tuple[str, ...] | None
Rules: TypeAlias = Mapping[str, MeshAxes]

# Rows are sharded over data, fsdp and expert, tokens over context. Parameters
# are sharded over fsdp and context (their model-width axis) and tensor (heads,
# hidden units, vocabulary), those of experts over expert as well. Attention
# needs whole rows: there an all-to-all moves context from tokens to heads. The
# embedding table is sharded by its width: each device looks up its columns for
# all rows of its replica, which moves far less than gathering the table: for this
# the rows are `'looked_up'`. `'attended'` are the tokens of whole rows in attention.
TRAIN_RULES: Rules = {
  'batch': ('data', 'fsdp', 'expert'),
  'sequence': 'context',
  'layers': None,
  'embed': ('fsdp', 'context'),
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'attended': None,
  'looked_up': ('data', 'expert'),
  'attention_heads': ('tensor', 'context'),
  'head_dim': None,
  'mlp': 'tensor',
  'vocab': 'tensor',
  'rank': None,
  'expert': 'expert',
}

# The sampler reads its weights once per token: they are gathered once per
# iteration and sharded over tensor only; all other axes shard the rows.
ROLLOUT_RULES: Rules = {
  **TRAIN_RULES,
  'batch': ('data', 'fsdp', 'expert', 'context'),
  'looked_up': ('data', 'fsdp', 'expert', 'context'),
  'sequence': None,
  'embed': None,
  'attention_heads': 'tensor',
}

_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar(
  'rules', default=TRAIN_RULES
)


def make_mesh(
  shape: Sequence[int] | Mapping[str, int] | None = None,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Arranges devices as a mesh with the axes of `MESH_AXES`.

  With several TPU slices, `data` spans the slow network between them and all
  other axes stay within a slice.

  Args:
    shape: sizes of the axes, by name or in order; missing axes have size 1 and
      one size may be −1, for the remaining devices. `None` puts all devices on
      `fsdp`.
    devices: defaults to `jax.devices()`.

  Returns:
    A mesh with automatic axis types: XLA's partitioner inserts collectives.

  Raises:
    TypeError: if a size is not an integer.
    ValueError: if the sizes do not multiply to the number of devices, if `data` is
      not a multiple of the number of slices, or if a device is given twice.

  >>> make_mesh().shape['tensor']
  1
  """
  devices = jax.devices() if devices is None else list(devices)
  if not devices or len(set(devices)) < len(devices):
    raise ValueError(
      f'devices of a mesh must be one or more, each once, got {devices!r:.200}'
    )
  sizes = _axis_sizes(shape, len(devices))
  return Mesh(
    arrange(sizes, devices),
    MESH_AXES,
    axis_types=(AxisType.Auto,) * len(MESH_AXES),
  )


def abstract_mesh(shape: Mapping[str, int], count: int) -> AbstractMesh:
  """Returns the mesh that `make_mesh` would make of a number of devices.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  return AbstractMesh(_axis_sizes(shape, count), MESH_AXES)


def reshape_mesh(
  mesh: Mesh, shape: Sequence[int] | Mapping[str, int] | None
) -> Mesh:
  """Arranges a mesh's devices, in the same order, as a mesh of another shape.

  One program can move arrays between the two meshes.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  sizes = _axis_sizes(shape, mesh.size)
  return Mesh(
    mesh.devices.reshape(sizes), mesh.axis_names, axis_types=mesh.axis_types
  )


def arrange(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
  """Orders devices so that neighbours in the mesh are physical neighbours.

  GPUs keep their order, by host: the last axes of the mesh stay within a host,
  and any other may span hosts, which JAX calls slices of GPUs, too.

  Args:
    sizes: sizes of the axes.
    devices: as many devices.

  Raises:
    ValueError: if the first axis is not a multiple of the number of TPU slices.
  """
  slices = {getattr(device, 'slice_index', None) for device in devices}
  if devices[0].platform == 'gpu':
    return np.asarray(devices, dtype=object).reshape(sizes)
  if len(slices) == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  if sizes[0] % len(slices):
    raise ValueError(
      f'data must be a multiple of the {len(slices)} slices, got {sizes[0]}'
      f'{divisor_hint("data", multiples(len(slices), sizes[0]))}'
    )
  sizes_within_slice = (sizes[0] // len(slices), *sizes[1:])
  return mesh_utils.create_hybrid_device_mesh(
    sizes_within_slice,
    (len(slices), *[1] * (len(sizes) - 1)),
    devices,
    allow_split_physical_axes=True,
  )


def _axis_sizes(
  shape: Sequence[int] | Mapping[str, int] | None, count: int
) -> tuple[int, ...]:
  """Resolves a mesh shape against the number of devices."""
  check_integer('the number of devices', count, 1)
  if shape is None:
    shape = {'fsdp': -1}
  if isinstance(shape, str) or not isinstance(shape, Mapping | Sequence):
    raise TypeError(
      f'a mesh shape must be sizes by name or in order, got {shape!r:.80}'
    )
  if isinstance(shape, Mapping):
    unknown = set(shape) - set(MESH_AXES)
    if unknown:
      raise ValueError(
        f'mesh axes must be among {MESH_AXES}, got {sorted(unknown)}'
      )
    sizes = [shape.get(axis, 1) for axis in MESH_AXES]
  else:
    sizes = [*shape, *[1] * (len(MESH_AXES) - len(shape))]
  for axis, size in zip(MESH_AXES, sizes, strict=False):
    check_integer(f'the size of {axis}', size)
    if size < 1 and size != -1:
      raise ValueError(
        f'the size of {axis} must be at least 1, or -1 for the rest, got {size}'
      )
  if sizes.count(-1) > 1:
    raise ValueError(
      f'sizes of a mesh must have at most one -1, got {sizes.count(-1)}'
    )
  size_by_axis = dict(zip(MESH_AXES, sizes, strict=False))
  fixed = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and fixed > 0 and count % fixed == 0:
    sizes[sizes.index(-1)] = count // fixed
  if len(sizes) != len(MESH_AXES) or math.prod(sizes) != count:
    possible = nearest(divisors(count), fixed) if -1 in sizes else ()
    raise ValueError(
      f'a mesh must multiply to the {count} devices there are, got {size_by_axis}'
      f'{divisor_hint("product of the axes other than -1", possible)}'
    )
  return tuple(sizes)


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None, rules: Rules) -> Iterator[None]:
  """Context in which activations are constrained to a mesh by a rules table.

  `jax.jit` caches traces by mesh and not by rules, so each jitted function must
  be used with one table only.

  Args:
    mesh: the mesh; `None` constrains nothing.
    rules: logical axes to mesh axes.
  """
  token = _rules.set(rules)
  mesh_context = (
    contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
  )
  try:
    with mesh_context:
      yield
  finally:
    _rules.reset(token)


def current_rules() -> Rules:
  """Returns the rules set by `use_mesh`, or `TRAIN_RULES`."""
  return _rules.get()


def platform() -> str:
  """Returns the platform to compile for: `'cpu'`, `'gpu'` or `'tpu'`.

  It is that of the mesh in use, which need not be attached, or JAX's default.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  name = jax.default_backend() if device is None else device.platform
  return 'gpu' if name in ('cuda', 'rocm') else name


def partition_spec(axes: Sequence[str | None], rules: Rules) -> PartitionSpec:
  """Translates logical axes into mesh axes.

  >>> tuple(partition_spec(('batch', 'sequence', 'vocab'), TRAIN_RULES))
  (('data', 'fsdp', 'expert'), 'context', 'tensor')

  A mesh axis shards only the first of the axes that map to it.
  """
  used: set[str] = set()
  spec: list[MeshAxes] = []
  for axis in axes:
    mesh_axes = rules[axis] if axis is not None else None
    names = mesh_axes_of(mesh_axes)
    unused = tuple(name for name in names if name not in used)
    used.update(unused)
    spec.append(mesh_axes if unused == names else (unused or None))
  return PartitionSpec(*spec)


def named_sharding(
  mesh: Mesh, axes: Sequence[str | None], rules: Rules
) -> NamedSharding:
  """Returns the sharding of an array with these logical axes."""
  return NamedSharding(mesh, partition_spec(axes, rules))


def fitted_sharding(
  mesh: Mesh,
  axes: Sequence[str | None],
  shape: Sequence[int],
  rules: Rules,
) -> NamedSharding:
  """Like `named_sharding`, without sharding axes that do not divide evenly."""
  return NamedSharding(mesh, fitted_spec(mesh, axes, shape, rules))


def fitted_spec(
  mesh: Mesh | AbstractMesh,
  axes: Sequence[str | None],
  shape: Sequence[int],
  rules: Rules,
) -> PartitionSpec:
  """Like `partition_spec`, restricted to mesh axes that divide the array's.

  Of several mesh axes for one array axis, trailing ones are dropped until the
  rest divides it: small axes (six rows over two times four) are sharded less,
  or replicated, instead of refused.
  """
  spec: list[MeshAxes] = []
  for entry, size in zip(partition_spec(axes, rules), shape, strict=True):
    names = mesh_axes_of(entry)
    while size % _size(mesh, names):
      names = names[:-1]
    spec.append(entry if names == mesh_axes_of(entry) else (names or None))
  return PartitionSpec(*spec)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of `[B, ...]` arrays over rows."""
  return named_sharding(mesh, ('batch',), TRAIN_RULES)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Shards arrays over the mesh by `batch_shardings`.

  Args:
    batch: pytree of host or device arrays; in a multi-process program each
      process passes the whole batch and its devices keep their own rows.
    mesh: the mesh of the result.

  Raises:
    ValueError: if rows or tokens do not divide over the mesh.
  """
  return jax.tree.map(
    distributed.put_global, batch, batch_shardings(batch, mesh)
  )


def batch_shardings(batch: PyTree, mesh: Mesh) -> PyTree:
  """Returns the shardings of a batch.

  Args:
    batch: pytree of arrays or shapes: `[B, T]` arrays are sharded along both
      axes, other `[B, ...]` arrays along rows; scalars are replicated.
    mesh: the mesh to shard over.

  Raises:
    ValueError: if rows or tokens do not divide over the mesh.
  """

  def sharding_of(path: Any, leaf: Any) -> NamedSharding:
    axes = ('batch', 'sequence')[: leaf.ndim]
    for axis, size in zip(axes, leaf.shape, strict=False):
      count = num_shards(mesh, axis, TRAIN_RULES)
      if size % count:
        unit = 'rows' if axis == 'batch' else 'tokens'
        raise ValueError(
          f'{unit} must divide over the {count} shards of the {axis}, '
          f'got {size} {unit}{_location_text(path)}'
          f'{divisor_hint(unit, multiples(count, size))}'
        )
    if leaf.ndim < 2 or mesh.shape['context'] == 1:
      return batch_sharding(mesh) if leaf.ndim else replicated(mesh)
    return named_sharding(mesh, axes, TRAIN_RULES)

  return jax.tree_util.tree_map_with_path(sharding_of, batch)


def _location_text(path: tuple[Any, ...]) -> str:
  """Returns ' in' and a leaf's name; empty for a bare array."""
  name = jax.tree_util.keystr(path, simple=True, separator='.')
  return f' in {name}' if name else ''


def num_shards(mesh: Mesh | AbstractMesh, axis: str, rules: Rules) -> int:
  """Returns the number of shards of a logical axis that divides evenly."""
  return _size(mesh, mesh_axes_of(rules[axis]))


def _size(mesh: Mesh | AbstractMesh, names: tuple[str, ...]) -> int:
  """Returns the product of the sizes of mesh axes."""
  return math.prod(mesh.shape[name] for name in names)


def mesh_axes_of(axes: Any) -> tuple[str, ...]:
  """Returns an entry of rules or of a `PartitionSpec` as a tuple of axes."""
  return (axes,) if isinstance(axes, str) else tuple(axes or ())
