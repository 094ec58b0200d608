# SPDX-License-Identifier: Apache-2.0
"""The sums over a vocabulary, and pull-backs, as Pallas kernels for TPU.

Three passes, each of which makes the logits a block at a time in VMEM and never
writes one to memory:

  sums            per block of tokens, over the vocabulary
  of hidden       per block of tokens, over the vocabulary: dz Wᵀ
  of unembedding  per block of columns, over the tokens: (dzᵀ h)ᵀ

A derivative is summed in float32 in VMEM and written once, in the type asked
for: beside the results there are no arrays but a few numbers per token. The
price is that the last two make the logits each; to share them, one derivative
would have to be summed through memory.
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, PyTree

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
from covrl.statistics.tiling import Part, plan

# What a kernel sees of an array; Pallas has no public name for its type.
Ref: TypeAlias = Any


def sums(
  inputs: Inputs, *, soft_cap: int | float | None, moments: bool
) -> Sums:
  """The sums over all columns."""
  sweep = plan(inputs, outer='tokens')
  wide = statistics_dtype(inputs.hidden, inputs.unembedding)
  like = jax.ShapeDtypeStruct((sweep.rows, 1), wide)
  shapes = jax.eval_shape(functools.partial(nothing, moments=moments), like)

  def kernel(refs: Inputs, *parts: Ref) -> None:
    out = Sums(*parts)

    @pl.when(pl.program_id(1) == 0)
    def _start() -> None:
      _write(out, nothing(out.peak[...], moments=moments), slice(None))

    @sweep.each_tile
    def _tile(part: Part) -> None:
      tile = tile_of(sweep.read(refs, part), soft_cap)
      merged = merge(sweep.of_part(out, part), sums_of(tile, moments=moments))
      _write(out, merged, part)

  call = sweep.call(
    kernel,
    name='token_sums',
    products=1,
    in_specs=(sweep.specs(),),
    out_specs=jax.tree.map(lambda _: sweep.of_tokens(1), shapes),
    out_shape=shapes,
  )
  return sweep.cut(call(sweep.fill_inputs(inputs)))


def cotangents(
  inputs: Inputs,
  residual: Residual,
  *,
  soft_cap: int | float | None,
  dtypes: tuple[jnp.dtype, jnp.dtype],
) -> tuple[Float[Array, 'N D'], Float[Array, 'D V']]:
  """The pull-back, in types at choice."""
  return (
    _of_hidden(inputs, residual, soft_cap, dtypes[0]),
    _of_unembedding(inputs, residual, soft_cap, dtypes[1]),
  )


def _of_hidden(
  inputs: Inputs,
  residual: Residual,
  soft_cap: int | float | None,
  dtype: jnp.dtype,
) -> Float[Array, 'N D']:
  """The pull-back's part for hidden states, in a type at choice."""
  sweep = plan(inputs, outer='tokens', kept=dtype)

  def kernel(refs: Inputs, parts: Residual, out: Ref, total: Ref) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _start() -> None:
      total[...] = jnp.zeros_like(total)

    @sweep.each_tile
    def _tile(part: Part) -> None:
      block = sweep.read(refs, part)
      pull = logit_cotangent(block, sweep.of_part(parts, part), soft_cap)
      # An impossible column holds anything, and 0 · ∞ is no number.
      columns = jnp.where(block.impossible, 0, block.unembedding)
      total[part] += _product(pull, columns, (1, 1), sweep.factor)

    @pl.when(pl.program_id(1) == sweep.grid[1] - 1)
    def _end() -> None:
      @sweep.each_tile
      def _tile(part: Part) -> None:
        out[part] = total[part].astype(dtype)

  call = sweep.call(
    kernel,
    name='token_sums_hidden',
    products=2,
    in_specs=(
      sweep.specs(),
      jax.tree.map(lambda _: sweep.of_tokens(1), residual),
    ),
    out_specs=sweep.of_tokens(sweep.width),
    out_shape=jax.ShapeDtypeStruct((sweep.rows, sweep.width), dtype),
    scratch_shapes=[pltpu.VMEM((sweep.block[0], sweep.width), jnp.float32)],
  )
  return sweep.cut(call(sweep.fill_inputs(inputs), sweep.fill(residual)))


def _of_unembedding(
  inputs: Inputs,
  residual: Residual,
  soft_cap: int | float | None,
  dtype: jnp.dtype,
) -> Float[Array, 'D V']:
  """The pull-back's part for the unembedding, in a type at choice."""
  sweep = plan(inputs, outer='columns', kept=dtype)

  def kernel(refs: Inputs, parts: Residual, out: Ref, total: Ref) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _start() -> None:
      total[...] = jnp.zeros_like(total)

    @sweep.each_tile
    def _tile(part: Part) -> None:
      block = sweep.read(refs, part)
      pull = logit_cotangent(block, sweep.of_part(parts, part), soft_cap)
      total[part] += _product(pull, block.hidden, (0, 0), sweep.factor)

    @pl.when(pl.program_id(1) == sweep.grid[1] - 1)
    def _end() -> None:
      @sweep.each_tile
      def _tile(part: Part) -> None:
        out[:, part] = total[part].T.astype(dtype)

  call = sweep.call(
    kernel,
    name='token_sums_unembedding',
    products=2,
    in_specs=(
      sweep.specs(),
      jax.tree.map(lambda _: sweep.of_tokens(1), residual),
    ),
    out_specs=sweep.of_columns(sweep.width),
    out_shape=jax.ShapeDtypeStruct((sweep.width, sweep.vocabulary), dtype),
    scratch_shapes=[pltpu.VMEM((sweep.block[1], sweep.width), jnp.float32)],
  )
  # Tokens that only fill a block have no signal, and pull nothing.
  return call(sweep.fill_inputs(inputs), sweep.fill(residual))


def _write(refs: PyTree, values: PyTree, part: Part) -> None:
  """Writes what a tree of references has at some rows."""

  def write(ref: Ref, value: Array) -> None:
    ref[part] = value

  jax.tree.map(write, refs, values)


def _product(
  pull: Float[Array, 'N V'],
  factor: Float[Array, '_ _'],
  contract: tuple[int, int],
  dtype: jnp.dtype,
) -> Float[Array, '_ _']:
  """A matrix product, in float32, of factors in the inputs' type."""
  pull, factor = pull.astype(dtype), factor.astype(dtype)
  return jax.lax.dot_general(
    pull,
    factor,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=product_precision(pull, factor),
    preferred_element_type=jnp.float32,
  )
