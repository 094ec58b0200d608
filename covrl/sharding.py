# SPDX-License-Identifier: Apache-2.0
"""Meshes, and the one table that maps logical axes to mesh axes.

A parameter or an activation names its axes by what they mean (`'embed'`,
`'heads'`, `'batch'`); the table says which mesh axis, if any, splits each.
Nothing else in covrl mentions mesh axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from covrl import distributed

MESH_AXES = ('data', 'fsdp', 'tensor', 'expert')

MeshAxes: TypeAlias = str | tuple[str, ...] | None
Rules: TypeAlias = Mapping[str, MeshAxes]

# Batches are split over data, fsdp and expert together; parameters over fsdp
# (their model-width axis) and tensor (heads, hidden units, vocabulary), those of
# experts over expert as well.
TRAIN_RULES: Rules = {
  'batch': ('data', 'fsdp', 'expert'),
  'sequence': None,
  'layers': None,
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'vocab': 'tensor',
  'rank': None,
  'expert': 'expert',
}

# The sampler keeps the trainer's layout: one copy of the weights serves both.
ROLLOUT_RULES: Rules = TRAIN_RULES


def make_mesh(
  shape: Sequence[int] | Mapping[str, int] | None = None,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Arranges devices as a mesh with the axes of `MESH_AXES`.

  Args:
    shape: sizes of the axes, by name or in order; missing axes have size 1 and
      one size may be −1, meaning what is left. `None` puts all devices on
      `fsdp`.
    devices: defaults to all that JAX sees.

  Returns:
    A mesh whose axes XLA's partitioner places collectives for.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.

  >>> make_mesh().shape['tensor']
  1
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = _axis_sizes(shape, len(devices))
  return jax.make_mesh(
    sizes,
    MESH_AXES,
    axis_types=(AxisType.Auto,) * len(MESH_AXES),
    devices=devices,
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


def partition_spec(axes: Sequence[str | None], rules: Rules) -> PartitionSpec:
  """Translates logical axes into mesh axes.

  >>> tuple(partition_spec(('batch', 'sequence', 'vocab'), TRAIN_RULES))
  (('data', 'fsdp', 'expert'), None, 'tensor')

  The second use of a mesh axis within one array yields to the first.
  """
  used: set[str] = set()
  spec: list[MeshAxes] = []
  for axis in axes:
    mesh_axes = rules[axis] if axis is not None else None
    names = (mesh_axes,) if isinstance(mesh_axes, str) else (mesh_axes or ())
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
  """Like `named_sharding`, leaving whole the axes that a mesh cannot divide.

  Small axes (four kv heads over eight tensor shards) are replicated rather
  than refused.
  """
  spec = partition_spec(axes, rules)
  kept = [
    names if size % _size(mesh, names) == 0 else None
    for names, size in zip(spec, shape, strict=True)
  ]
  return NamedSharding(mesh, PartitionSpec(*kept))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of `[B, ...]` arrays, their rows split."""
  return NamedSharding(mesh, PartitionSpec(TRAIN_RULES['batch']))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Places arrays on the mesh, rows split; scalars are replicated.

  Args:
    batch: pytree of host or device arrays `[B, ...]` or scalars; in a
      multi-process program each process passes the whole batch's rows and
      keeps its own.
    mesh: where to.

  Raises:
    ValueError: if the rows do not divide over the mesh.
  """
  rows = batch_sharding(mesh)
  count = _size(mesh, TRAIN_RULES['batch'])

  def place(leaf: jax.Array) -> jax.Array:
    if leaf.ndim == 0:
      return distributed.place(leaf, replicated(mesh))
    if leaf.shape[0] % count:
      raise ValueError(
        f'rows must divide over the {count} shards of the batch, '
        f'got {leaf.shape[0]} rows'
      )
    return distributed.place(leaf, rows)

  return jax.tree.map(place, batch)


def _size(mesh: Mesh, names: MeshAxes) -> int:
  """How many shards the named mesh axes make together."""
  if names is None:
    return 1
  names = (names,) if isinstance(names, str) else names
  return math.prod(mesh.shape[name] for name in names)
