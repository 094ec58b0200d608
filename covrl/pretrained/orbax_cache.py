# SPDX-License-Identifier: Apache-2.0
"""Orbax copies of pretrained weights: read faster, and in parallel.

A copy has the layout of covrl's parameters, so that nothing is transposed or
stacked when it is read. The small files stay as they are beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl import storage
from covrl.models import Policy
from covrl.pretrained.atomic_dir import written_whole

if TYPE_CHECKING:
  import orbax.checkpoint as ocp

_NAME = 'orbax'


def save_copy(
  directory: epath.PathLike, files: Mapping[str, bytes], params: PyTree
) -> None:
  """Writes a directory that `load_pretrained` reads, its weights by Orbax.

  Args:
    directory: must not exist, or be empty.
    files: the small files of the model.
    params: all parameters.

  Raises:
    ValueError: there is something already.
  """
  import orbax.checkpoint as ocp

  with written_whole(directory) as draft:
    for name, content in files.items():
      (draft / name).write_bytes(content)
    with _checkpointer(params) as checkpointer:
      checkpointer.save(draft / _NAME, args=ocp.args.PyTreeSave(params))


def has_copy(directory: epath.Path) -> bool:
  """Whether a directory's weights are an Orbax copy."""
  return (directory / _NAME).is_dir()


def load_copy(
  directory: epath.Path, policy: Policy, mesh: Mesh | None
) -> PyTree:
  """The parameters of a copy, in the policy's `param_dtype`."""
  import orbax.checkpoint as ocp

  like = policy.abstract_params(mesh)
  if mesh is None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=device
      ),
      like,
    )
  with _checkpointer(like) as checkpointer:
    return checkpointer.restore(
      storage.absolute(directory) / _NAME,
      args=ocp.args.PyTreeRestore(
        item=like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
      ),
    )


def _checkpointer(params: PyTree) -> ocp.Checkpointer:
  """Writes and reads without compression, which weights do not yield to.

  Of one parameter and a GiB more at a time.
  """
  import orbax.checkpoint as ocp

  largest = max(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(params)
  )
  return ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(
      use_compression=False,
      use_zarr3=True,
      restore_concurrent_gb=math.ceil(largest / 10**9),
    )
  )
