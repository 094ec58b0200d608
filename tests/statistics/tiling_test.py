# SPDX-License-Identifier: Apache-2.0
"""Blocks and tiles of TPU kernels: those without a wanted token are left out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from covrl.statistics import tiling

BLOCK, TILE = (64, 128), 16
COUNT, VOCABULARY = 300, 200


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
  monkeypatch.setattr(tiling, 'BLOCKS', (BLOCK,))
  monkeypatch.setattr(tiling, 'TILE', TILE)


def make_grid(outer: tiling.Axis) -> tiling.BlockGrid:
  """Blocks of 64 tokens × 128 columns, or of 128 tokens × 64 columns."""
  unused: Any = None
  inputs = tiling.Inputs(
    hidden=jnp.zeros((COUNT, 8)),
    unembedding=jnp.zeros((8, VOCABULARY)),
    impossible=unused,
    targets=unused,
    temperatures=unused,
  )
  return tiling.make_grid(inputs, outer=outer)


def visits_per_token(num_wanted: int) -> np.ndarray:
  """Number of times that a kernel with tokens as outer axis processes each."""
  grid = make_grid('tokens')

  def kernel(count: Any, out: Any) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _init() -> None:
      out[...] = jnp.zeros_like(out)

    @grid.for_each_wanted_tile(count)
    def _add(tile: Any) -> None:
      out[tile] += 1

  with pltpu.force_tpu_interpret_mode():
    call = grid.pallas_call(
      kernel,
      matmuls=1,
      in_specs=(),
      out_specs=grid.token_spec(1, written=True),
      out_shape=jax.ShapeDtypeStruct((grid.num_padded_tokens, 1), jnp.float32),
    )
    return np.asarray(call(jnp.asarray(num_wanted, jnp.int32)))[:, 0]


@pytest.mark.parametrize('num_wanted', [0, 1, 16, 17, 128, 300])
def test_only_tiles_with_a_wanted_token_are_processed(num_wanted):
  num_processed = -(-num_wanted // TILE) * TILE
  columns = -(-VOCABULARY // BLOCK[1])
  expected = np.where(np.arange(320) < num_processed, columns, 0)
  np.testing.assert_array_equal(visits_per_token(num_wanted), expected)


def block_indices(
  grid: tiling.BlockGrid, spec: pl.BlockSpec, num_wanted: int
) -> list[Any]:
  """Index of an array's block at each step of the grid, in its order."""
  assert spec.index_map is not None
  index_pairs = [
    spec.index_map(i, j, np.array([num_wanted]))
    for i in range(grid.shape[0])
    for j in range(grid.shape[1])
  ]
  return [tuple(int(index) for index in pair) for pair in index_pairs]


@pytest.mark.parametrize('outer', ['tokens', 'columns'])
@pytest.mark.parametrize('num_wanted', [0, 1, 64, 65, 128, 129, 300])
def test_blocks_without_a_wanted_token_are_not_read(outer, num_wanted):
  grid = make_grid(outer)
  blocks = max(-(-num_wanted // grid.block[0]), 1)
  columns = -(-VOCABULARY // grid.block[1])
  tokens_read = block_indices(grid, grid.token_spec(1), num_wanted)
  columns_read = block_indices(grid, grid.column_spec(1), num_wanted)
  assert {index for index, _ in tokens_read} == set(range(blocks))
  # Each block of tokens is read with every block of columns.
  pairs = {
    (token_index[0], column_index[1])
    for token_index, column_index in zip(tokens_read, columns_read, strict=True)
  }
  if num_wanted == 0 and outer == 'tokens':
    assert pairs == {(0, columns - 1)}
  else:
    assert pairs == {(i, j) for i in range(blocks) for j in range(columns)}


def test_every_block_is_written_once():
  grid = make_grid('tokens')
  written = block_indices(grid, grid.token_spec(1, written=True), 65)
  # In the first half of the grid are blocks 0, 2 and 4, for the first core.
  assert written[::2] == [(0, 0), (2, 0), (4, 0), (1, 0), (3, 0)]
  assert written[1::2] == written[::2]
