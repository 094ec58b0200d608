# SPDX-License-Identifier: Apache-2.0
"""Selection equals a stable sort, on every mesh, packing and order."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl import kl_cov, select_random, select_top
from covrl.entropy import exact_quantile
from covrl.parallel import sharding

jit_top = jax.jit(select_top, static_argnames='minimum')
SHAPE = (8, 12)


def by_sorting(scores, mask, quota):
  """Reference implementation: a stable sort on one device."""
  flat, eligible = (
    scores.reshape(-1),
    np.flatnonzero(
      mask.reshape(-1)
      & ~np.isnan(scores.reshape(-1))
      & (scores.reshape(-1) > -np.inf)
    ),
  )
  best = eligible[np.argsort(-flat[eligible], kind='stable')][:quota]
  chosen = np.zeros(flat.shape, bool)
  chosen[best] = True
  return chosen.reshape(scores.shape)


# Few distinct values: most cuts fall into a tie.
tied_scores = st.sampled_from(
  [-2.0, -0.0, 0.0, 1e-30, 1.0, 1.5, np.inf, -np.inf, np.nan]
)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
  scores=hnp.arrays(
    np.float32,
    SHAPE,
    elements=st.one_of(tied_scores, st.floats(-9, 9, width=32)),
  ),
  mask=hnp.arrays(bool, SHAPE),
  fraction=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
  minimum=st.sampled_from([0, 1]),
)
def test_equals_a_stable_sort(scores, mask, fraction, minimum):
  chosen = jit_top(scores, mask, fraction=fraction, minimum=minimum)
  count = int(np.floor(np.float32(fraction) * np.float32(mask.sum())))
  expected = by_sorting(scores, mask, max(count, minimum))
  np.testing.assert_array_equal(np.asarray(chosen), expected)


@pytest.fixture(scope='module')
def tokens():
  """Scores with ties, a mask, and the sequence ids and positions of all tokens."""
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 7, (64, 24)).astype(np.float32)
  mask = rng.random(scores.shape) < 0.6
  sequences = np.repeat(np.arange(64, dtype=np.int32)[:, None] * 3 + 5, 24, 1)
  positions = np.tile(np.arange(24, dtype=np.int32), (64, 1))
  return scores, mask, sequences, positions


def select_both(scores, mask, sequences, positions):
  """Masks of the largest scores and of a random choice of as many tokens."""
  top = select_top(
    scores, mask, fraction=0.1, sequence_ids=sequences, positions=positions
  )
  random_choice = select_random(
    mask,
    fraction=0.1,
    key=jax.random.key(7),
    step=3,
    sequence_ids=sequences,
    positions=positions,
  )
  return top, random_choice


@pytest.mark.parametrize('shape', [(8,), (4, 2), (2, 2, 2)])
def test_selection_is_equal_on_every_mesh(tokens, shape):
  expected = jax.jit(select_both)(*tokens)
  sharded = sharding.shard_batch(tokens, sharding.make_mesh(shape))
  for actual, mask in zip(
    jax.jit(select_both)(*sharded), expected, strict=True
  ):
    np.testing.assert_array_equal(actual, mask)
    assert int(mask.sum()) == int(np.floor(0.1 * tokens[1].sum()))


def test_selection_is_equal_in_every_row_order_and_packing(tokens):
  expected = jax.jit(select_both)(*tokens)
  order = np.random.default_rng(1).permutation(64)
  shuffled = jax.jit(select_both)(*(array[order] for array in tokens))
  packed = jax.jit(select_both)(*(_pack(array[order]) for array in tokens))
  for mask, rows, pack in zip(expected, shuffled, packed, strict=True):
    np.testing.assert_array_equal(rows, np.asarray(mask)[order])
    np.testing.assert_array_equal(pack, _pack(np.asarray(mask)[order]))


def _pack(array):
  """Two sequences per row, the first of them reversed."""
  return np.concatenate([array[:32, ::-1], array[32:]], axis=1)


def test_random_selection_differs_between_steps_and_is_uniform():
  eligible = jnp.ones((16, 50), bool)
  draw = jax.jit(
    lambda step: select_random(
      eligible, fraction=0.1, key=jax.random.key(0), step=step
    )
  )
  masks = np.stack([np.asarray(draw(step)) for step in range(200)])
  assert (masks.sum(axis=(1, 2)) == 80).all()
  assert (masks[0] != masks[1]).any()
  # Each token is drawn 20 times in 200 on average, binomially.
  counts = masks.sum(axis=0)
  assert counts.min() > 4
  assert counts.max() < 45


def test_random_selection_takes_all_eligible_tokens_below_the_quota():
  eligible = jnp.zeros((2, 4), bool).at[0, 1].set(True)
  drawn = select_random(
    eligible,
    fraction=0.5,
    key=jax.random.key(0),
    step=0,
    mask=jnp.ones((2, 4), bool),
  )
  np.testing.assert_array_equal(drawn, eligible)


# XLA flushes subnormal numbers to 0.
_NORMAL = st.floats(-5, 5, width=32, allow_subnormal=False)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(
  values=hnp.arrays(np.float32, (5, 7), elements=_NORMAL),
  mask=hnp.arrays(bool, (5, 7)),
  level=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
)
def test_quantile_equals_that_of_sorted_values(values, mask, level):
  actual = exact_quantile(jnp.asarray(values), jnp.asarray(mask), level)
  sorted_values = np.sort(values[mask])
  if sorted_values.size == 0:
    assert jnp.isnan(actual)
  else:
    rank = max(
      int(np.ceil(np.float32(level) * np.float32(sorted_values.size))), 1
    )
    assert float(actual) == float(sorted_values[rank - 1])


def test_refuses_a_percentage_as_fraction():
  with pytest.raises(
    ValueError, match=r'fraction must lie in \[0, 1\], got 20'
  ):
    select_top(jnp.ones((1, 3)), jnp.ones((1, 3), bool), fraction=20.0)


def test_float64_keys_do_not_narrow(x64):
  scores = jnp.array([[1.0, 1.0 + 1e-12, 1.0 - 1e-12]])
  chosen = select_top(scores, jnp.ones((1, 3), bool), fraction=0.34)
  np.testing.assert_array_equal(chosen, [[False, True, False]])


def test_the_largest_fraction_is_accepted_in_every_precision():
  kl_cov(fraction=0.05)
  kl_cov(fraction=jnp.float32(0.05))
  kl_cov(fraction=0.2, allow_large=True)
  # `inject_hyperparams` passes this if a schedule starts at 0.
  kl_cov(fraction=jnp.float32(0.0))
