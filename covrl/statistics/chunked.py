# SPDX-License-Identifier: Apache-2.0
"""Chunked XLA implementation of the sums over the vocabulary and cotangents.

Chunks are of the vocabulary: each column of the unembedding's cotangent is then
one product over all tokens, written once, and the array accumulated from chunk
to chunk has the size of the hidden states. Chunks of tokens would accumulate an
array of the unembedding's size, many times larger, in float32.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.statistics.compaction import Block, Blocks
from covrl.statistics.reference import matmul_precision, statistics_dtype
from covrl.statistics.streaming import (
  Inputs,
  Residuals,
  SoftmaxSums,
  empty_sums,
  gather_inputs,
  logit_cotangent,
  logit_tile,
  merge_sums,
  tile_sums,
)

Cotangents: TypeAlias = tuple[Float[Array, 'N D'], Float[Array, 'D V']]


def sums(
  inputs: Inputs,
  wanted: Bool[Array, 'N 1'] | None = None,
  *,
  soft_cap: int | float | None,
  moments: bool,
  size: int,
) -> SoftmaxSums:
  """Softmax sums of each token over all columns of the vocabulary.

  Args:
    inputs: tokens and columns.
    wanted: tokens to process; the sums of others are empty. `None` for all.
    soft_cap: bound of |logits|, or `None`.
    moments: whether to compute the sums for moments.
    size: columns per chunk.
  """
  blocks = Blocks(wanted)
  gathered = gather_inputs(inputs, blocks)

  def step(
    total: SoftmaxSums, index: Int[Array, '']
  ) -> tuple[SoftmaxSums, None]:
    _, chunk = _chunk_inputs(gathered, index, size)

    def add(block: Block, total: SoftmaxSums) -> SoftmaxSums:
      tile = logit_tile(_block_inputs(chunk, blocks, block), soft_cap)
      merged = merge_sums(
        blocks.read(total, block), tile_sums(tile, moments=moments)
      )
      return blocks.write(total, merged, block)

    return blocks.loop(add, total), None

  start = empty_sums(gathered.temperatures, moments=moments)
  total, _ = jax.lax.scan(step, start, jnp.arange(_num_chunks(inputs, size)))
  empty = empty_sums(inputs.temperatures, moments=moments)
  return jax.tree.map(blocks.scatter, total, empty)


def cotangents(
  inputs: Inputs,
  residuals: Residuals,
  wanted: Bool[Array, 'N 1'] | None = None,
  *,
  soft_cap: int | float | None,
  dtypes: tuple[jnp.dtype, jnp.dtype],
  size: int,
  on_gpu: bool = False,
) -> Cotangents:
  """Cotangents of hidden states and unembedding, in the given dtypes.

  Args:
    inputs: tokens and columns.
    residuals: residuals of the forward pass and cotangents of the statistics.
    wanted: tokens to process; the cotangents of others are 0. `None` for all.
    soft_cap: bound of |logits|, or `None`.
    dtypes: dtypes of the two results.
    size: columns per chunk.
    on_gpu: whether to multiply the logits' cotangent in the type of the other
      factor.
  """
  wide_dtype = statistics_dtype(inputs.hidden, inputs.unembedding)
  narrow_dtype = jnp.result_type(inputs.hidden, inputs.unembedding)
  multiply = functools.partial(
    jnp.einsum,
    precision=matmul_precision(inputs.hidden, inputs.unembedding),
    preferred_element_type=wide_dtype,
  )

  blocks = Blocks(wanted)
  gathered = gather_inputs(inputs, blocks)
  residuals = jax.tree.map(blocks.gather, residuals)

  def step(state: Cotangents, index: Int[Array, '']) -> tuple[Cotangents, None]:
    first_column, chunk = _chunk_inputs(gathered, index, size)

    def add(block: Block, state: Cotangents) -> Cotangents:
      hidden_cotangent, chunk_cotangent = state
      rows = _block_inputs(chunk, blocks, block)
      cotangent = logit_cotangent(rows, blocks.read(residuals, block), soft_cap)
      if on_gpu:
        # As on TPUs: mixed with float32, bfloat16 factors would be multiplied in
        # TF32, at half the rate.
        cotangent = cotangent.astype(narrow_dtype)
      hidden_rows = multiply('nv,dv->nd', cotangent, rows.unembedding)
      hidden_rows += blocks.read(hidden_cotangent, block)
      chunk_cotangent += multiply('nd,nv->dv', rows.hidden, cotangent)
      return blocks.write(hidden_cotangent, hidden_rows, block), chunk_cotangent

    hidden_cotangent, unembedding_cotangent = state
    chunk_cotangent = jnp.zeros(chunk.unembedding.shape, wide_dtype)
    hidden_cotangent, chunk_cotangent = blocks.loop(
      add, (hidden_cotangent, chunk_cotangent)
    )
    unembedding_cotangent = jax.lax.dynamic_update_slice_in_dim(
      unembedding_cotangent,
      chunk_cotangent.astype(unembedding_cotangent.dtype),
      first_column,
      axis=1,
    )
    return (hidden_cotangent, unembedding_cotangent), None

  start = (
    jnp.zeros(gathered.hidden.shape, wide_dtype),
    jnp.zeros(inputs.unembedding.shape, dtypes[1]),
  )
  # The last chunk first: the zeros that it writes to columns shared with the
  # chunk before it are then overwritten by that one.
  indices = jnp.arange(_num_chunks(inputs, size))
  (hidden_cotangent, unembedding_cotangent), _ = jax.lax.scan(
    step, start, indices, reverse=True
  )
  return blocks.scatter(
    hidden_cotangent.astype(dtypes[0])
  ), unembedding_cotangent


def _block_inputs(inputs: Inputs, blocks: Blocks, index: Block) -> Inputs:
  """Inputs restricted to the tokens of a block."""
  hidden, targets, temperatures = blocks.read(
    (inputs.hidden, inputs.targets, inputs.temperatures), index
  )
  return inputs._replace(
    hidden=hidden, targets=targets, temperatures=temperatures
  )


def _num_chunks(inputs: Inputs, size: int) -> int:
  """Number of chunks of `size` columns."""
  return -(-inputs.unembedding.shape[1] // size)


def _chunk_inputs(
  inputs: Inputs, index: Int[Array, ''], size: int
) -> tuple[Int[Array, ''], Inputs]:
  """First column and inputs of a chunk.

  The last chunk ends with the vocabulary, and may overlap the one before it;
  the shared columns are marked impossible in the last.
  """
  begin = index * size
  first_column = jnp.minimum(begin, inputs.unembedding.shape[1] - size)

  def slice_columns(x: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, first_column, size, axis=1)

  is_shared = (first_column + jnp.arange(size) < begin)[None]
  impossible = slice_columns(inputs.impossible) | is_shared
  return first_column, inputs._replace(
    unembedding=jnp.where(impossible, 0, slice_columns(inputs.unembedding)),
    impossible=impossible,
    targets=jnp.where(
      inputs.targets < begin, -1, inputs.targets - first_column
    ),
  )
