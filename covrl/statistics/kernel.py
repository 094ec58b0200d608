# SPDX-License-Identifier: Apache-2.0
"""Pallas TPU kernels for the sums over the vocabulary and their cotangents.

Three passes, each of which computes the logits block by block in VMEM and never
writes them to memory:

  sums                      per block of tokens, over the vocabulary
  cotangent of hidden       per block of tokens, over the vocabulary: dz Wᵀ
  cotangent of unembedding  per block of columns, over the tokens: (dzᵀ h)ᵀ

Wanted tokens are gathered to the front first, and blocks behind them are neither
read nor multiplied.

Cotangents are accumulated in float32 in VMEM and written once, in the requested
dtype: beside the results, only a few numbers per token are stored. The price is
that both cotangents compute the logits again; sharing them would mean
accumulating one of the cotangents in memory.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.statistics.compaction import Blocks
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
from covrl.statistics.tiling import Slice, make_grid

# Reference to an array inside a kernel; Pallas has no public name for its type.
Ref: TypeAlias = Any


def sums(
  inputs: Inputs,
  wanted: Bool[Array, 'N 1'] | None = None,
  *,
  soft_cap: int | float | None,
  moments: bool,
) -> SoftmaxSums:
  """Softmax sums of each token over all columns of the vocabulary.

  Args:
    inputs: tokens and columns.
    wanted: tokens to process; the sums of others are empty. `None` for all.
    soft_cap: bound of |logits|, or `None`.
    moments: whether to compute the sums for moments.
  """
  blocks = Blocks(wanted)
  gathered = gather_inputs(inputs, blocks)
  grid = make_grid(gathered, outer='tokens')
  wide_dtype = statistics_dtype(inputs.hidden, inputs.unembedding)
  like = jax.ShapeDtypeStruct((grid.num_padded_tokens, 1), wide_dtype)
  shapes = jax.eval_shape(functools.partial(empty_sums, moments=moments), like)

  def kernel(num_wanted: Ref, refs: Inputs, *sum_refs: Ref) -> None:
    out = SoftmaxSums(*sum_refs)

    @pl.when(pl.program_id(1) == 0)
    def _init() -> None:
      _write(out, empty_sums(out.peak[...], moments=moments), slice(None))

    @grid.for_each_wanted_tile(num_wanted)
    def _accumulate(tile: Slice) -> None:
      logits = logit_tile(grid.read_inputs(refs, tile), soft_cap)
      merged = merge_sums(
        grid.read_token_values(out, tile), tile_sums(logits, moments=moments)
      )
      _write(out, merged, tile)

  call = grid.pallas_call(
    kernel,
    name='token_sums',
    matmuls=1,
    in_specs=(grid.input_specs(),),
    out_specs=jax.tree.map(lambda _: grid.token_spec(1, written=True), shapes),
    out_shape=shapes,
  )
  gathered_sums = grid.unpad_tokens(
    call(blocks.num_wanted, grid.pad_inputs(gathered))
  )
  empty = empty_sums(inputs.temperatures, moments=moments)
  return jax.tree.map(blocks.scatter, gathered_sums, empty)


def cotangents(
  inputs: Inputs,
  residuals: Residuals,
  wanted: Bool[Array, 'N 1'] | None = None,
  *,
  soft_cap: int | float | None,
  dtypes: tuple[jnp.dtype, jnp.dtype],
) -> tuple[Float[Array, 'N D'], Float[Array, 'D V']]:
  """Cotangents of hidden states and unembedding, in the given dtypes.

  Args:
    inputs: tokens and columns.
    residuals: residuals of the forward pass and cotangents of the statistics.
    wanted: tokens to process; the cotangents of others are 0. `None` for all.
    soft_cap: bound of |logits|, or `None`.
    dtypes: dtypes of the two results.
  """
  blocks = Blocks(wanted)
  gathered = gather_inputs(inputs, blocks)
  residuals = jax.tree.map(blocks.gather, residuals)
  num_wanted = blocks.num_wanted
  hidden, unembedding = (
    _cotangent(factor, gathered, residuals, num_wanted, soft_cap, dtype)
    for factor, dtype in zip(('hidden', 'unembedding'), dtypes, strict=True)
  )
  return blocks.scatter(hidden), unembedding


def _cotangent(
  factor: Literal['hidden', 'unembedding'],
  inputs: Inputs,
  residuals: Residuals,
  num_wanted: Int[Array, ''] | None,
  soft_cap: int | float | None,
  dtype: jnp.dtype,
) -> Float[Array, '_ _']:
  """Cotangent of one factor of the logits: outer blocks sum over inner blocks."""
  is_hidden = factor == 'hidden'
  grid = make_grid(
    inputs, outer='tokens' if is_hidden else 'columns', accumulated=dtype
  )

  def kernel(
    num_wanted: Ref,
    refs: Inputs,
    residual_refs: Residuals,
    out: Ref,
    total: Ref,
  ) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _init() -> None:
      total[...] = jnp.zeros_like(total)

    @grid.for_each_wanted_tile(num_wanted)
    def _accumulate(tile: Slice) -> None:
      block = grid.read_inputs(refs, tile)
      cotangent = logit_cotangent(
        block, grid.read_token_values(residual_refs, tile), soft_cap
      )
      if is_hidden:
        # Impossible columns may hold −∞, and 0 · ∞ is NaN.
        columns = jnp.where(block.impossible, 0, block.unembedding)
        total[tile] += _matmul(cotangent, columns, (1, 1), grid.dtype)
      else:
        total[tile] += _matmul(cotangent, block.hidden, (0, 0), grid.dtype)

    @pl.when(pl.program_id(1) == grid.shape[1] - 1)
    def _finish() -> None:
      @grid.for_each_tile
      def _store(tile: Slice) -> None:
        if is_hidden:
          out[tile] = total[tile].astype(dtype)
        else:
          out[:, tile] = total[tile].T.astype(dtype)

  if is_hidden:
    out_spec, shape = (
      grid.token_spec(grid.width, written=True),
      (grid.num_padded_tokens, grid.width),
    )
  else:
    out_spec, shape = (
      grid.column_spec(grid.width),
      (grid.width, grid.vocabulary),
    )
  call = grid.pallas_call(
    kernel,
    name=f'token_sums_{factor}',
    matmuls=2,
    in_specs=(
      grid.input_specs(),
      jax.tree.map(lambda _: grid.token_spec(1), residuals),
    ),
    out_specs=out_spec,
    out_shape=jax.ShapeDtypeStruct(shape, dtype),
    scratch_shapes=[
      pltpu.VMEM((grid.outer_block_size, grid.width), jnp.float32)
    ],
  )
  # Padding tokens have cotangents of 0 and add nothing to the unembedding's.
  result = call(num_wanted, grid.pad_inputs(inputs), grid.pad_tokens(residuals))
  return grid.unpad_tokens(result) if is_hidden else result


def _write(refs: PyTree, values: PyTree, rows: Slice) -> None:
  """Writes a tree of values to some rows of a tree of references."""

  def write(ref: Ref, value: Array) -> None:
    ref[rows] = value

  jax.tree.map(write, refs, values)


def _matmul(
  cotangent: Float[Array, 'N V'],
  factor: Float[Array, '_ _'],
  contracted_axes: tuple[int, int],
  dtype: jnp.dtype,
) -> Float[Array, '_ _']:
  """Matrix product in float32 of factors cast to `dtype`.

  Args:
    cotangent: cotangent of the logits.
    factor: columns of the unembedding, or hidden states.
    contracted_axes: axis of each that is summed over.
    dtype: dtype of the factors.
  """
  cotangent, factor = cotangent.astype(dtype), factor.astype(dtype)
  return jax.lax.dot_general(
    cotangent,
    factor,
    (((contracted_axes[0],), (contracted_axes[1],)), ((), ())),
    precision=matmul_precision(cotangent, factor),
    preferred_element_type=jnp.float32,
  )
