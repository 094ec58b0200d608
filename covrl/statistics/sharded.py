# SPDX-License-Identifier: Apache-2.0
"""How tokens and vocabulary lie on the mesh, and what devices exchange."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jax.sharding import AbstractMesh, AxisType
from jaxtyping import Array, Float, Int

from covrl.parallel.sharding import MESH_AXES, TRAIN_RULES, fitted_spec
from covrl.statistics.streaming import Sums, rebase


class Placement(NamedTuple):
  """Where the parts are; by default, all in one place.

  Attributes:
    mesh: what to work on device by device; `None` if there is nothing to divide,
      or if XLA's partitioner has to.
    alone: whether each device works by itself: not if the partitioner divides.
    tokens: how the axes of `targets` are split.
    token_axes: the mesh axes that do it.
    vocabulary: mesh axes that the unembedding's columns are split over.
    width: mesh axes that the rows of the unembedding's cotangent are split
      over. The rows of the unembedding are whole while it is multiplied.
  """

  mesh: AbstractMesh | None = None
  alone: bool = True
  tokens: P = P()
  token_axes: tuple[str, ...] = ()
  vocabulary: tuple[str, ...] = ()
  width: tuple[str, ...] = ()

  def columns_of(self, vocabulary: int) -> int:
    """How many columns a device has."""
    if self.mesh is None:
      return vocabulary
    shards = math.prod(self.mesh.shape[name] for name in self.vocabulary)
    return vocabulary // shards

  def first_column(self, columns: int) -> Int[Array, '']:
    """On a device: the first of its columns, of which each device has some."""
    if not self.vocabulary:
      return jnp.asarray(0, jnp.int32)
    return jax.lax.axis_index(self.vocabulary) * columns

  def merge(self, sums: Sums) -> Sums:
    """On a device: the sums over all columns, from those over its own."""
    if not self.vocabulary:
      return sums
    peak = jax.lax.pmax(sums.peak, self.vocabulary)
    merged = jax.lax.psum(rebase(sums, peak), self.vocabulary)
    return merged._replace(peak=peak)

  def add_columns(self, hidden: Float[Array, 'N D']) -> Float[Array, 'N D']:
    """On a device: hidden states' cotangent, from that of its columns."""
    if not self.vocabulary:
      return hidden
    return jax.lax.psum(hidden, self.vocabulary)

  def add_tokens(self, unembedding: Float[Array, 'D V']) -> Float[Array, '_ V']:
    """On a device: its rows of the unembedding's cotangent, of all tokens."""
    if self.width:
      unembedding = jax.lax.psum_scatter(
        unembedding, self.width, scatter_dimension=0, tiled=True
      )
      # XLA's TPU compiler tries to sum whole gradients over micro-batches and
      # scatter once, and fails where there is nothing left to reduce.
      unembedding = jax.lax.optimization_barrier(unembedding)
    rest = tuple(name for name in self.token_axes if name not in self.width)
    return jax.lax.psum(unembedding, rest) if rest else unembedding


def placement_of(
  unembedding: Float[Array, 'D V'], targets: Int[Array, '*B']
) -> Placement:
  """What the mesh in use, or that of the arrays, says by the table of axes.

  Axes that the mesh cannot divide are left whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    mesh = jax.typeof(unembedding).sharding.mesh
  types = {
    name: kind
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if mesh.shape[name] > 1
  }
  if all(kind == AxisType.Manual for kind in types.values()):
    return Placement()
  automatic = all(kind == AxisType.Auto for kind in types.values())
  if not (automatic and set(types) <= set(MESH_AXES) <= set(mesh.axis_names)):
    return Placement(alone=False)

  axes = ('batch', 'sequence', *[None] * targets.ndim)[: targets.ndim]
  tokens = _fit(mesh, axes, targets.shape)
  width, vocabulary = _fit(mesh, ('embed', 'vocab'), unembedding.shape)
  token_axes = tuple(name for part in tokens for name in part)
  # A cotangent can be scattered where it is summed.
  scattered = set(width) <= set(token_axes)
  return Placement(
    mesh=mesh,
    tokens=P(*(part or None for part in tokens)),
    token_axes=token_axes,
    vocabulary=vocabulary,
    width=width if scattered else (),
  )


def _fit(
  mesh: AbstractMesh, axes: Sequence[str | None], shape: Sequence[int]
) -> tuple[tuple[str, ...], ...]:
  """The mesh axes that split each axis, if they divide it."""
  return tuple(
    tuple(name for name in _names(entry) if mesh.shape[name] > 1)
    for entry in fitted_spec(mesh, axes, shape, TRAIN_RULES)
  )


def _names(entry: Any) -> tuple[str, ...]:
  """The mesh axes of an entry of a PartitionSpec."""
  return (entry,) if isinstance(entry, str) else tuple(entry or ())
