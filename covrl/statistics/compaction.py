# SPDX-License-Identifier: Apache-2.0
"""Compaction: processes only the wanted tokens of a list, in blocks of rows.

The wanted tokens are moved to the front, in their order. A loop or a kernel then
takes one block of them after the other, as many as there are: shapes are static,
and the trip count is traced. Nothing is sorted, and a device handles its own
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

# Number of blocks that a list is cut into: on average half a block holds no wanted
# token but is processed, and products of small blocks are slow.
NUM_BLOCKS = 8
# Fewest rows of a block, if there are several.
MIN_ROWS_PER_BLOCK = 512

Block: TypeAlias = Int[Array, ''] | int
State = TypeVar('State')
Tree = TypeVar('Tree', bound=PyTree)


class Blocks:
  """Blocks of the wanted tokens of a list, or all tokens as one block."""

  def __init__(self, wanted: Bool[Array, 'N 1'] | None) -> None:
    """Computes the order that moves the wanted tokens to the front.

    Args:
      wanted: tokens to process; `None` for all, without a copy.
    """
    self._order = None if wanted is None else _order_of(wanted)

  @property
  def num_wanted(self) -> Int[Array, ''] | None:
    """Number of wanted tokens; `None` if all are."""
    return None if self._order is None else self._order.num_wanted

  def gather(self, array: Array, fill: int = 0) -> Array:
    """Moves the rows of wanted tokens to the front; `fill` follows them."""
    if self._order is None:
      return array
    return array.at[self._order.source].get(mode='fill', fill_value=fill)

  def scatter(self, array: Array, fill: Array | int = 0) -> Array:
    """Inverse of `gather`: rows `[N, …]`, `fill` for tokens not wanted."""
    if self._order is None:
      return array
    return jnp.where(self._order.wanted, array[self._order.new_index], fill)

  def loop(self, body: Callable[[Block, State], State], state: State) -> State:
    """Runs a function of a block and a state on every block with a token."""
    if self._order is None:
      return body(0, state)
    max_trips = self._order.source.shape[0] // self._order.size
    # `covrl compile` reads the number of trips, which depends on data, from the scope.
    with jax.named_scope(f'about_{max_trips}_trips'):
      return jax.lax.fori_loop(0, self._order.trips, body, state)

  def read(self, tree: Tree, block: Block) -> Tree:
    """Returns the rows of a block of gathered arrays."""
    if self._order is None:
      return tree
    size = self._order.size
    return jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, block * size, size), tree
    )

  def write(self, tree: Tree, rows: Tree, block: Block) -> Tree:
    """Replaces the rows of a block of gathered arrays."""
    if self._order is None:
      return rows
    first = block * self._order.size
    return jax.tree.map(
      lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, first, 0),
      tree,
      rows,
    )


class _Order(NamedTuple):
  """Order of a list's tokens, the wanted ones first.

  Attributes:
    wanted: the wanted tokens.
    new_index: new index of each wanted token: the number of wanted ones before it.
    source: index of the token at each new index, N where there is no token;
      padded to whole blocks.
    size: rows of a block.
    num_wanted: number of wanted tokens.
    trips: number of blocks with a token.
  """

  wanted: Bool[Array, 'N 1']
  new_index: Int[Array, ' N']
  source: Int[Array, ' P']
  size: int
  num_wanted: Int[Array, '']
  trips: Int[Array, '']


def block_rows(length: int) -> int:
  """Number of rows of a block of a list of `length` tokens."""
  num_blocks = max(min(NUM_BLOCKS, length // MIN_ROWS_PER_BLOCK), 1)
  return max(-(-length // num_blocks), 1)


def _order_of(wanted: Bool[Array, 'N 1']) -> _Order:
  """Order of a list's tokens, and the size and number of its blocks."""
  length, flags = wanted.shape[0], wanted[:, 0]
  size = block_rows(length)
  new_index = jnp.cumsum(flags, dtype=jnp.int32) - 1
  source = jnp.full(max(-(-length // size), 1) * size, length, jnp.int32)
  source = source.at[jnp.where(flags, new_index, source.size)].set(
    jnp.arange(length, dtype=jnp.int32), mode='drop'
  )
  num_wanted = jnp.sum(flags, dtype=jnp.int32)
  trips = (num_wanted + size - 1) // size
  return _Order(wanted, new_index, source, size, num_wanted, trips)
