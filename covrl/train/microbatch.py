# SPDX-License-Identifier: Apache-2.0
"""Micro-batching with `lax.scan`, which bounds the memory of an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Tree = TypeVar('Tree')
Summed = TypeVar('Summed')
PerRow = TypeVar('PerRow')


def over_micro_batches(
  run: Callable[[Tree], tuple[Summed, PerRow]], rows: Tree, count: int
) -> tuple[Summed, PerRow]:
  """Runs a function on one micro-batch after the other.

  `optax.microbatch` splits every array of an argument; here scalars may be among
  the arrays of rows.

  Args:
    run: maps some rows to values that are summed over micro-batches and to
      `[B, …]` arrays of these rows.
    rows: `[B, …]` arrays, and scalars that every micro-batch receives.
    count: number of micro-batches; divides B.

  Returns:
    The sums, and the arrays of all rows in their order.
  """
  if count == 1:
    return run(rows)
  micro_batches = split_rows(rows, count)
  shapes, _ = jax.eval_shape(run, jax.tree.map(lambda x: x[0], micro_batches))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def body(total: Summed, micro_batch: Tree) -> tuple[Summed, PerRow]:
    summed, per_row = run(micro_batch)
    return jax.tree.map(jnp.add, total, summed), per_row

  summed, per_row = jax.lax.scan(body, zeros, micro_batches)
  return summed, join_rows(per_row)


def split_rows(tree: PyTree, count: int) -> PyTree:
  """Splits rows `[B, …]` into `[count, B / count, …]`, strided; repeats scalars.

  Strided, so that each micro-batch of a sharded batch is sharded over the whole
  mesh; contiguous micro-batches would have to be gathered.
  """

  def split(leaf: Array) -> Array:
    if leaf.ndim == 0:
      return jnp.broadcast_to(leaf, (count,))
    rows = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:])
    return jnp.swapaxes(rows, 0, 1)

  return jax.tree.map(split, tree)


def join_rows(tree: PyTree) -> PyTree:
  """Joins rows again, the inverse of `split_rows`."""
  return jax.tree.map(
    lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), tree
  )
