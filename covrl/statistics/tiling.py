# SPDX-License-Identifier: Apache-2.0
"""How a TPU kernel goes through tokens and vocabulary, block by block."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int, PyTree

from covrl.statistics.streaming import Inputs

Axis: TypeAlias = Literal['tokens', 'columns']
Part: TypeAlias = Any

# Blocks of the outer and of the inner axis, the preferred first. A factor is read
# once per block of the other, so the outer ones are large; what the inner ones
# cost is a fixed time per step, and the compiler's.
BLOCKS = ((1024, 256), (512, 256), (256, 256), (256, 128), (128, 128))
# A step takes its outer block in parts of this size, which keeps the program
# short.
TILE = 256
# Tokens and columns of a block come in multiples of these.
SUBLANES, LANES = 16, 128
# Of a chip that is compiled for without a mesh to name it.
DEFAULT_VMEM = 64 * 2**20
# How much of it blocks may take.
VMEM_SHARE = 7 / 8
# Float32 arrays of a block of logits that a step needs at once.
LIVE_LOGITS = 6
# Numbers per token that it reads or writes, each in a row of lanes.
LIVE_NUMBERS = 18


@dataclasses.dataclass(frozen=True)
class Sweep:
  """All blocks of tokens × columns, one axis outer and one inner.

  Attributes:
    outer: the axis whose blocks stay while the other's go by.
    count: tokens, of which there may be too few for the last block.
    width: of the model.
    vocabulary: columns, of which there may be too few for the last block.
    factor: type in which hidden states and unembedding are multiplied.
    block: tokens and columns of a block.
    vmem: bytes that the kernel may use.
  """

  outer: Axis
  count: int
  width: int
  vocabulary: int
  factor: jnp.dtype
  block: tuple[int, int]
  vmem: int

  @property
  def rows(self) -> int:
    """Tokens, filled up to whole blocks."""
    return pl.cdiv(self.count, self.block[0]) * self.block[0]

  @property
  def grid(self) -> tuple[int, int]:
    """Outer and inner blocks."""
    tokens = self.rows // self.block[0]
    columns = pl.cdiv(self.vocabulary, self.block[1])
    if self.outer == 'tokens':
      return tokens, columns
    return columns, tokens

  def of_tokens(self, size: int) -> pl.BlockSpec:
    """Blocks of an array `[N, size]`."""
    axis = int(self.outer == 'columns')
    return pl.BlockSpec(
      (self.block[0], size),
      lambda *at: (at[axis], 0),
      pipeline_mode=self._buffers(axis),
    )

  def of_columns(self, size: int) -> pl.BlockSpec:
    """Blocks of an array `[size, V]`."""
    axis = int(self.outer == 'tokens')
    return pl.BlockSpec(
      (size, self.block[1]),
      lambda *at: (0, at[axis]),
      pipeline_mode=self._buffers(axis),
    )

  def _buffers(self, axis: int) -> pl.Buffered:
    """Two of what changes with every step, one of what rarely does."""
    return pl.Buffered(1 if axis == 0 else 2)

  def specs(self) -> Inputs:
    """Blocks of the inputs."""
    specs: dict[str, Any] = {
      'hidden': self.of_tokens(self.width),
      'unembedding': self.of_columns(self.width),
      'impossible': self.of_columns(1),
      'targets': self.of_tokens(1),
      'temperatures': self.of_tokens(1),
    }
    return Inputs(**specs)

  def each_tile(self, body: Callable[[Part], None]) -> None:
    """In a kernel: runs over the outer block, a part of it at a time."""
    length = self.block[int(self.outer == 'columns')]
    size = min(length, TILE)

    def step(index: Int[Array, ''], _: None) -> None:
      body(pl.ds(pl.multiple_of(index * size, size), size))

    jax.lax.fori_loop(0, length // size, step, None)

  def of_part(self, refs: PyTree, part: Part) -> PyTree:
    """In a kernel: numbers of the part's tokens, or of all if columns are outer."""
    rows = part if self.outer == 'tokens' else slice(None)
    return jax.tree.map(lambda ref: ref[rows], refs)

  def read(self, refs: Inputs, part: Part) -> Inputs:
    """In a kernel: the inputs of a part of its outer block."""
    tokens, columns = part, slice(None)
    first = pl.program_id(1) * self.block[1]
    if self.outer == 'columns':
      tokens, columns = columns, part
      first = pl.program_id(0) * self.block[1] + part.start
    unembedding = refs.unembedding[:, columns]
    numbers = first + jax.lax.broadcasted_iota(
      jnp.int32, (1, unembedding.shape[1]), 1
    )
    impossible = refs.impossible[:, columns] != 0
    return Inputs(
      hidden=refs.hidden[tokens],
      unembedding=unembedding,
      impossible=impossible | (numbers >= self.vocabulary),
      targets=refs.targets[tokens] - first,
      temperatures=refs.temperatures[tokens],
    )

  def fill(self, tree: PyTree, value: int = 0) -> PyTree:
    """Arrays `[N, …]` filled up to whole blocks."""
    padding = (0, self.rows - self.count), (0, 0)
    return jax.tree.map(
      lambda x: jnp.pad(x, padding, constant_values=value), tree
    )

  def fill_inputs(self, inputs: Inputs) -> Inputs:
    """The inputs as a kernel takes them."""
    return inputs._replace(
      hidden=self.fill(inputs.hidden),
      impossible=inputs.impossible.astype(jnp.int32),
      targets=self.fill(inputs.targets),
      temperatures=self.fill(inputs.temperatures, 1),
    )

  def cut(self, tree: PyTree) -> PyTree:
    """The inverse of `fill`."""
    return jax.tree.map(lambda x: x[: self.count], tree)

  def call(
    self, kernel: Callable[..., None], *, products: int, **arguments: Any
  ) -> Callable[..., Any]:
    """`pallas_call`, with what all passes share.

    Args:
      kernel: what runs on each block.
      products: how many it makes of the size of the logits'.
      **arguments: of `pallas_call`.
    """
    logits = self.rows * self.vocabulary
    return pl.pallas_call(
      kernel,
      grid=self.grid,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'arbitrary'),
        vmem_limit_bytes=self.vmem,
      ),
      cost_estimate=pl.CostEstimate(
        flops=2 * products * logits * self.width,
        transcendentals=logits,
        bytes_accessed=logits * self.width * 4 // max(self.block),
      ),
      **arguments,
    )


def plan(
  inputs: Inputs, *, outer: Axis, kept: jnp.dtype | None = None
) -> Sweep:
  """A sweep with the largest blocks that fit into VMEM.

  Args:
    inputs: what is gone through.
    outer: the axis whose blocks stay while the other's go by.
    kept: type of the derivative that each outer block sums, if one does.
  """
  (count, width), vocabulary = inputs.hidden.shape, inputs.unembedding.shape[1]
  factor = jnp.dtype(jnp.result_type(inputs.hidden, inputs.unembedding))
  vmem = int(VMEM_SHARE * _vmem())

  def need(block: tuple[int, int]) -> int:
    large, small = block
    part = min(large, TILE)
    factors = factor.itemsize * width * (large + 2 * small)
    logits = LIVE_LOGITS * 4 * part * small
    numbers = LIVE_NUMBERS * 4 * LANES * max(block)
    if kept is None:
      return factors + logits + numbers
    return (
      factors
      + logits
      + numbers
      + width * (large * (4 + kept.itemsize) + part * 4)
    )

  fitting = [block for block in BLOCKS if need(block) <= vmem] or BLOCKS[-1:]
  tokens, columns = fitting[0] if outer == 'tokens' else fitting[0][::-1]
  return Sweep(
    outer=outer,
    count=count,
    width=width,
    vocabulary=vocabulary,
    factor=factor,
    block=(
      min(tokens, _rounded(count, SUBLANES)),
      min(columns, _rounded(vocabulary, LANES)),
    ),
    vmem=vmem,
  )


def _rounded(size: int, unit: int) -> int:
  """A size that consists of whole tiles, or of whole units if it is less."""
  unit = unit if size <= TILE else TILE
  return pl.cdiv(size, unit) * unit


def _vmem() -> int:
  """Bytes of VMEM of a core of the chip that is compiled for."""
  if not pltpu.is_tpu_device():
    return DEFAULT_VMEM
  return pltpu.get_tpu_info().vmem_capacity_bytes
