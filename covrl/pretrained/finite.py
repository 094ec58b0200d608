# SPDX-License-Identifier: Apache-2.0
"""Checks of parameters: all finite numbers, of the shapes of a policy."""

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


def check_shapes(params: PyTree, expected: PyTree) -> None:
  """Checks that parameters are those of a policy, by names and shapes.

  Args:
    params: arrays.
    expected: the policy's arrays, or their shapes.

  Raises:
    ValueError: a parameter is missing, unknown or of another shape.

  >>> check_shapes({'head': jnp.zeros(3)}, {'head': jnp.zeros(4)})
  Traceback (most recent call last):
  ValueError: params must have the shapes of the policy, head (4,), got (3,)
  """

  def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {
      jax.tree_util.keystr(path, simple=True, separator='.'): jnp.shape(leaf)
      for path, leaf in jax.tree.leaves_with_path(tree)
    }

  given, required = shapes(params), shapes(expected)
  for name in sorted(given.keys() | required.keys()):
    if given.get(name) != required.get(name):
      raise ValueError(
        'params must have the shapes of the policy,'
        f' {name} {required.get(name, "absent")}, got'
        f' {given.get(name, "none")}'
      )
