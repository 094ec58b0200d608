# SPDX-License-Identifier: Apache-2.0
"""Our parameters beside a checkpoint's tensors: shapes and slices of each.

Ours are grouped by head and have the layers in front, and then the experts; a
checkpoint's are one per layer and expert, flat, and the matrices of products
are transposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from covrl.pretrained.names import Names, Stored


class Place(NamedTuple):
  """A parameter, and where a checkpoint has it.

  Attributes:
    path: of the parameter, such as `layers.mlp.gate`.
    like: its shape, dtype and sharding, layers in front.
    stored: what the checkpoint calls it.
  """

  path: str
  like: Any
  stored: Stored

  @property
  def stack(self) -> tuple[int, ...]:
    """Sizes of the leading axes each entry of which is a tensor by itself."""
    return self.like.shape[: self.stored.name.count('{}')]

  @property
  def shape(self) -> tuple[int, ...]:
    """Of what one tensor is."""
    return self.like.shape[len(self.stack) :]

  @property
  def entries(self) -> Iterator[tuple[int, ...]]:
    """Of the stack, in order: the layer, and the expert where there are any."""
    return np.ndindex(self.stack)

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """Of one tensor as the checkpoint has it."""
    return tuple(math.prod(group) for group in self._stored(self.shape))

  def name(self, entry: Sequence[int]) -> str:
    """The tensor of an entry of the stack."""
    return self.stored.name.format(*entry)

  def stored_spec(self, spec: PartitionSpec) -> PartitionSpec:
    """How tensors are split where the parameter is split like this.

    Raises:
      ValueError: if that splits an axis whose parts are not in one piece there.
    """
    depth, whole = len(self.stack), (None,) * self.like.ndim
    entries = (*spec, *whole)[: self.like.ndim]
    groups = self._stored(entries[depth:])
    for group in groups:
      if any(group[1:]):
        raise ValueError(
          f'of the axes of {self.path} that are one in its tensor only the first'
          f' may be split over a mesh, got {spec}'
        )
    return PartitionSpec(*entries[:depth], *(group[0] for group in groups))

  def stored_as(self, ours: Any) -> Any:
    """One tensor as the checkpoint has it, from what it is here."""
    groups = self._groups(self.shape)
    flat = ours.reshape([math.prod(group) for group in groups])
    return flat.T if self.stored.inputs else flat

  def _stored(self, axes: Sequence[Any]) -> list[Sequence[Any]]:
    """Splits our axes into those that make up each of the tensor's, in order."""
    groups = self._groups(axes)
    return groups[::-1] if self.stored.inputs else groups

  def _groups(self, axes: Sequence[Any]) -> list[Sequence[Any]]:
    """The same, in our order."""
    inputs = self.stored.inputs
    if inputs:
      return [axes[:inputs], axes[inputs:]]
    # Biases are flat; the embedding has the axes that it has here.
    if self.path == 'embedding':
      return [axes[:1], axes[1:]]
    return [axes]


def places(params: PyTree, names: Names) -> Iterator[Place]:
  """Every parameter, and where it is in a checkpoint.

  Args:
    params: arrays, or their shapes, nested as a policy's parameters are.
    names: the family's table.
  """
  for path, leaf in jax.tree.leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    yield Place(name, leaf, names[name])
