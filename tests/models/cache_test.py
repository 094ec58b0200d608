# SPDX-License-Identifier: Apache-2.0
"""KV cache: repeated rows, shared prompts, appended tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from covrl.models.cache import DecodeCache, PromptCache, repeat_rows
from covrl.models.cache_writes import write_slots, write_slots_by_row
from covrl.models.int8 import Int8Vectors


def draw(*shape):
  values = np.random.default_rng(0).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_repeat_rows_equals_numpy_repeat_on_any_axis():
  x = draw(2, 3, 4)
  for axis in range(3):
    expected = np.repeat(np.asarray(x), 3, axis=axis)
    np.testing.assert_array_equal(repeat_rows(x, 3, axis=axis), expected)


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
  new_keys = draw(2, 4, 1, 4)
  # The last row has no empty slot.
  live = jnp.array([True, False, True, True])
  after = cache.append(new_keys, 2 * new_keys, live)
  expected = np.zeros(cache.keys.shape, np.float32)
  expected[:, 0, :, 0] = new_keys[:, 0]
  expected[:, 2, :, 2] = new_keys[:, 2]
  np.testing.assert_array_equal(after.keys, expected)
  np.testing.assert_array_equal(after.values, 2 * expected)
  assert after.length.tolist() == [1, 1, 3, 4]
  assert after.position().tolist() == [6, 5, 7, 6]


def test_writes_by_row_equal_a_scatter():
  """Caches larger than VMEM are written by row. The last two rows have no slot left."""
  rng = np.random.default_rng(0)
  cache = jnp.asarray(rng.normal(size=(2, 4, 1, 5, 8)), jnp.float32)
  new_keys = jnp.asarray(rng.normal(size=(2, 4, 1, 8)), jnp.float32)
  slot = jnp.array([3, 0, 5, 7])
  written = jax.jit(write_slots_by_row)(cache, new_keys, slot)
  np.testing.assert_array_equal(written, write_slots(cache, new_keys, slot))
  np.testing.assert_array_equal(written[:, 0, :, 3], new_keys[:, 0])
  np.testing.assert_array_equal(written[:, 2:], cache[:, 2:])


def test_layers_with_a_window_keep_the_newest_tokens_only():
  """Whether appended one by one or filled in at once."""
  keys = draw(3, 1, 1, 2, 4)
  prompts = PromptCache(keys, -keys, jnp.array([2]))
  windows, prompt = (0, 2, 3), jnp.array([0, 0, 0])
  cache = DecodeCache.empty(prompts, prompt, 5, windows)
  assert cache.keys.shape == (1, 3, 1, 5, 4)
  assert cache.ring is not None
  assert cache.ring.keys.shape == (2, 3, 1, 3, 4)
  response_keys, lengths = draw(3, 3, 1, 6, 4), jnp.array([6, 5, 1])
  for token in range(6):
    token_keys = response_keys[:, :, :, token]
    cache = cache.append(token_keys, -token_keys, token < lengths, windows)
  assert cache.length.tolist() == [6, 5, 1]
  assert cache.ring is not None
  # The last of six tokens has no slot, with and without a ring.
  np.testing.assert_array_equal(cache.keys[0, :2], response_keys[0, :2, :, :5])
  for row in range(2):
    for slot, token in enumerate((3, 4, 2)):
      np.testing.assert_array_equal(
        cache.ring.keys[:, row, :, slot], response_keys[1:, row, :, token]
      )
  np.testing.assert_array_equal(cache.ring.values, -cache.ring.keys)
  np.testing.assert_array_equal(
    cache.ring.keys[:, 2, :, 0], response_keys[1:, 2, :, 0]
  )
  assert not np.any(cache.ring.keys[:, 2, :, 1:])

  empty = DecodeCache.empty(prompts, prompt, 5, windows)
  filled = empty.with_contents(
    response_keys[:, :, :, :5],
    -response_keys[:, :, :, :5],
    jnp.array([5, 5, 1]),
    windows,
  )
  assert filled.ring is not None
  for row, slots in ((0, 3), (1, 3), (2, 1)):
    np.testing.assert_array_equal(
      filled.ring.keys[:, row, :, :slots], cache.ring.keys[:, row, :, :slots]
    )


def test_no_layer_has_a_ring_if_windows_are_as_long_as_responses():
  keys = draw(2, 1, 1, 2, 4)
  prompts = PromptCache(keys, -keys, jnp.array([2]))
  cache = DecodeCache.empty(prompts, jnp.array([0]), 5, (0, 5))
  assert cache.ring is None
  assert cache.keys.shape[0] == 2


def test_integers_are_within_half_of_a_scale():
  x = draw(5, 7).at[2].set(0.0)
  quantised = Int8Vectors.of(x)
  error = np.abs(quantised.values * quantised.scale[:, None] - x)
  assert (error <= quantised.scale[:, None] / 2 * (1 + 1e-6)).all()
  assert np.abs(quantised.values).max(axis=1).tolist() == [
    127,
    127,
    0,
    127,
    127,
  ]


def test_tokens_are_appended_as_integers():
  cache = make_cache()
  cache = DecodeCache.empty(cache.prompts.as_int8(), cache.prompt_index, 3)
  new_keys = draw(2, 4, 1, 4)
  after = cache.append(
    new_keys, 2 * new_keys, jnp.array([True, False, True, True])
  )
  expected = Int8Vectors.of(new_keys)
  assert after.keys.values.dtype == jnp.int8
  for row in (0, 2, 3):
    np.testing.assert_array_equal(
      after.keys.values[:, row, :, 0], expected.values[:, row]
    )
    np.testing.assert_array_equal(
      after.values.scale[:, row, :, 0], 2 * expected.scale[:, row]
    )
  assert not np.any(after.keys.scale[:, 1])
