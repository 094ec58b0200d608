# SPDX-License-Identifier: Apache-2.0
"""Token weights: formulas, packed and padded rows, meshes."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.objectives import token_weights
from covrl.parallel.sharding import make_mesh, shard_batch

MODES = (
  'token-mean',
  'token-sum',
  'sequence-mean-token-mean',
  'sequence-mean-token-sum',
  'constant-length',
)
# By mode, its name in the golden outputs of a published implementation.
PUBLISHED = {
  'token-mean': 'token-mean',
  'token-sum': 'token-sum',
  'sequence-mean-token-mean': 'seq-mean-token-mean',
  'sequence-mean-token-sum': 'seq-mean-token-sum',
  'constant-length': 'seq-mean-token-sum-norm',
}


def pack(masks, rows, length):
  """Packs sequences by first fit; returns mask, ids, and row and columns of each."""
  mask = np.zeros((rows, length), bool)
  segment_ids = np.zeros((rows, length), np.int32)
  sequence_ids = np.full((rows, length), -1, np.int32)
  used_columns, num_sequences, slices = [0] * rows, [0] * rows, []
  for index, tokens in enumerate(masks):
    row = next(
      r for r in range(rows) if used_columns[r] + len(tokens) <= length
    )
    columns = slice(used_columns[row], used_columns[row] + len(tokens))
    used_columns[row], num_sequences[row] = columns.stop, num_sequences[row] + 1
    mask[row, columns] = tokens
    segment_ids[row, columns] = num_sequences[row]
    sequence_ids[row, columns] = 1000 + index
    slices.append((row, columns))
  return mask, segment_ids, sequence_ids, slices


@pytest.mark.parametrize('mode', MODES)
def test_weighted_sums_equal_published_losses(golden, close, mode):
  for case in golden('agg_loss'):
    mask = case.input('loss_mask')
    weights = token_weights(mask, mode, length=case.shape[1])
    loss = jnp.sum(weights * case.input('loss_mat', jnp.float32))
    magnitude = jnp.sum(weights * jnp.abs(case.input('loss_mat', jnp.float32)))
    np.testing.assert_allclose(
      loss, case.expected(PUBLISHED[mode]), rtol=0, atol=1e-6 * float(magnitude)
    )


@given(
  st.lists(
    st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=5
  ),
  st.sampled_from(MODES),
)
@settings(max_examples=40, deadline=None)
def test_padded_and_packed_rows_have_the_same_weights(masks, mode):
  padded = np.zeros((5, 6), bool)
  for row, tokens in enumerate(masks):
    padded[row, : len(tokens)] = tokens
  padded_weights = np.asarray(
    token_weights(jnp.asarray(padded), mode, length=6)
  )
  mask, segment_ids, sequence_ids, slices = pack(masks, 5, 12)
  for ids in (
    {'segment_ids': jnp.asarray(segment_ids)},
    {'sequence_ids': jnp.asarray(sequence_ids)},
    {
      'segment_ids': jnp.asarray(segment_ids),
      'sequence_ids': jnp.asarray(sequence_ids),
    },
  ):
    packed = np.asarray(token_weights(jnp.asarray(mask), mode, length=6, **ids))
    for i, (row, columns) in enumerate(slices):
      np.testing.assert_array_equal(
        packed[row, columns], padded_weights[i, : len(masks[i])]
      )
    assert not packed[~mask].any()


@pytest.mark.parametrize(
  ('mode', 'total'),
  [
    ('token-mean', 1),
    ('token-sum', 7),
    ('sequence-mean-token-mean', 1),
    ('sequence-mean-token-sum', 7 / 3),
    ('constant-length', 7 / 3 / 4),
  ],
)
def test_weights_of_a_mode_have_the_expected_sum(mode, total):
  mask = jnp.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1]])
  weights = token_weights(mask.astype(bool), mode, length=4)
  np.testing.assert_allclose(jnp.sum(weights), total, rtol=1e-6)


@pytest.mark.parametrize('mode', MODES)
def test_empty_batch_has_no_weight_and_no_nan(mode):
  weights = token_weights(jnp.zeros((2, 3), bool), mode, length=3)
  assert not weights.any()


@pytest.mark.parametrize('mode', MODES)
def test_mesh_gives_the_same_weights_without_all_gather(mode):
  rng = np.random.default_rng(0)
  masks = [rng.random(rng.integers(1, 6)) < 0.7 for _ in range(30)]
  mask, segment_ids, _, _ = pack(masks, 16, 12)
  arrays = (jnp.asarray(mask), jnp.asarray(segment_ids))

  @jax.jit
  def weigh(mask, segment_ids):
    return token_weights(mask, mode, segment_ids=segment_ids, length=6)

  sharded = shard_batch(arrays, make_mesh((4, 2)))
  np.testing.assert_array_equal(weigh(*sharded), weigh(*arrays))
  program = weigh.lower(*sharded).compile().as_text()
  assert program is not None
  assert 'all-gather' not in program
  assert 'all-to-all' not in program


def test_weights_are_float64_if_64_bit_floats_are_on(x64):
  mask = jnp.ones((2, 3), bool)
  assert token_weights(mask).dtype == jnp.float64


def test_refuses_unknown_modes_and_a_missing_length():
  mask = jnp.ones((2, 3), bool)
  # Without the run-time type checks of the tests, which would fail first.
  unchecked: Any = inspect.unwrap(token_weights)
  with pytest.raises(ValueError, match=r"one of .* got 'mean'"):
    unchecked(mask, 'mean')
  with pytest.raises(ValueError, match='length must be given'):
    token_weights(mask, 'constant-length')
