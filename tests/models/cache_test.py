# SPDX-License-Identifier: Apache-2.0
"""The cache: rows repeated side by side, one slot written at a time."""

import jax.numpy as jnp
import numpy as np

from covrl.models.cache import KVCache, LayerCache, repeat_rows


def draw(*shape):
  values = np.random.default_rng(0).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_repeat_is_numpy_repeat_on_any_axis():
  x = draw(2, 3, 4)
  for axis in range(3):
    want = np.repeat(np.asarray(x), 3, axis=axis)
    np.testing.assert_array_equal(repeat_rows(x, 3, axis=axis), want)


def test_a_repeated_cache_keeps_neighbours_together():
  keys, mask = draw(2, 3, 1, 5, 4), jnp.tri(3, 5, dtype=bool)
  cache = KVCache(keys=keys, values=-keys, mask=mask).repeat(2)
  np.testing.assert_array_equal(cache.keys, np.repeat(keys, 2, axis=1))
  np.testing.assert_array_equal(cache.values, -cache.keys)
  np.testing.assert_array_equal(cache.mask, np.repeat(mask, 2, axis=0))


def test_write_touches_one_slot_of_one_layer():
  keys, new = draw(3, 2, 1, 5, 4), draw(2, 1, 1, 4)
  view = LayerCache(
    keys=keys,
    values=-keys,
    layer=jnp.array(1, jnp.int32),
    slot=jnp.array(3, jnp.int32),
  ).write(new, -new)
  want = np.array(keys)
  want[1, :, :, 3] = new[:, :, 0]
  np.testing.assert_array_equal(view.keys, want)
  np.testing.assert_array_equal(view.values, -want)
  np.testing.assert_array_equal(view.read()[0], want[1])


def test_a_fresh_view_holds_what_it_was_given():
  keys = draw(2, 1, 5, 4)
  got = LayerCache.of(keys, 2 * keys).read()
  np.testing.assert_array_equal(got[0], keys)
  np.testing.assert_array_equal(got[1], 2 * keys)
