# SPDX-License-Identifier: Apache-2.0
"""KV cache: repeated rows, shared prompts, appended tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from covrl.models.cache import (
  DecodeCache,
  PromptCache,
  repeat_rows,
  write_slots,
  write_slots_in_turn,
)


def draw(*shape):
  values = np.random.default_rng(0).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_repeat_rows_equals_numpy_repeat_on_any_axis():
  x = draw(2, 3, 4)
  for axis in range(3):
    want = np.repeat(np.asarray(x), 3, axis=axis)
    np.testing.assert_array_equal(repeat_rows(x, 3, axis=axis), want)


def make_cache():
  keys = draw(2, 3, 1, 5, 4)
  prompts = PromptCache(keys, -keys, jnp.array([5, 2, 4]))
  return DecodeCache.empty(prompts, jnp.array([0, 2, 2, 1]), slots=3)


def test_an_empty_cache_continues_its_prompts():
  cache = make_cache()
  assert cache.keys.shape == (2, 4, 1, 3, 4)
  assert cache.position().tolist() == [5, 4, 4, 2]


def test_append_writes_one_slot_of_live_rows_in_every_layer():
  cache = make_cache()._replace(length=jnp.array([0, 1, 2, 3]))
  new = draw(2, 4, 1, 4)
  # The last row has no empty slot.
  live = jnp.array([True, False, True, True])
  after = cache.append(new, 2 * new, live)
  want = np.zeros(cache.keys.shape, np.float32)
  want[:, 0, :, 0] = new[:, 0]
  want[:, 2, :, 2] = new[:, 2]
  np.testing.assert_array_equal(after.keys, want)
  np.testing.assert_array_equal(after.values, 2 * want)
  assert after.length.tolist() == [1, 1, 3, 4]
  assert after.position().tolist() == [6, 5, 7, 6]


def test_slots_written_in_turn_are_those_of_a_scatter():
  """As on TPUs; the last two rows have no slot left."""
  draw = np.random.default_rng(0)
  cache = jnp.asarray(draw.normal(size=(2, 4, 1, 5, 8)), jnp.float32)
  new = jnp.asarray(draw.normal(size=(2, 4, 1, 8)), jnp.float32)
  slot = jnp.array([3, 0, 5, 7])
  in_turn = jax.jit(write_slots_in_turn)(cache, new, slot)
  np.testing.assert_array_equal(in_turn, write_slots(cache, new, slot))
  np.testing.assert_array_equal(in_turn[:, 0, :, 3], new[:, 0])
  np.testing.assert_array_equal(in_turn[:, 2:], cache[:, 2:])
