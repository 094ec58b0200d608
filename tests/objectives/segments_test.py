# SPDX-License-Identifier: Apache-2.0
"""Segment sums of rows with one or several sequences, short and long."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives.segments import sequence_sums

PADDING = 99  # id of the padding
WIDTH = 150  # not a multiple of the number of blocks, at either level

jitted_sums = jax.jit(sequence_sums)


@jax.jit
def sums_and_gradient(values, ids):
  def total(values):
    sums = sequence_sums(values, ids)
    return jnp.sum(sums * jnp.cos(jnp.arange(WIDTH))), sums

  (_, sums), gradient = jax.value_and_grad(total, has_aux=True)(values)
  return sums, gradient


def loop_sums(values, ids):
  sums = np.zeros_like(values)
  for row in range(len(ids)):
    for sequence_id in np.unique(ids[row]):
      in_sequence = ids[row] == sequence_id
      sums[row, in_sequence] = values[row, in_sequence].sum()
  return sums


@hypothesis.settings(deadline=None, max_examples=50)
# The id of a sequence inside of a block is that of a constant padding of rows.
@hypothesis.example(rows=[[1], [1], [1, 27, 90, 1, 1, 1]], seed=4)
@hypothesis.given(
  rows=st.lists(
    st.lists(st.integers(1, 90), min_size=1, max_size=40),
    min_size=3,
    max_size=3,
  ),
  seed=st.integers(0, 99),
)
def test_equals_a_loop_over_sequences(rows, seed):
  ids = np.zeros((3, WIDTH), np.int32)
  for row, lengths in enumerate(rows):
    sequence_ids = np.random.default_rng(seed).permutation(len(lengths)) - 5
    row_ids = np.repeat(sequence_ids, lengths)[:WIDTH]
    ids[row, : len(row_ids)] = row_ids
    ids[row, len(row_ids) :] = PADDING
  values = np.random.default_rng(seed).normal(size=ids.shape)
  values = (values * (ids != PADDING)).astype(np.float32)
  sums, gradient = sums_and_gradient(values, ids)
  np.testing.assert_allclose(sums, loop_sums(values, ids), rtol=1e-5, atol=1e-5)
  weights = np.cos(np.arange(WIDTH, dtype=np.float32))[None] * np.ones((3, 1))
  np.testing.assert_allclose(
    gradient, loop_sums(weights, ids), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('width', [3, 65, 130])
def test_integer_sums_are_exact_and_equal_within_a_sequence(width):
  rng = np.random.default_rng(width)
  ids = np.sort(rng.integers(0, max(width // 20, 1) + 1, (2, width)), axis=1)
  values = rng.integers(-9, 9, (2, width)).astype(np.int32)
  sums = jitted_sums(values, ids)
  np.testing.assert_array_equal(sums, loop_sums(values, ids))
  floats = np.asarray(jitted_sums(values.astype(np.float32) / 7, ids))
  for row in range(2):
    for sequence_id in np.unique(ids[row]):
      assert len(set(floats[row, ids[row] == sequence_id])) == 1
  row_sums = jitted_sums(values, None)
  np.testing.assert_array_equal(
    row_sums, values.sum(1, keepdims=True) + 0 * ids
  )
