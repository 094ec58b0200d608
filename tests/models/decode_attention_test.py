# SPDX-License-Identifier: Apache-2.0
"""Attention of one token to a cache, by XLA and by the TPU kernel in interpret mode.

Both are compared with `attend`. Blocks are small.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from models.packed_rows import CONFIG, HEADS, KV_HEADS, WIDTH, normal_array

from covrl.models import cached_tokens
from covrl.models.attention import decode as decode_attention
from covrl.models.attention import decode_kernel
from covrl.models.attention.decode import attend_token
from covrl.models.attention.decode_kernel import (
  SlotRange,
  block_size,
  blocks_to_read,
)
from covrl.models.attention.grouped_query import attend
from covrl.models.attention.online_softmax import OnlineSoftmax
from covrl.models.cache import DecodeCache, PromptCache
from covrl.models.cached_tokens import CachedTokens, list_prompts
from covrl.models.int8 import Int8Vectors
from covrl.parallel import sharding


def check_decode(
  *,
  slots=(140, 300),
  window=None,
  cap=None,
  mesh=None,
  kernel=None,
  ring=False,
  int8=False,
):
  """Checks the kernel, or XLA without one, against `attend` over whole sequences.

  Sixteen rows continue three prompts in random order; some have ended. Slots
  without a token are NaN for the kernel, and large numbers otherwise.

  Args:
    slots: numbers of slots of a prompt and of a response.
    window: sliding window in tokens, or `None`.
    cap: soft cap of the scores, or `None`.
    mesh: the mesh, or `None` for one device.
    kernel: `attend_token` with the TPU kernel, or `None` for XLA.
    ring: whether responses are stored in a ring.
    int8: whether keys and values are stored as integers.
  """
  config = dataclasses.replace(CONFIG, attention_soft_cap=cap)
  rng, rows, prompts = np.random.default_rng(0), 16, 4
  prompt = rng.integers(0, 3, rows)
  prompt_slots, response_slots = slots
  lengths = jnp.array([prompt_slots, 1, prompt_slots // 2, 0])
  length = (
    jnp.asarray(rng.integers(0, response_slots + 1, rows))
    .at[0]
    .set(response_slots)
  )
  live = jnp.asarray(rng.random(rows) < 0.8).at[:3].set(True)
  filler = jnp.nan if kernel else 1e6

  def cached(seed, count, slots, is_token):
    values = normal_array(seed, 2, count, KV_HEADS, slots, WIDTH)
    return jnp.where(is_token[None, :, None, :, None], values, filler)

  in_prompt = jnp.arange(prompt_slots) >= prompt_slots - lengths[:, None]
  in_response = jnp.arange(response_slots) < length[:, None]
  cache = DecodeCache(
    prompts=PromptCache(
      cached(1, prompts, prompt_slots, in_prompt),
      cached(2, prompts, prompt_slots, in_prompt),
      lengths,
    ),
    # Two shards of rows count their prompts from 0.
    prompt_index=jnp.asarray(prompt % 2 if mesh else prompt),
    keys=cached(3, rows, response_slots, in_response),
    values=cached(4, rows, response_slots, in_response),
    length=length,
  )
  if int8:
    cache = as_int8(cache)
  layer_indices = {'layer': jnp.asarray(1, jnp.int32)}
  cache_under_test = cache
  if ring:
    assert window is not None
    windows = (0, window)
    cache_under_test = DecodeCache.empty(
      cache.prompts, cache.prompt_index, response_slots, windows
    )
    cache_under_test = cache_under_test.with_contents(
      cache.keys, cache.values, length, windows
    )
    assert cache_under_test.ring is not None
    assert cache_under_test.ring.keys.shape[3] == window < response_slots
    assert (
      cache_under_test.keys.shape[0] == cache_under_test.ring.keys.shape[0] == 1
    )
    layer_indices |= {
      'response_layer': jnp.asarray(0),
      'in_ring': jnp.asarray(True),
    }
  if mesh:
    prompt = prompt % 2 + 2 * (np.arange(rows) >= rows // 2)
  queries = normal_array(5, rows, HEADS, WIDTH)
  keys, values = (
    normal_array(6, rows, KV_HEADS, WIDTH),
    normal_array(7, rows, KV_HEADS, WIDTH),
  )

  @jax.jit
  def attended(queries, keys, values, cache):
    tokens = CachedTokens(
      cache=cache,
      live=live,
      reads=list_prompts(cache, live),
      window=None if window is None else jnp.asarray(window),
      **layer_indices,
    )
    return (kernel or attend_token)(queries, keys, values, tokens, config)

  with sharding.use_mesh(mesh, sharding.ROLLOUT_RULES):
    actual = attended(queries, keys, values, cache_under_test)

  def dequantised(x):
    return x.values * x.scale[..., None] if int8 else x

  def join_parts(prompt_part, response_part, new):
    prompt_part, response_part = (
      dequantised(prompt_part),
      dequantised(response_part),
    )
    keys_or_values = prompt_part[1][prompt], response_part[1], new[:, :, None]
    return jnp.nan_to_num(jnp.concatenate(keys_or_values, axis=2))

  new_token = jnp.ones((rows, 1), bool)
  mask = jnp.concatenate((in_prompt[prompt], in_response, new_token), axis=1)
  if window is not None:
    distance = jnp.concatenate(
      (
        prompt_slots - jnp.arange(prompt_slots) + length[:, None],
        length[:, None] - jnp.arange(response_slots),
        0 * new_token,
      ),
      axis=1,
    )
    mask &= distance < window
  expected = attend(
    queries[:, None],
    join_parts(cache.prompts.keys, cache.keys, keys),
    join_parts(cache.prompts.values, cache.values, values),
    mask[:, None],
    cap=cap,
  )[:, 0]
  np.testing.assert_allclose(actual[live], expected[live], atol=2e-5)
  assert np.isfinite(actual).all()


def as_int8(cache):
  return cache._replace(
    prompts=cache.prompts.as_int8(),
    keys=Int8Vectors.of(cache.keys),
    values=Int8Vectors.of(cache.values),
  )


@pytest.fixture
def kernel(monkeypatch):
  """The kernel in interpret mode, with blocks of 128 slots."""
  monkeypatch.setattr(
    decode_kernel, 'STEP_BYTES', 128 * 2 * KV_HEADS * WIDTH * 4
  )
  monkeypatch.setattr(decode_attention, 'uses_kernel', lambda _: True)
  return functools.partial(attend_token, interpret=pltpu.InterpretParams())


SETTINGS = [
  {},
  {'cap': 5.0},
  {'window': 60},
  {'window': 200},
  {'window': 200, 'ring': True},
  {'int8': True},
]


@pytest.mark.parametrize('setting', SETTINGS)
def test_decode_attention_by_xla_equals_attention_over_whole_rows(setting):
  check_decode(**setting)


@pytest.mark.parametrize('setting', SETTINGS)
def test_decode_kernel_reads_only_tokens(setting, kernel):
  """Slots without a token hold NaN, which would propagate."""
  check_decode(**setting, kernel=kernel)


@pytest.mark.parametrize('with_kernel', [False, True])
def test_decode_attention_on_a_mesh_equals_attention_over_whole_rows(
  with_kernel, kernel, monkeypatch
):
  if not with_kernel:
    monkeypatch.setattr(decode_attention, 'uses_kernel', lambda _: False)
  mesh = sharding.make_mesh({'data': 2, 'tensor': 2}, jax.devices()[:4])
  setting = {'slots': (9, 40), 'window': 16, 'ring': True}
  check_decode(**setting, mesh=mesh, kernel=kernel if with_kernel else None)


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_prompts_to_read_are_those_of_live_rows(data):
  rows = 16
  prompt = data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
  live = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
  reads = LIST_PROMPTS(jnp.array(prompt), jnp.array(live))
  count = int(reads.length[0])
  actual = list(
    zip(reads.tile.tolist(), reads.prompt_index.tolist(), strict=True)
  )
  expected = {(row // 8, prompt[row]) for row in range(rows) if live[row]}
  assert len(actual[:count]) == len(expected)
  assert set(actual[:count]) == expected
  assert [tile for tile, _ in actual[:count]] == sorted(t for t, _ in expected)


LIST_PROMPTS = jax.jit(cached_tokens.list_prompts_of_shard)
LIST_BLOCKS = jax.jit(blocks_to_read, static_argnums=(1, 2))


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_blocks_to_read_are_those_with_a_slot_in_range(data):
  # Few shapes, since each is compiled.
  slots, size = data.draw(
    st.sampled_from([(1, 1), (5, 9), (12, 4), (23, 5), (40, 9)])
  )
  rows = data.draw(st.sampled_from([1, 5]))
  ranges = data.draw(
    st.lists(
      st.tuples(st.integers(0, slots), st.integers(0, slots)),
      min_size=rows,
      max_size=rows,
    )
  )
  starts, ends = np.sort(np.array(ranges, np.int32), axis=1).T
  blocks = LIST_BLOCKS(
    SlotRange(jnp.asarray(starts), jnp.asarray(ends)), size, slots
  )
  count = int(blocks.length)
  actual = list(
    zip(blocks.range_index.tolist(), blocks.block.tolist(), strict=True)
  )
  expected = [
    (row, block)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True))
    for block in range(-(-slots // size))
    if max(block * size, start) < min((block + 1) * size, end)
  ]
  assert actual[:count] == expected
  # Entries beyond the length must be valid indices too.
  assert all(row < len(ranges) for row, _ in actual)
  assert all(block < -(-slots // size) for _, block in actual)


@pytest.mark.parametrize(
  ('width', 'lanes'), [(64, 128), (128, 128), (192, 256)]
)
def test_stated_traffic_is_of_whole_lanes(width, lanes):
  """Memory is in tiles of 128 lanes, of which a narrower vector takes all."""
  rows, slots, layers = 3, 40, 2

  def abstract(*shape, dtype=jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)

  integers, sums = abstract(rows, dtype=jnp.int32), abstract(rows, KV_HEADS, 2)
  cached = abstract(layers, rows, KV_HEADS, slots, width, dtype=jnp.bfloat16)
  queries = abstract(rows, KV_HEADS, 2, width)
  reads = decode_kernel.BlockReads(
    length=abstract(dtype=jnp.int32),
    tile=integers,
    source=integers,
    block=integers,
    row_source=integers,
    slots=SlotRange(integers, integers),
  )
  traced = jax.make_jaxpr(
    functools.partial(
      decode_kernel.attend_blocks,
      tile_rows=1,
      scale=1.0,
      cap=None,
      interpret=False,
    )
  )(
    queries,
    OnlineSoftmax(sums, sums, queries),
    cached,
    cached,
    abstract(dtype=jnp.int32),
    reads,
  )
  (stated_bytes,) = (
    equation.params['cost_estimate'].bytes_accessed
    for equation in traced.eqns
    if equation.primitive.name == 'pallas_call'
  )
  assert stated_bytes == 2 * rows * KV_HEADS * slots * lanes * 2


def test_blocks_are_small_relative_to_a_row():
  """Partial blocks at a row's ends are at most a tenth of a long row."""
  for kv_heads in (1, 2, 4, 8):
    assert block_size(10239, 2 * kv_heads * 128 * 2) <= 1024


def test_decode_attention_is_the_same_with_integers_of_64_bits():
  with jax.enable_x64(True):
    check_decode()
