# SPDX-License-Identifier: Apache-2.0
"""The sums over a vocabulary, and pull-backs, some columns at a time in XLA.

It is the vocabulary that is cut: each column of the unembedding's cotangent is
then one product over all tokens, written once, and what adds up from chunk to
chunk is of the size of the hidden states. Chunks of tokens would add up an
array of the unembedding's size, many times larger, in float32.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from covrl.statistics.reference import product_precision, statistics_dtype
from covrl.statistics.streaming import (
  Inputs,
  Residual,
  Sums,
  logit_cotangent,
  merge,
  nothing,
  sums_of,
  tile_of,
)

Cotangents: TypeAlias = tuple[Float[Array, 'N D'], Float[Array, 'D V']]


def sums(
  inputs: Inputs, *, soft_cap: int | float | None, moments: bool, size: int
) -> Sums:
  """The sums over all columns, `size` of them at a time."""

  def step(total: Sums, index: Int[Array, '']) -> tuple[Sums, None]:
    _, chunk = _chunk(inputs, index, size)
    tile = tile_of(chunk, soft_cap)
    return merge(total, sums_of(tile, moments=moments)), None

  start = nothing(inputs.temperatures, moments=moments)
  total, _ = jax.lax.scan(step, start, jnp.arange(_chunks(inputs, size)))
  return total


def cotangents(
  inputs: Inputs,
  residual: Residual,
  *,
  soft_cap: int | float | None,
  dtypes: tuple[jnp.dtype, jnp.dtype],
  size: int,
) -> Cotangents:
  """The pull-back, in types at choice, `size` columns at a time."""
  wide = statistics_dtype(inputs.hidden, inputs.unembedding)
  multiply = functools.partial(
    jnp.einsum,
    precision=product_precision(inputs.hidden, inputs.unembedding),
    preferred_element_type=wide,
  )

  def step(state: Cotangents, index: Int[Array, '']) -> tuple[Cotangents, None]:
    back, columns = state
    first, chunk = _chunk(inputs, index, size)
    pull = logit_cotangent(chunk, residual, soft_cap)
    back += multiply('nv,dv->nd', pull, chunk.unembedding)
    part = multiply('nd,nv->dv', inputs.hidden, pull).astype(columns.dtype)
    columns = jax.lax.dynamic_update_slice_in_dim(columns, part, first, axis=1)
    return (back, columns), None

  start = (
    jnp.zeros(inputs.hidden.shape, wide),
    jnp.zeros(inputs.unembedding.shape, dtypes[1]),
  )
  # The last chunk first: what it writes to columns that it shares with the one
  # before it is then overwritten by the latter, whose they are.
  indices = jnp.arange(_chunks(inputs, size))
  (back, columns), _ = jax.lax.scan(step, start, indices, reverse=True)
  return back.astype(dtypes[0]), columns


def _chunks(inputs: Inputs, size: int) -> int:
  """How many there are."""
  return -(-inputs.unembedding.shape[1] // size)


def _chunk(
  inputs: Inputs, index: Int[Array, ''], size: int
) -> tuple[Int[Array, ''], Inputs]:
  """A chunk's first column and inputs.

  The last one ends with the vocabulary; columns that the one before it holds as
  well are impossible in it.
  """
  begin = index * size
  first = jnp.minimum(begin, inputs.unembedding.shape[1] - size)

  def cut(x: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, first, size, axis=1)

  shared = (first + jnp.arange(size) < begin)[None]
  impossible = cut(inputs.impossible) | shared
  return first, inputs._replace(
    unembedding=jnp.where(impossible, 0, cut(inputs.unembedding)),
    impossible=impossible,
    targets=jnp.where(inputs.targets < begin, -1, inputs.targets - first),
  )
