# SPDX-License-Identifier: Apache-2.0
"""KV cache: repeated rows, and writes of one slot."""

import jax.numpy as jnp
import numpy as np

from covrl.models.cache import KVCache, LayerCache, repeat_rows


def draw(*shape):
  values = np.random.default_rng(0).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_repeat_rows_equals_numpy_repeat_on_any_axis():
  x = draw(2, 3, 4)
  for axis in range(3):
    want = np.repeat(np.asarray(x), 3, axis=axis)
    np.testing.assert_array_equal(repeat_rows(x, 3, axis=axis), want)


def test_repeated_rows_of_a_cache_are_contiguous():
  keys, mask = draw(2, 3, 1, 5, 4), jnp.tri(3, 5, dtype=bool)
  cache = KVCache(keys=keys, values=-keys, mask=mask).repeat(2)
  np.testing.assert_array_equal(cache.keys, np.repeat(keys, 2, axis=1))
  np.testing.assert_array_equal(cache.values, -cache.keys)
  np.testing.assert_array_equal(cache.mask, np.repeat(mask, 2, axis=0))


def test_write_changes_one_slot_of_one_layer():
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


def test_cache_of_one_layer_returns_its_keys_and_values():
  keys = draw(2, 1, 5, 4)
  got = LayerCache.of_one_layer(keys, 2 * keys).read()
  np.testing.assert_array_equal(got[0], keys)
  np.testing.assert_array_equal(got[1], 2 * keys)
