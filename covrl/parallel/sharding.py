# SPDX-License-Identifier: Apache-2.0
"""Meshes, and the tables that map logical axes to mesh axes, one per use.

A parameter or an activation names its axes by what they mean (`'embed'`,
`'heads'`, `'batch'`); a table says which mesh axes, if any, split each.
Nothing else in covrl mentions mesh axes.
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

from covrl.parallel import distributed

MESH_AXES = ('data', 'fsdp', 'tensor', 'expert', 'context')

MeshAxes: TypeAlias = str | tuple[str, ...] | None
Rules: TypeAlias = Mapping[str, MeshAxes]

# Rows are split over data, fsdp and expert, and each over context. Parameters
# are split over fsdp and context (their model-width axis) and tensor (heads,
# hidden units, vocabulary), those of experts over expert as well. Attention
# needs whole rows: there context splits heads instead, and devices exchange the
# one for the other. A table of embeddings is split by its width: a device looks
# up its part of what all rows of its replica need, which moves and sums far less
# than a whole table.
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

# The sampler reads its weights once a token: they are gathered once an
# iteration, and split over tensor alone. All other axes have rows of their own.
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

  Of several slices of TPUs, `data` goes over the slow network between them, and
  everything else stays within one.

  Args:
    shape: sizes of the axes, by name or in order; missing axes have size 1 and
      one size may be −1, meaning what is left. `None` puts all devices on
      `fsdp`.
    devices: defaults to all that JAX sees.

  Returns:
    A mesh whose axes XLA's partitioner places collectives for.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices, or if
      `data` is no multiple of the number of slices.

  >>> make_mesh().shape['tensor']
  1
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = _axis_sizes(shape, len(devices))
  return Mesh(
    _arranged(sizes, devices),
    MESH_AXES,
    axis_types=(AxisType.Auto,) * len(MESH_AXES),
  )


def reshaped(
  mesh: Mesh, shape: Sequence[int] | Mapping[str, int] | None
) -> Mesh:
  """The same devices in the same order, as a mesh of another shape.

  Arrays go from one to the other within a program.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  sizes = _axis_sizes(shape, mesh.size)
  return Mesh(
    mesh.devices.reshape(sizes), mesh.axis_names, axis_types=mesh.axis_types
  )


def _arranged(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
  """Devices such that those next to each other in the mesh are neighbours."""
  slices = {getattr(device, 'slice_index', None) for device in devices}
  if len(slices) == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  if sizes[0] % len(slices):
    raise ValueError(
      f'data must be a multiple of the {len(slices)} slices, got {sizes[0]}'
    )
  within = (sizes[0] // len(slices), *sizes[1:])
  return mesh_utils.create_hybrid_device_mesh(
    within,
    (len(slices), *[1] * (len(sizes) - 1)),
    devices,
    allow_split_physical_axes=True,
  )


def _axis_sizes(
  shape: Sequence[int] | Mapping[str, int] | None, count: int
) -> tuple[int, ...]:
  """Resolves a mesh shape against the number of devices."""
  if shape is None:
    shape = {'fsdp': -1}
  if isinstance(shape, Mapping):
    unknown = set(shape) - set(MESH_AXES)
    if unknown:
      raise ValueError(
        f'mesh axes must be among {MESH_AXES}, got {sorted(unknown)}'
      )
    sizes = [shape.get(axis, 1) for axis in MESH_AXES]
  else:
    sizes = [*shape, *[1] * (len(MESH_AXES) - len(shape))]
  if sizes.count(-1) == 1:
    known = math.prod(size for size in sizes if size != -1)
    sizes[sizes.index(-1)] = max(count // known, 1)
  if len(sizes) != len(MESH_AXES) or math.prod(sizes) != count:
    given = dict(zip(MESH_AXES, sizes, strict=False))
    raise ValueError(
      f'a mesh must multiply to the {count} devices there are, got {given}'
    )
  return tuple(sizes)


@contextlib.contextmanager
def in_use(mesh: Mesh | None, rules: Rules) -> Iterator[None]:
  """Within it, activations are constrained to a mesh by a table.

  A jitted function is traced once per mesh, whatever the table: it belongs to
  one of them.

  Args:
    mesh: where to; `None` constrains nothing.
    rules: the table.
  """
  token = _rules.set(rules)
  entered = contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
  try:
    with entered:
      yield
  finally:
    _rules.reset(token)


def rules_in_use() -> Rules:
  """The table that `in_use` set, or the trainer's."""
  return _rules.get()


def platform() -> str:
  """What is compiled for: `'cpu'`, `'gpu'` or `'tpu'`.

  The platform of the mesh in use, which need not be attached, or JAX's default.
  """
  described = jax.sharding.get_abstract_mesh().abstract_device
  name = jax.default_backend() if described is None else described.platform
  return 'gpu' if name in ('cuda', 'rocm') else name


def partition_spec(axes: Sequence[str | None], rules: Rules) -> PartitionSpec:
  """Translates logical axes into mesh axes.

  >>> tuple(partition_spec(('batch', 'sequence', 'vocab'), TRAIN_RULES))
  (('data', 'fsdp', 'expert'), 'context', 'tensor')

  The second use of a mesh axis within one array yields to the first.
  """
  used: set[str] = set()
  spec: list[MeshAxes] = []
  for axis in axes:
    mesh_axes = rules[axis] if axis is not None else None
    names = mesh_axes_of(mesh_axes)
    free = tuple(name for name in names if name not in used)
    used.update(free)
    spec.append(mesh_axes if free == names else (free or None))
  return PartitionSpec(*spec)


def named_sharding(
  mesh: Mesh, axes: Sequence[str | None], rules: Rules
) -> NamedSharding:
  """The sharding of an array with these logical axes on this mesh."""
  return NamedSharding(mesh, partition_spec(axes, rules))


def fit(
  mesh: Mesh,
  axes: Sequence[str | None],
  shape: Sequence[int],
  rules: Rules,
) -> NamedSharding:
  """Like `named_sharding`, leaving whole the axes that a mesh cannot divide."""
  return NamedSharding(mesh, fitted_spec(mesh, axes, shape, rules))


def fitted_spec(
  mesh: Mesh | AbstractMesh,
  axes: Sequence[str | None],
  shape: Sequence[int],
  rules: Rules,
) -> PartitionSpec:
  """Like `partition_spec`, as far as a mesh divides the axes of an array.

  Of several mesh axes for one of the array, as many of the first are kept as
  divide it: small axes (six rows over two times four) are split less, or
  replicated, rather than refused.
  """
  kept: list[MeshAxes] = []
  for entry, size in zip(partition_spec(axes, rules), shape, strict=True):
    names = mesh_axes_of(entry)
    while size % _size(mesh, names):
      names = names[:-1]
    kept.append(entry if names == mesh_axes_of(entry) else (names or None))
  return PartitionSpec(*kept)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of `[B, ...]` arrays, their rows split."""
  return named_sharding(mesh, ('batch',), TRAIN_RULES)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Places arrays on the mesh, split as `batch_shardings` says.

  Args:
    batch: pytree of host or device arrays; in a multi-process program each
      process passes the whole batch's rows and keeps its own.
    mesh: where to.

  Raises:
    ValueError: if rows or tokens do not divide over the mesh.
  """
  return jax.tree.map(distributed.place, batch, batch_shardings(batch, mesh))


def batch_shardings(batch: PyTree, mesh: Mesh) -> PyTree:
  """How a batch lies on the mesh.

  Args:
    batch: pytree of arrays, or of their shapes: `[B, ...]`, of which `[B, T]`
      are split along both, or scalars, which are replicated.
    mesh: where.

  Raises:
    ValueError: if rows or tokens do not divide over the mesh.
  """

  def place(leaf: Any) -> NamedSharding:
    axes = ('batch', 'sequence')[: leaf.ndim]
    for axis, size in zip(axes, leaf.shape, strict=False):
      count = shards(mesh, axis, TRAIN_RULES)
      if size % count:
        counted = 'rows' if axis == 'batch' else 'tokens'
        raise ValueError(
          f'{counted} must divide over the {count} shards of the {axis}, '
          f'got {size} {counted}'
        )
    if leaf.ndim < 2 or mesh.shape['context'] == 1:
      return batch_sharding(mesh) if leaf.ndim else replicated(mesh)
    return named_sharding(mesh, axes, TRAIN_RULES)

  return jax.tree.map(place, batch)


def shards(mesh: Mesh | AbstractMesh, axis: str, rules: Rules) -> int:
  """How many parts a table splits a logical axis into, if it divides."""
  return _size(mesh, mesh_axes_of(rules[axis]))


def _size(mesh: Mesh | AbstractMesh, names: tuple[str, ...]) -> int:
  """How many shards the named mesh axes make together."""
  return math.prod(mesh.shape[name] for name in names)


def mesh_axes_of(axes: Any) -> tuple[str, ...]:
  """An entry of a table, or of a `PartitionSpec`, as a tuple of mesh axes."""
  return (axes,) if isinstance(axes, str) else tuple(axes or ())
