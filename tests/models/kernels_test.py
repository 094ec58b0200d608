# SPDX-License-Identifier: Apache-2.0
"""What accelerators run instead of plain attention computes the same.

TPU kernels run here in Python, of small blocks; cuDNN is stood in for.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from covrl.models import Policy, decoding, flash, tiny
from covrl.models.attention import attend
from covrl.models.cache import LayerCache
from covrl.models.decoding import Span, attend_token, block_size, steps_of
from covrl.parallel import sharding

CONFIG = dataclasses.replace(tiny(16), head_dim=16)
HEADS, KV_HEADS, WIDTH = CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.head_dim


def draw(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def rows(length, batch=2):
  """Queries, keys, values, and rows of two sequences with padding around."""
  segments = np.zeros((batch, length), np.int32)
  for row in range(batch):
    start, middle = 3 + 7 * row, length // 2 + 5 * row
    segments[row, start:middle] = 1
    segments[row, middle : length - 4] = 2
  return (
    draw(0, batch, length, HEADS, WIDTH),
    draw(1, batch, KV_HEADS, length, WIDTH),
    draw(2, batch, KV_HEADS, length, WIDTH),
    jnp.asarray(segments),
  )


def plain(queries, keys, values, segments, window=None, cap=None):
  length = segments.shape[1]
  distance = jnp.arange(length)[:, None] - jnp.arange(length)
  mask = (distance >= 0) & (segments[:, :, None] == segments[:, None, :])
  if window:
    mask &= distance < window
  return attend(queries, keys, values, mask, cap=cap)


@pytest.mark.parametrize(
  ('length', 'window', 'cap'),
  [(256, 0, None), (250, 0, None), (256, 100, None), (250, 0, 5.0)],
)
def test_rows_and_their_derivatives(length, window, cap):
  config = dataclasses.replace(
    CONFIG, windows=(window,) * 2 if window else (), attention_soft_cap=cap
  )
  queries, keys, values, segments = rows(length)
  arrays = queries, keys, values
  signal = draw(3, 2, length, HEADS, WIDTH)

  def kernels(queries, keys, values):
    return flash.attend_rows(
      queries, keys, values, segments, None, config, interpret=True
    )

  def want(queries, keys, values):
    return plain(queries, keys, values, segments, window, cap)

  got, pull_back = jax.vjp(kernels, *arrays)
  expected, pull_back_plain = jax.vjp(want, *arrays)
  np.testing.assert_allclose(got, expected, atol=2e-5)
  for ours, theirs in zip(
    pull_back(signal), pull_back_plain(signal), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize('window', [100, 300, 0])
def test_a_layer_has_its_own_window(window):
  """One program for layers of several windows."""
  config = dataclasses.replace(CONFIG, windows=(100, 0, 300), num_layers=3)
  queries, keys, values, segments = rows(384, batch=1)
  own = jnp.asarray(window or jnp.iinfo(jnp.int32).max)
  run = jax.jit(
    functools.partial(flash.attend_rows, config=config, interpret=True)
  )
  got = run(queries, keys, values, segments, own)
  expected = plain(queries, keys, values, segments, window)
  np.testing.assert_allclose(got, expected, atol=2e-5)


def test_rows_on_a_mesh():
  """Heads over tensor and context: whole rows, a part of the heads."""
  queries, keys, values, segments = rows(128, batch=4)
  mesh = sharding.make_mesh(
    {'data': 2, 'tensor': 2, 'context': 1}, jax.devices()[:4]
  )
  with sharding.in_use(mesh, sharding.TRAIN_RULES):
    got = jax.jit(
      functools.partial(flash.attend_rows, config=CONFIG, interpret=True)
    )(queries, keys, values, segments, None)
  expected = plain(queries, keys, values, segments)
  np.testing.assert_allclose(got, expected, atol=2e-5)


def test_keys_that_are_split_otherwise_are_refused():
  queries, keys, values, segments = rows(128, batch=4)
  mesh = sharding.make_mesh({'tensor': 4}, jax.devices()[:4])
  with (
    sharding.in_use(mesh, sharding.TRAIN_RULES),
    pytest.raises(ValueError, match='heads must be split as their keys are'),
  ):
    flash.attend_rows(
      queries, keys, values, segments, None, CONFIG, interpret=True
    )


def decode(starts, ends, slots=300, cap=None, layers=2, mesh=None):
  """The kernel, and plain attention over the same; the rest is no number."""
  config = dataclasses.replace(CONFIG, attention_soft_cap=cap)
  starts, ends = jnp.asarray(starts, jnp.int32), jnp.asarray(ends, jnp.int32)
  count = len(starts)
  places = jnp.arange(slots)
  seen = (places >= starts[:, None]) & (places < ends[:, None])
  here = seen[None, :, None, :, None]
  keys, values = (
    jnp.where(here, draw(seed, layers, count, KV_HEADS, slots, WIDTH), jnp.nan)
    for seed in (1, 2)
  )
  queries = draw(0, count, HEADS, WIDTH)
  layer = jnp.asarray(1, jnp.int32)
  run = jax.jit(
    functools.partial(
      attend_token, config=config, interpret=pltpu.InterpretParams()
    )
  )
  with sharding.in_use(mesh, sharding.ROLLOUT_RULES):
    got = run(
      queries, LayerCache(keys, values, layer, layer), Span(starts, ends)
    )
  want = attend(
    queries[:, None],
    jnp.nan_to_num(keys[1]),
    jnp.nan_to_num(values[1]),
    seen[:, None],
    cap=cap,
  )[:, 0]
  want = jnp.where((ends > starts)[:, None, None], want, 0)
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize('cap', [None, 5.0])
def test_a_token_sees_its_row_and_nothing_else_is_read(cap, monkeypatch):
  """Blocks of 128 slots; what is beyond a row's ends would show."""
  monkeypatch.setattr(decoding, 'STEP_BYTES', 128 * 2 * KV_HEADS * WIDTH * 4)
  decode([0, 130, 7, 290, 5], [300, 131, 7, 300, 256], cap=cap)


def test_tokens_on_a_mesh():
  mesh = sharding.make_mesh({'data': 2, 'tensor': 2}, jax.devices()[:4])
  decode([0, 3, 9, 0], [40, 40, 9, 41], slots=48, mesh=mesh)


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_steps_are_the_blocks_that_are_seen(data):
  slots, size = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))
  spans = data.draw(
    st.lists(
      st.tuples(st.integers(0, slots), st.integers(0, slots)),
      min_size=1,
      max_size=6,
    )
  )
  starts, ends = np.sort(np.array(spans, np.int32), axis=1).T
  steps = steps_of(Span(jnp.asarray(starts), jnp.asarray(ends)), size, slots)
  count = int(steps.length)
  got = list(zip(steps.row.tolist(), steps.block.tolist(), strict=True))
  want = [
    (row, block)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True))
    for block in range(-(-slots // size))
    if max(block * size, start) < min((block + 1) * size, end)
  ]
  assert got[:count] == want
  # What is never read must still be there.
  assert all(row < len(spans) for row, _ in got)
  assert all(block < -(-slots // size) for _, block in got)


def test_blocks_are_small_beside_a_row():
  """A row's ends cost less than a tenth of what it holds, at full length."""
  for kv_heads in (1, 2, 4, 8):
    assert block_size(10239, 2 * kv_heads * 128 * 2) <= 1024


def test_attention_by_cudnn(monkeypatch):
  asked = []
  original = jax.nn.dot_product_attention

  def stand_in(*arguments, implementation, **options):
    asked.append(implementation)
    return original(*arguments, implementation='xla', **options)

  queries, keys, values, segments = rows(64)
  narrow_queries, narrow_keys, narrow_values = (
    x.astype(jnp.bfloat16) for x in (queries, keys, values)
  )
  narrow = narrow_queries, narrow_keys, narrow_values
  want = plain(*narrow, segments)
  monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
  monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
  got = plain(*narrow, segments)
  real = np.asarray(segments > 0)
  np.testing.assert_allclose(
    got.astype(jnp.float32)[real], want.astype(jnp.float32)[real], atol=0.02
  )
  assert asked == ['cudnn']
  # What it is not made for stays as it was.
  plain(queries, keys, values, segments)
  plain(*narrow, segments, cap=5.0)
  one = jnp.ones((2, 1, 64), bool)
  attend(narrow_queries[:, :1], narrow_keys, narrow_values, one)
  assert asked == ['cudnn']


def test_the_whole_policy_by_kernels(monkeypatch):
  """Packed rows, and decoding with dead rows, as a TPU would run them."""
  policy = Policy(dataclasses.replace(tiny(16), windows=(48, 0)))
  params = policy.init(jax.random.key(0))
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (2, 128)))
  *_, segments = rows(128)
  positions = jnp.broadcast_to(jnp.arange(128), tokens.shape)

  def hidden():
    return policy.hidden(
      params, tokens, positions=positions, segment_ids=segments
    )

  def decoded():
    mask = jnp.arange(128) >= jnp.array([[5], [0]])
    state, cache = policy.prefill(params, tokens, positions, mask, 130)
    live = jnp.array([True, False])
    for step in range(2):
      index = jnp.asarray(128 + step)
      place = jnp.broadcast_to(index, (2,))
      state, cache = policy.decode(
        params, tokens[:, step], place, cache, index, live
      )
    return state[0]

  want = hidden(), decoded()
  for module, name in ((flash, 'attend_rows'), (decoding, 'attend_token')):
    how = True if module is flash else pltpu.InterpretParams()
    kernel = functools.partial(getattr(module, name), interpret=how)
    monkeypatch.setattr(f'covrl.models.attention.{name}', kernel, raising=False)
    monkeypatch.setattr(module, name, kernel)
    monkeypatch.setattr(module, 'is_used', lambda *_: True)
  got = hidden(), decoded()
  real = np.asarray(segments > 0)
  np.testing.assert_allclose(got[0][real], want[0][real], atol=2e-5)
  np.testing.assert_allclose(got[1], want[1], atol=2e-5)
