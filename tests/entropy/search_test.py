# SPDX-License-Identifier: Apache-2.0
"""`select_largest`, a selection by counting: order of keys, extreme keys, vmap."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from covrl import select_top
from covrl.entropy.search import RankedTokens, select_largest
from covrl.statistics.exact import extremes, float_key, sum_each

LIMITS = np.iinfo(np.int32)
# The ends of the range, where trial keys overflow, and runs of equal keys.
edges = st.sampled_from(
  [LIMITS.min, LIMITS.min + 1, -1, 0, 1, LIMITS.max - 6, LIMITS.max]
)
keys = hnp.arrays(
  np.int32, (6, 5), elements=edges | st.integers(LIMITS.min, LIMITS.max)
)


def as_ranked(tokens):
  """Tokens that are ranked by two keys."""
  eligible, first, second = tokens
  return RankedTokens(eligible=eligible, keys=(first, second))


@jax.jit
def search(eligible, first, second, k):
  (total,) = sum_each(eligible)
  return select_largest(as_ranked, (eligible, first, second), k, total)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
  eligible=hnp.arrays(bool, (6, 5)),
  first=keys,
  # Distinct, so that the answer is unique.
  second=st.permutations(range(30)),
  k=st.integers(0, 31),
)
def test_equals_a_lexicographic_sort(eligible, first, second, k):
  second = np.array(second, np.int32).reshape(6, 5) * 71_000_000 + LIMITS.min
  chosen = np.asarray(search(eligible, first, second, k))
  order = np.lexsort((second.reshape(-1), first.reshape(-1)))[::-1]
  best = order[eligible.reshape(-1)[order]][:k]
  expected = np.zeros(30, bool)
  expected[best] = True
  np.testing.assert_array_equal(chosen.reshape(-1), expected)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  hnp.arrays(np.float32, 2, elements=st.floats(width=32, allow_nan=False))
)
def test_float_keys_order_as_floats_do(pair):
  a, b = np.asarray(jax.jit(float_key)(pair))
  # Python's numbers: denormals are ordered whatever the device flushes.
  x, y = (float(value) for value in pair)
  assert (a < b, a == b) == (x < y, x == y)


def test_extremes_and_sums_are_those_of_the_mask():
  values = jnp.array([[5, -3], [7, 1]])
  mask = jnp.array([[True, True], [False, True]])
  np.testing.assert_array_equal(extremes(values, mask), [-3, 5])
  np.testing.assert_array_equal(sum_each(values, mask), [10, 3])


def test_vmap_over_fractions_equals_single_selections():
  scores = jnp.asarray(np.random.default_rng(0).integers(0, 9, (6, 20)), float)
  mask = jnp.asarray(np.random.default_rng(1).random((6, 20)) < 0.8)
  fractions = jnp.array([0.0, 0.01, 0.3, 1.0])

  def choose(fraction):
    return select_top(scores, mask, fraction=fraction)

  masks = jax.jit(jax.vmap(choose))(fractions)
  for fraction, chosen in zip(fractions, masks, strict=True):
    np.testing.assert_array_equal(chosen, jax.jit(choose)(fraction))
