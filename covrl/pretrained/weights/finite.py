# SPDX-License-Identifier: Apache-2.0
"""Checks that all parameters are finite numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def check_finite(params: PyTree, owner: str) -> None:
  """Checks that all parameters are finite numbers.

  Args:
    params: arrays on any mesh.
    owner: model, file or run that has the parameters, for errors.

  Raises:
    ValueError: a number is not finite; the message names its parameter.

  >>> check_finite({'head': jnp.array([1.0, jnp.nan])}, 'models/a')
  Traceback (most recent call last):
  ValueError: models/a: head must be finite in float32, got NaN or infinity
  """

  def are_finite(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params)

  for path, is_finite in jax.tree.leaves_with_path(jax.jit(are_finite)(params)):
    if not is_finite:
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      dtype = jax.tree.leaves(params)[0].dtype
      raise ValueError(
        f'{owner}: {name} must be finite in {dtype}, got NaN or infinity'
      )
