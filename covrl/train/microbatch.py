# SPDX-License-Identifier: Apache-2.0
"""A batch's rows, a part at a time: what bounds the memory of an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Tree = TypeVar('Tree')
Added = TypeVar('Added')
Joined = TypeVar('Joined')


def in_parts(
  run: Callable[[Tree], tuple[Added, Joined]], rows: Tree, count: int
) -> tuple[Added, Joined]:
  """Runs over all rows in `count` parts, one after the other.

  Args:
    run: from some rows to what is added up over the parts, and to `[B, …]`
      arrays of these rows.
    rows: `[B, …]` arrays, and scalars that every part is given.
    count: divides B.

  Returns:
    The sums, and the arrays of all rows in their order.
  """
  if count == 1:
    return run(rows)
  parts = split_rows(rows, count)
  shapes, _ = jax.eval_shape(run, jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def body(total: Added, part: Tree) -> tuple[Added, Joined]:
    added, joined = run(part)
    return jax.tree.map(jnp.add, total, added), joined

  added, joined = jax.lax.scan(body, zeros, parts)
  return added, join_rows(joined)


def split_rows(tree: PyTree, count: int) -> PyTree:
  """Rows `[B, …]` to `[count, B / count, …]`, strided; scalars are repeated.

  Strided, so that each part of a batch that is split over a mesh is split over
  the whole mesh too; contiguous parts would be gathered.
  """

  def split(leaf: Array) -> Array:
    if leaf.ndim == 0:
      return jnp.broadcast_to(leaf, (count,))
    rows = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:])
    return jnp.swapaxes(rows, 0, 1)

  return jax.tree.map(split, tree)


def join_rows(tree: PyTree) -> PyTree:
  """Inverse of `split_rows`."""
  return jax.tree.map(
    lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), tree
  )
