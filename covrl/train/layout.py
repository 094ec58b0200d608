# SPDX-License-Identifier: Apache-2.0
"""How training state lies on the mesh.

Every program is told where its state goes, because a layout that the compiler
chose would differ from the one that came in and compile the program again.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl import sharding


def replicated_like(leaf: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
  """An array's shape, held whole by every device."""
  return jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=sharding.replicated(mesh)
  )


def abstract_opt_state(
  tx: optax.GradientTransformation, params: PyTree, mesh: Mesh
) -> PyTree:
  """Shapes and shardings of an optimiser's state.

  Moments and the like are laid out as the parameters they belong to.

  Args:
    tx: the parameter chain.
    params: `jax.ShapeDtypeStruct` with shardings.
    mesh: for everything that belongs to no parameter.
  """

  def place(leaf: Any, param: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding)

  return optax.tree.map_params(
    tx,
    place,
    jax.eval_shape(tx.init, params),
    params,
    transform_non_params=lambda leaf: replicated_like(leaf, mesh),
  )


def shardings(abstract: PyTree) -> PyTree:
  """The shardings of abstract arrays."""
  return jax.tree.map(lambda leaf: leaf.sharding, abstract)
