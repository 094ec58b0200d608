# SPDX-License-Identifier: Apache-2.0
"""Tiling of tokens × vocabulary for TPU kernels: block sizes, specs, padding.

Wanted tokens are those on the mask of `token_stats(mask=…)`; the
kernels get them in front of all others (`covrl.statistics.compaction`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int, PyTree

from covrl.statistics.streaming import Inputs

Axis: TypeAlias = Literal['tokens', 'columns']
# Index of a tile within an outer block: `pl.ds(start, size)`, or a slice.
Slice: TypeAlias = Any

# Block sizes of the outer and the inner axis, the preferred first. Each factor
# is read once per block of the other, so outer blocks are large; small inner
# blocks cost a fixed time per step, large ones compile time.
BLOCKS = ((1024, 256), (512, 256), (256, 256), (256, 128), (128, 128))
# Rows of the outer block that are processed at a time, to keep programs short.
TILE = 256
# Block sizes are multiples of these: SUBLANES tokens, LANES columns.
SUBLANES, LANES = 16, 128
# Bytes of VMEM assumed when compiling without a TPU.
DEFAULT_VMEM = 64 * 2**20
# Fraction of VMEM that blocks may take.
VMEM_SHARE = 7 / 8
# Number of float32 arrays of a block of logits that are live in a step.
LIVE_LOGITS = 6
# Number of per-token values read or written, each padded to a row of lanes.
LIVE_NUMBERS = 18


@dataclasses.dataclass(frozen=True)
class BlockGrid:
  """Grid of blocks of tokens × columns, with one outer and one inner axis.

  Attributes:
    outer: axis of the outer loop; the other axis is iterated for each block.
    num_tokens: number of tokens, not necessarily a multiple of the block size.
    width: model width D.
    vocabulary: number of columns, not necessarily a multiple of the block size.
    dtype: dtype in which hidden states and unembedding are multiplied.
    block: numbers of tokens and columns of a block.
    vmem: bytes of VMEM that a kernel may use.
  """

  outer: Axis
  num_tokens: int
  width: int
  vocabulary: int
  dtype: jnp.dtype
  block: tuple[int, int]
  vmem: int

  @property
  def num_padded_tokens(self) -> int:
    """Number of tokens, padded to whole blocks."""
    return pl.cdiv(self.num_tokens, self.block[0]) * self.block[0]

  @property
  def shape(self) -> tuple[int, int]:
    """Numbers of outer and inner blocks."""
    tokens = self.num_padded_tokens // self.block[0]
    columns = pl.cdiv(self.vocabulary, self.block[1])
    if self.outer == 'tokens':
      return tokens, columns
    return columns, tokens

  @property
  def outer_block_size(self) -> int:
    """Tokens or columns of an outer block."""
    return self.block[int(self.outer == 'columns')]

  def token_spec(self, size: int, *, written: bool = False) -> pl.BlockSpec:
    """Block spec of an array `[N, size]`, which is read or written.

    Blocks without a wanted token are written, with zeros, and not read.
    """
    axis = int(self.outer == 'columns')

    def block_index(*index: Any) -> tuple[Any, int]:
      block, num_wanted = self._token_block(index[axis]), index[2]
      last = jnp.maximum(pl.cdiv(num_wanted[0], self.block[0]) - 1, 0)
      return block if written else jnp.minimum(block, last), 0

    return pl.BlockSpec(
      (self.block[0], size), block_index, pipeline_mode=self._buffers(axis)
    )

  def column_spec(self, size: int) -> pl.BlockSpec:
    """Block spec of an array `[size, V]`.

    The inner blocks are not read for an outer one without a wanted token.
    """
    axis = int(self.outer == 'tokens')

    def block_index(*index: Any) -> tuple[int, Any]:
      if axis == 0:
        return 0, index[0]
      first = self._token_block(index[0]) * self.block[0]
      has_tokens = first < index[2][0]
      return 0, jnp.where(has_tokens, index[1], self.shape[1] - 1)

    return pl.BlockSpec(
      (size, self.block[1]), block_index, pipeline_mode=self._buffers(axis)
    )

  def _token_block(self, index: Any) -> Any:
    """Index of the block of tokens at an index of the grid.

    As the outer axis, every other block is in the first half: cores that share
    the grid get equally many of the blocks at the front, which have wanted tokens.
    """
    if self.outer == 'columns':
      return index
    half = pl.cdiv(self.shape[0], 2)
    return jnp.where(index < half, 2 * index, 2 * (index - half) + 1)

  def _buffers(self, axis: int) -> pl.Buffered:
    """Two buffers for inner blocks, which change every step; one for outer."""
    return pl.Buffered(1 if axis == 0 else 2)

  def input_specs(self) -> Inputs:
    """Block specs of the inputs."""
    specs: dict[str, Any] = {
      'hidden': self.token_spec(self.width),
      'unembedding': self.column_spec(self.width),
      'impossible': self.column_spec(1),
      'targets': self.token_spec(1),
      'temperatures': self.token_spec(1),
    }
    return Inputs(**specs)

  def for_each_tile(
    self, body: Callable[[Slice], None], trips: Int[Array, ''] | None = None
  ) -> None:
    """Loops over the tiles of the outer block; called inside a kernel.

    Args:
      body: function of a tile.
      trips: number of tiles; `None` for all.
    """
    length = self.outer_block_size
    size = min(length, TILE)

    def step(index: Int[Array, ''], _: None) -> None:
      body(pl.ds(pl.multiple_of(index * size, size), size))

    jax.lax.fori_loop(0, length // size if trips is None else trips, step, None)

  def for_each_wanted_tile(
    self, num_wanted: Any
  ) -> Callable[[Callable[[Slice], None]], None]:
    """Returns a decorator like `for_each_tile`, for tiles with a wanted token only.

    Args:
      num_wanted: reference to the number of wanted tokens, which are at the front.
    """
    axis = int(self.outer == 'columns')
    block = self._token_block(pl.program_id(axis))
    num_in_block = jnp.maximum(num_wanted[0] - block * self.block[0], 0)
    tiles = self.outer_block_size // min(self.outer_block_size, TILE)
    if axis == 0:
      trips = jnp.minimum(
        pl.cdiv(num_in_block, min(self.outer_block_size, TILE)), tiles
      )
    else:
      trips = jnp.where(num_in_block > 0, tiles, 0)
    return functools.partial(self.for_each_tile, trips=trips)

  def read_token_values(self, refs: PyTree, tile: Slice) -> PyTree:
    """Per-token values of a tile, or of the whole block if columns are outer."""
    rows = tile if self.outer == 'tokens' else slice(None)
    return jax.tree.map(lambda ref: ref[rows], refs)

  def read_inputs(self, refs: Inputs, tile: Slice) -> Inputs:
    """Inputs of a tile of the outer block; called inside a kernel."""
    tokens, columns = tile, slice(None)
    first = pl.program_id(1) * self.block[1]
    if self.outer == 'columns':
      tokens, columns = columns, tile
      first = pl.program_id(0) * self.block[1] + tile.start
    unembedding = refs.unembedding[:, columns]
    column_index = first + jax.lax.broadcasted_iota(
      jnp.int32, (1, unembedding.shape[1]), 1
    )
    impossible = refs.impossible[:, columns] != 0
    return Inputs(
      hidden=refs.hidden[tokens],
      unembedding=unembedding,
      impossible=impossible | (column_index >= self.vocabulary),
      targets=refs.targets[tokens] - first,
      temperatures=refs.temperatures[tokens],
    )

  def pad_tokens(self, tree: PyTree, value: int = 0) -> PyTree:
    """Pads arrays `[N, …]` to whole blocks."""
    padding = (0, self.num_padded_tokens - self.num_tokens), (0, 0)
    return jax.tree.map(
      lambda x: jnp.pad(x, padding, constant_values=value), tree
    )

  def pad_inputs(self, inputs: Inputs) -> Inputs:
    """Pads the inputs and converts booleans to integers, as kernels need."""
    return inputs._replace(
      hidden=self.pad_tokens(inputs.hidden),
      impossible=inputs.impossible.astype(jnp.int32),
      targets=self.pad_tokens(inputs.targets),
      temperatures=self.pad_tokens(inputs.temperatures, 1),
    )

  def unpad_tokens(self, tree: PyTree) -> PyTree:
    """Inverse of `pad_tokens`."""
    return jax.tree.map(lambda x: x[: self.num_tokens], tree)

  def pallas_call(
    self,
    kernel: Callable[..., None],
    *,
    matmuls: int,
    in_specs: PyTree,
    out_specs: PyTree,
    scratch_shapes: Sequence[Any] = (),
    **arguments: Any,
  ) -> Callable[..., Any]:
    """Calls `pl.pallas_call` with the grid and compiler parameters.

    Args:
      kernel: function of a reference to the number of wanted tokens and of
        references to blocks, run on each block.
      matmuls: number of matrix products of the size of the logits'.
      in_specs: block specs of the arrays.
      out_specs: block specs of the results.
      scratch_shapes: arrays in VMEM.
      **arguments: further arguments of `pl.pallas_call`.

    Returns:
      Function of the number of wanted tokens, `None` for all, and of the arrays.
    """
    logits = self.num_padded_tokens * self.vocabulary
    call = pl.pallas_call(
      kernel,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=self.shape,
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=scratch_shapes,
      ),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'arbitrary'),
        vmem_limit_bytes=self.vmem,
      ),
      cost_estimate=pl.CostEstimate(
        flops=2 * matmuls * logits * self.width,
        transcendentals=logits,
        bytes_accessed=logits * self.width * 4 // max(self.block),
      ),
      **arguments,
    )

    def run(num_wanted: Int[Array, ''] | None, *arrays: PyTree) -> PyTree:
      if num_wanted is None:
        num_wanted = jnp.asarray(self.num_tokens, jnp.int32)
      return call(num_wanted[None], *arrays)

    return run


def make_grid(
  inputs: Inputs, *, outer: Axis, accumulated: jnp.dtype | None = None
) -> BlockGrid:
  """Builds a grid with the largest blocks that fit into VMEM.

  Args:
    inputs: tokens and columns to tile.
    outer: axis of the outer loop.
    accumulated: dtype of the cotangent that each outer block accumulates;
      `None` if there is no such array.
  """
  (num_tokens, width), vocabulary = (
    inputs.hidden.shape,
    inputs.unembedding.shape[1],
  )
  dtype = jnp.dtype(jnp.result_type(inputs.hidden, inputs.unembedding))
  vmem = int(VMEM_SHARE * _vmem())

  def required_bytes(block: tuple[int, int]) -> int:
    outer_size, inner_size = block
    tile = min(outer_size, TILE)
    factors = dtype.itemsize * width * (outer_size + 2 * inner_size)
    logits = LIVE_LOGITS * 4 * tile * inner_size
    token_values = LIVE_NUMBERS * 4 * LANES * max(block)
    cotangent = 0
    if accumulated is not None:
      cotangent = width * (outer_size * (4 + accumulated.itemsize) + tile * 4)
    return factors + logits + token_values + cotangent

  fitting = [block for block in BLOCKS if required_bytes(block) <= vmem]
  outer_size, inner_size = (fitting or BLOCKS[-1:])[0]
  tokens, columns = (
    (outer_size, inner_size) if outer == 'tokens' else (inner_size, outer_size)
  )
  return BlockGrid(
    outer=outer,
    num_tokens=num_tokens,
    width=width,
    vocabulary=vocabulary,
    dtype=dtype,
    block=(
      min(tokens, _rounded_up(num_tokens, SUBLANES)),
      min(columns, _rounded_up(vocabulary, LANES)),
    ),
    vmem=vmem,
  )


def _rounded_up(size: int, unit: int) -> int:
  """Rounds up to whole tiles, or to multiples of `unit` if within one tile."""
  unit = unit if size <= TILE else TILE
  return pl.cdiv(size, unit) * unit


def _vmem() -> int:
  """Bytes of VMEM per core of the TPU that is compiled for."""
  if not pltpu.is_tpu_device():
    return DEFAULT_VMEM
  return pltpu.get_tpu_info().vmem_capacity_bytes
