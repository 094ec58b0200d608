# SPDX-License-Identifier: Apache-2.0
"""Orbax copies of pretrained weights, which load faster than safetensors.

A copy stores parameters in covrl's own shapes, so that loading neither
transposes nor stacks them. Configuration and tokenizer files are beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl import storage
from covrl.models import Policy
from covrl.pretrained.atomic_dir import atomic_directory
from covrl.pretrained.weights.finite import check_finite
from covrl.storage.orbax_errors import without_repeated_errors

if TYPE_CHECKING:
  import orbax.checkpoint as ocp

_DIRECTORY_NAME = 'orbax'


def save_orbax(
  directory: epath.PathLike, files: Mapping[str, bytes], params: PyTree
) -> None:
  """Writes a directory for `load_pretrained`, with weights in Orbax format.

  Args:
    directory: must not exist, or be an empty directory.
    files: configuration and tokenizer files by name.
    params: all parameters.

  Raises:
    ValueError: the directory exists and is not empty.
  """
  import orbax.checkpoint as ocp

  with atomic_directory(directory) as draft:
    for name, content in files.items():
      (draft / name).write_bytes(content)
    with _checkpointer(params) as checkpointer:
      checkpointer.save(
        draft / _DIRECTORY_NAME, args=ocp.args.PyTreeSave(params)
      )


def has_orbax(directory: epath.Path) -> bool:
  """Whether the weights of a directory are in Orbax format."""
  return (directory / _DIRECTORY_NAME).is_dir()


def load_orbax(
  directory: epath.Path, policy: Policy, mesh: Mesh | None
) -> PyTree:
  """Loads parameters in Orbax format, in the policy's `param_dtype`.

  Raises:
    ValueError: the copy is damaged or of another model than that of the
      config.json beside it, or a number is not finite.
  """
  import orbax.checkpoint as ocp

  abstract_params = policy.abstract_params(mesh)
  if mesh is None:
    default_sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract_params = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=default_sharding
      ),
      abstract_params,
    )
  path = storage.absolute(directory) / _DIRECTORY_NAME
  try:
    with (
      without_repeated_errors(),
      _checkpointer(abstract_params) as checkpointer,
    ):
      _check_shapes(checkpointer.metadata(path), abstract_params)
      params = checkpointer.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=abstract_params,
          restore_args=ocp.checkpoint_utils.construct_restore_args(
            abstract_params
          ),
        ),
      )
  except (ValueError, OSError) as error:
    reason = ' '.join(str(error).split())
    raise ValueError(
      f'{directory / _DIRECTORY_NAME} must hold the weights of the config.json beside it,'
      f' got: {reason[:200]}'
    ) from None
  check_finite(params, str(directory))
  return params


def _check_shapes(metadata: Any, abstract_params: PyTree) -> None:
  """Checks names and shapes of stored parameters before they are read.

  Orbax would find a wrong shape only while it reads, without cancelling its other
  reads.

  Raises:
    ValueError: the copy has other parameters.
  """
  if metadata.item_metadata is None:
    raise ValueError('no names and shapes of weights that can be read')
  stored_shapes, expected_shapes = (
    {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}
    for leaves, _ in (
      jax.tree_util.tree_flatten_with_path(metadata.item_metadata.tree),
      jax.tree_util.tree_flatten_with_path(abstract_params),
    )
  )
  for name in sorted(stored_shapes.keys() | expected_shapes.keys()):
    if stored_shapes.get(name) != expected_shapes.get(name):
      raise ValueError(
        f'{name} of shape {stored_shapes.get(name)} instead of {expected_shapes.get(name)}'
      )


def _checkpointer(params: PyTree) -> ocp.Checkpointer:
  """A checkpointer without compression, which does not reduce weights.

  While restoring, it holds at most one parameter and a GB more in host memory.
  """
  import orbax.checkpoint as ocp

  largest_bytes = max(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(params)
  )
  return ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(
      use_compression=False,
      use_zarr3=True,
      restore_concurrent_gb=math.ceil(largest_bytes / 10**9),
    )
  )
