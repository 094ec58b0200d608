# SPDX-License-Identifier: Apache-2.0
"""Checks of what a gradient transformation returns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def check_pair(name: str, result: object) -> tuple[Any, Any]:
  """Refuses anything but a pair of updates and state.

  Args:
    name: name of the transformation, for the error.
    result: what its `update` has returned.

  Raises:
    TypeError: it is not a pair.

  >>> check_pair('a parameter chain', {'w': 1.0})
  Traceback (most recent call last):
    ...
  TypeError: a parameter chain must return its updates and its next state, got dict
  """
  match result:
    case (updates, state):
      return updates, state
  raise TypeError(
    f'{name} must return its updates and its next state, got'
    f' {type(result).__name__}'
  )


def check_state(name: str, after: PyTree, before: PyTree) -> None:
  """Refuses a state of another structure, shape or dtype than the one before.

  Programs are compiled for the state that the run begins with. An array of another
  shape would be broadcast, and one of another dtype fails in the next update. A
  new dtype is accepted if its promotion with the one before gives the one before,
  such as bfloat16 in place of float32.

  Args:
    name: name of the transformation, for the error.
    after: the state that it has returned.
    before: the state that it was given.

  Raises:
    TypeError: they differ.

  >>> check_state('a parameter chain', {'count': 0.5}, {'count': 0})
  Traceback (most recent call last):
    ...
  TypeError: a parameter chain must keep the form of its state['count'], int32[], \
got float32[]
  """
  leaves_before, structure = jax.tree_util.tree_flatten_with_path(before)
  if jax.tree.structure(after) != structure:
    raise TypeError(
      f'{name} must keep the structure of its state, {structure!s:.120}, got'
      f' {jax.tree.structure(after)!s:.120}'
    )
  for (path, old), new in zip(
    leaves_before, jax.tree.leaves(after), strict=True
  ):
    if jnp.shape(old) != jnp.shape(new) or not _keeps_dtype(old, new):
      raise TypeError(
        f'{name} must keep the form of its state{jax.tree_util.keystr(path)},'
        f' {_form(old)}, got {_form(new)}'
      )


def _keeps_dtype(old: Any, new: Any) -> bool:
  """Whether the promotion of both dtypes is the old one."""
  before, after = jnp.result_type(old), jnp.result_type(new)
  if before == after:
    return True
  if jnp.issubdtype(before, jax.dtypes.extended) or jnp.issubdtype(
    after, jax.dtypes.extended
  ):
    return False
  return jnp.promote_types(before, after) == before


def _form(leaf: Any) -> str:
  """Returns dtype and shape of an array."""
  return f'{jnp.result_type(leaf)}{list(jnp.shape(leaf))}'
