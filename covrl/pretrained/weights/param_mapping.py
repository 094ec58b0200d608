# SPDX-License-Identifier: Apache-2.0
"""Mapping between policy parameters and checkpoint tensors.

A parameter stacks all layers, and then all experts, on its leading axes and
separates attention heads. A checkpoint has one tensor per layer and expert,
with heads flattened and matrices transposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from covrl.pretrained.families.tensor_names import StoredTensor, TensorNames


class MappedParam(NamedTuple):
  """A parameter with its tensors in a checkpoint.

  Attributes:
    path: path of the parameter, such as `layers.mlp.gate`.
    array: the parameter, or its shape, dtype and sharding.
    tensor: name and orientation of its tensors.
  """

  path: str
  array: Any
  tensor: StoredTensor

  @property
  def stack_shape(self) -> tuple[int, ...]:
    """Sizes of the stacked axes: of the layers, and of the experts."""
    return self.array.shape[: self.tensor.name.count('{}')]

  @property
  def slice_shape(self) -> tuple[int, ...]:
    """Shape of the slice of the parameter that one tensor holds."""
    return self.array.shape[len(self.stack_shape) :]

  @property
  def stack_indices(self) -> Iterator[tuple[int, ...]]:
    """Indices of the tensors: of the layer, and of the expert, if any."""
    return np.ndindex(self.stack_shape)

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    """Shape of each tensor."""
    return tuple(
      math.prod(group) for group in self._group_as_tensor(self.slice_shape)
    )

  def tensor_name(self, stack_index: Sequence[int]) -> str:
    """Name of the tensor at an index of the stack."""
    return self.tensor.name.format(*stack_index)

  def tensor_spec(self, spec: PartitionSpec) -> PartitionSpec:
    """Partition of stacked tensors for a partition of the parameter.

    Raises:
      ValueError: the parameter is partitioned along an axis whose parts are
        not contiguous in the tensor.
    """
    depth, replicated = len(self.stack_shape), (None,) * self.array.ndim
    entries = (*spec, *replicated)[: self.array.ndim]
    groups = self._group_as_tensor(entries[depth:])
    for group in groups:
      if any(group[1:]):
        raise ValueError(
          f'axes of {self.path} that are merged into one axis of its tensor must be'
          f' partitioned along the first of them only, got {spec}'
        )
    return PartitionSpec(*entries[:depth], *(group[0] for group in groups))

  def to_tensor(self, param_slice: Any) -> Any:
    """Converts a slice of the parameter to the tensor in the checkpoint."""
    groups = self._group_axes(self.slice_shape)
    matrix = param_slice.reshape([math.prod(group) for group in groups])
    return matrix.T if self.tensor.input_axes else matrix

  def _group_as_tensor(self, axes: Sequence[Any]) -> list[Sequence[Any]]:
    """Groups a slice's axes by the axis of the tensor, in the tensor's order."""
    groups = self._group_axes(axes)
    return groups[::-1] if self.tensor.input_axes else groups

  def _group_axes(self, axes: Sequence[Any]) -> list[Sequence[Any]]:
    """Groups a slice's axes by the axis of the tensor, in the policy's order."""
    num_input_axes = self.tensor.input_axes
    if num_input_axes:
      return [axes[:num_input_axes], axes[num_input_axes:]]
    # Biases are flat; the embedding has the same axes as its tensor.
    if self.path == 'embedding':
      return [axes[:1], axes[1:]]
    return [axes]


def map_params(params: PyTree, names: TensorNames) -> Iterator[MappedParam]:
  """Yields every parameter with its tensors, in the order of the pytree.

  Args:
    params: arrays, or their shapes, nested as a policy's parameters.
    names: the family's tensor names.
  """
  for path, leaf in jax.tree.leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    yield MappedParam(name, leaf, names[name])
