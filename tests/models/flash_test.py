# SPDX-License-Identifier: Apache-2.0
"""TPU attention kernels of whole rows, in interpret mode, and cuDNN attention.

Both are compared with `attend`; cuDNN is replaced by XLA.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from models.packed_rows import (
  CONFIG,
  HEADS,
  WIDTH,
  attention_inputs,
  expected_attention,
  normal_array,
)

from covrl.models import Policy, tiny
from covrl.models.attention import decode as decode_attention
from covrl.models.attention import flash
from covrl.models.attention.grouped_query import attend
from covrl.models.cache import DecodeCache
from covrl.parallel import sharding


@pytest.mark.parametrize(
  ('length', 'window', 'cap'),
  [(128, 0, None), (122, 0, None), (128, 50, None), (122, 0, 5.0)],
)
def test_flash_attention_and_its_gradients_equal_plain_attention(
  length, window, cap
):
  config = dataclasses.replace(
    CONFIG, windows=(window,) * 2 if window else (), attention_soft_cap=cap
  )
  queries, keys, values, segments = attention_inputs(length)
  arrays = queries, keys, values
  signal = normal_array(3, 2, length, HEADS, WIDTH)

  def kernels(queries, keys, values):
    return flash.attend_rows(
      queries, keys, values, segments, None, config, interpret=True
    )

  def plain_attention(queries, keys, values):
    return expected_attention(queries, keys, values, segments, window, cap)

  actual, pull_back = jax.vjp(kernels, *arrays)
  expected, pull_back_plain = jax.vjp(plain_attention, *arrays)
  np.testing.assert_allclose(actual, expected, atol=2e-5)
  for ours, theirs in zip(
    pull_back(signal), pull_back_plain(signal), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize('window', [100, 300, 0])
def test_window_is_chosen_at_run_time(window):
  """One program serves layers with different windows."""
  config = dataclasses.replace(CONFIG, windows=(100, 0, 300), num_layers=3)
  queries, keys, values, segments = attention_inputs(384, batch=1)
  window_size = jnp.asarray(window or jnp.iinfo(jnp.int32).max)
  run = jax.jit(
    functools.partial(flash.attend_rows, config=config, interpret=True)
  )
  actual = run(queries, keys, values, segments, window_size)
  expected = expected_attention(queries, keys, values, segments, window)
  np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_flash_attention_on_a_mesh_equals_plain_attention():
  """Heads are split over tensor and context; rows are whole."""
  queries, keys, values, segments = attention_inputs(128, batch=4)
  mesh = sharding.make_mesh(
    {'data': 2, 'tensor': 2, 'context': 1}, jax.devices()[:4]
  )
  with sharding.use_mesh(mesh, sharding.TRAIN_RULES):
    actual = jax.jit(
      functools.partial(flash.attend_rows, config=CONFIG, interpret=True)
    )(queries, keys, values, segments, None)
  expected = expected_attention(queries, keys, values, segments)
  np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_refuses_keys_split_differently_from_queries():
  queries, keys, values, segments = attention_inputs(128, batch=4)
  mesh = sharding.make_mesh({'tensor': 4}, jax.devices()[:4])
  with (
    sharding.use_mesh(mesh, sharding.TRAIN_RULES),
    pytest.raises(ValueError, match='query heads must be split like key heads'),
  ):
    flash.attend_rows(
      queries, keys, values, segments, None, CONFIG, interpret=True
    )


def test_cudnn_attention_is_used_where_supported(monkeypatch):
  calls = []
  dot_product_attention = jax.nn.dot_product_attention

  def attention_by_xla(*arguments, implementation, **options):
    calls.append(implementation)
    return dot_product_attention(*arguments, implementation='xla', **options)

  queries, keys, values, segments = attention_inputs(64)
  narrow_queries, narrow_keys, narrow_values = (
    x.astype(jnp.bfloat16) for x in (queries, keys, values)
  )
  narrow = narrow_queries, narrow_keys, narrow_values
  expected = expected_attention(*narrow, segments)
  monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
  monkeypatch.setattr(jax.nn, 'dot_product_attention', attention_by_xla)
  actual = expected_attention(*narrow, segments)
  is_token = np.asarray(segments > 0)
  np.testing.assert_allclose(
    actual.astype(jnp.float32)[is_token],
    expected.astype(jnp.float32)[is_token],
    atol=0.02,
  )
  assert calls == ['cudnn']
  # Unsupported: float32, a soft cap, a single query.
  expected_attention(queries, keys, values, segments)
  expected_attention(*narrow, segments, cap=5.0)
  single_query_mask = jnp.ones((2, 1, 64), bool)
  attend(narrow_queries[:, :1], narrow_keys, narrow_values, single_query_mask)
  assert calls == ['cudnn']


def test_policy_with_kernels_equals_policy_without(monkeypatch):
  """Packed rows, and decoding with rows that have ended, as on TPU."""
  policy = Policy(dataclasses.replace(tiny(16), windows=(48, 0)))
  params = policy.init(jax.random.key(0))
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (2, 128)))
  *_, segments = attention_inputs(128)
  positions = jnp.broadcast_to(jnp.arange(128), tokens.shape)

  def packed_output():
    return policy.hidden(
      params, tokens, positions=positions, segment_ids=segments
    )

  def decoded_output():
    mask = jnp.arange(128) >= jnp.array([[5], [0]])
    _, prompts = policy.prefill(params, tokens, positions, mask)
    cache = DecodeCache.empty(prompts, jnp.array([0, 1]), 2)
    live = jnp.array([True, False])
    _, cache = policy.decode(params, tokens[:, 0], cache, live)
    state, _ = policy.decode(params, tokens[:, 1], cache, live)
    return state[0]

  expected = packed_output(), decoded_output()
  for module, name in (
    (flash, 'attend_rows'),
    (decode_attention, 'attend_token'),
  ):
    interpret = True if module is flash else pltpu.InterpretParams()
    kernel = functools.partial(getattr(module, name), interpret=interpret)
    monkeypatch.setattr(
      f'covrl.models.attention.grouped_query.{name}', kernel, raising=False
    )
    monkeypatch.setattr(module, name, kernel)
    monkeypatch.setattr(module, 'uses_kernel', lambda *_: True)
  actual = packed_output(), decoded_output()
  is_token = np.asarray(segments > 0)
  np.testing.assert_allclose(
    actual[0][is_token], expected[0][is_token], atol=2e-5
  )
  np.testing.assert_allclose(actual[1], expected[1], atol=2e-5)
