# SPDX-License-Identifier: Apache-2.0
"""Partitioning of tokens and vocabulary over the mesh, and its collectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jax.sharding import AbstractMesh, AxisType
from jaxtyping import Array, Float, Int

from covrl.parallel.sharding import (
  MESH_AXES,
  TRAIN_RULES,
  fitted_spec,
  mesh_axes_of,
)
from covrl.statistics.streaming import SoftmaxSums, raise_peak


class Partition(NamedTuple):
  """Partitioning of the operands; by default, all on one device.

  Attributes:
    mesh: mesh to `shard_map` over; `None` on one device, inside of a caller's
      `shard_map`, or if XLA partitions.
    by_xla: whether XLA's partitioner splits the computation, over a mesh whose
      axes are not covrl's.
    token_spec: partition spec of `targets`.
    token_axes: mesh axes that split them.
    vocabulary_axes: mesh axes that split the unembedding's columns.
    width_axes: mesh axes that split the rows of the unembedding's cotangent.
      The rows of the unembedding itself are gathered for the products.
  """

  mesh: AbstractMesh | None = None
  by_xla: bool = False
  token_spec: P = P()
  token_axes: tuple[str, ...] = ()
  vocabulary_axes: tuple[str, ...] = ()
  width_axes: tuple[str, ...] = ()

  def local_columns(self, vocabulary: int) -> int:
    """Number of columns on each device."""
    if self.mesh is None:
      return vocabulary
    shards = math.prod(self.mesh.shape[name] for name in self.vocabulary_axes)
    return vocabulary // shards

  def local_tokens(self, count: int) -> int:
    """Number of tokens on each device."""
    if self.mesh is None:
      return count
    return count // math.prod(self.mesh.shape[name] for name in self.token_axes)

  def first_column(self, columns: int) -> Int[Array, '']:
    """Index of this device's first column, if each device has `columns`."""
    if not self.vocabulary_axes:
      return jnp.asarray(0, jnp.int32)
    return jax.lax.axis_index(self.vocabulary_axes) * columns

  def merge_sums(self, sums: SoftmaxSums) -> SoftmaxSums:
    """Merges the sums over each device's columns; runs on each device."""
    if not self.vocabulary_axes:
      return sums
    peak = jax.lax.pmax(sums.peak, self.vocabulary_axes)
    merged = jax.lax.psum(raise_peak(sums, peak), self.vocabulary_axes)
    return merged._replace(peak=peak)

  def sum_over_columns(
    self, hidden: Float[Array, 'N D']
  ) -> Float[Array, 'N D']:
    """Sums the cotangent of hidden states over devices with other columns."""
    if not self.vocabulary_axes:
      return hidden
    return jax.lax.psum(hidden, self.vocabulary_axes)

  def sum_over_tokens(
    self, unembedding: Float[Array, 'D V']
  ) -> Float[Array, '_ V']:
    """Sums the unembedding's cotangent over tokens; keeps this device's rows."""
    if self.width_axes:
      unembedding = jax.lax.psum_scatter(
        unembedding, self.width_axes, scatter_dimension=0, tiled=True
      )
      # XLA's TPU compiler tries to sum whole gradients over micro-batches and
      # scatter once, and fails where there is nothing left to reduce.
      unembedding = jax.lax.optimization_barrier(unembedding)
    remaining = tuple(
      name for name in self.token_axes if name not in self.width_axes
    )
    return jax.lax.psum(unembedding, remaining) if remaining else unembedding


def partition_of(
  unembedding: Float[Array, 'D V'], targets: Int[Array, '*B']
) -> Partition:
  """Partitioning by the sharding rules on the current mesh, or the arrays' mesh.

  Array axes that the mesh axes do not divide evenly are not split.

  Args:
    unembedding: array or tracer; its sharding has the mesh that is used if none is set.
    targets: array of which only the shape is read.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    mesh = jax.typeof(unembedding).sharding.mesh
  axis_types = {
    name: axis_type
    for name, axis_type in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if mesh.shape[name] > 1
  }
  if all(axis_type == AxisType.Manual for axis_type in axis_types.values()):
    return Partition()
  all_automatic = all(
    axis_type == AxisType.Auto for axis_type in axis_types.values()
  )
  if not (
    all_automatic and set(axis_types) <= set(MESH_AXES) <= set(mesh.axis_names)
  ):
    return Partition(by_xla=True)

  axes = ('batch', 'sequence', *[None] * targets.ndim)[: targets.ndim]
  tokens = _splitting_axes(mesh, axes, targets.shape)
  width, vocabulary = _splitting_axes(
    mesh, ('embed', 'vocab'), unembedding.shape
  )
  token_axes = tuple(name for names in tokens for name in names)
  # The cotangent is scattered over axes that it is summed over.
  can_scatter = set(width) <= set(token_axes)
  return Partition(
    mesh=mesh,
    token_spec=P(*(names or None for names in tokens)),
    token_axes=token_axes,
    vocabulary_axes=vocabulary,
    width_axes=width if can_scatter else (),
  )


def _splitting_axes(
  mesh: AbstractMesh, axes: Sequence[str | None], shape: Sequence[int]
) -> tuple[tuple[str, ...], ...]:
  """For each array axis, the mesh axes of size > 1 that split it."""
  return tuple(
    tuple(name for name in mesh_axes_of(entry) if mesh.shape[name] > 1)
    for entry in fitted_spec(mesh, axes, shape, TRAIN_RULES)
  )
