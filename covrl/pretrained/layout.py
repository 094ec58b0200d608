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
    """The tensor's shape as the checkpoint has it."""
    return self.flat[::-1] if self.stored.inputs else self.flat

  @property
  def flat(self) -> tuple[int, ...]:
    """The tensor's shape, with `[in, out]` in our order."""
    return tuple(math.prod(group) for group in self._groups(self.shape))

  def name(self, entry: Sequence[int]) -> str:
    """The tensor of an entry of the stack."""
    return self.stored.name.format(*entry)

  def spans(self, part: Sequence[slice]) -> tuple[slice, ...]:
    """What of the flat tensor a part of one tensor's parameter is."""
    return tuple(
      _span(slices, sizes)
      for slices, sizes in zip(
        self._groups(part), self._groups(self.shape), strict=True
      )
    )

  def _groups(self, axes: Sequence[Any]) -> list[Sequence[Any]]:
    """Splits our axes into those that make up each of the tensor's."""
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


def _span(slices: Sequence[slice], sizes: Sequence[int]) -> slice:
  """The part of some axes, made one: the first may be cut, the rest not."""
  whole = math.prod(sizes[1:])
  start, stop, _ = slices[0].indices(sizes[0])
  for cut, size in zip(slices[1:], sizes[1:], strict=True):
    if cut.indices(size) != (0, size, 1):
      raise ValueError(
        f'only the first of the axes {tuple(sizes)} may be split over a mesh,'
        f' got {tuple(slices)}'
      )
  return slice(start * whole, stop * whole)
