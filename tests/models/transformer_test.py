# SPDX-License-Identifier: Apache-2.0
"""Transformer: padding, packing, causality, KV cache, rematerialisation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.models import Policy, tiny, transformer
from covrl.models.attention import cudnn
from covrl.models.attention import grouped_query as attention
from covrl.models.attention.grouped_query import AttentionMask
from covrl.models.cache import DecodeCache
from covrl.models.remat import REMAT_POLICIES
from covrl.models.rope import Rotation
from covrl.models.transformer import Block

CONFIG = tiny(16)
POLICY = Policy(CONFIG)
PARAMS = POLICY.init(jax.random.key(0))
HIDDEN = jax.jit(POLICY.hidden)
PREFILL = jax.jit(POLICY.prefill)
DECODE = jax.jit(POLICY.decode)


def draw_tokens(seed, *shape):
  tokens = np.random.default_rng(seed).integers(0, 16, shape)
  return jnp.asarray(tokens, jnp.int32)


def hidden_of(tokens, *, mask=None, segment_ids=None, positions=None):
  tokens = jnp.asarray(tokens, jnp.int32)
  if segment_ids is None:
    segment_ids = jnp.ones_like(tokens) if mask is None else mask * 1
  if positions is None:
    positions = jnp.maximum(jnp.cumsum(segment_ids, axis=1) - 1, 0)
  return np.asarray(
    HIDDEN(PARAMS, tokens, positions=positions, segment_ids=segment_ids)
  )


def test_scan_equals_a_loop_over_layers():
  tokens = draw_tokens(1, 3, 7)
  positions = jnp.broadcast_to(jnp.arange(7), tokens.shape)
  mask = jnp.broadcast_to(jnp.tri(7, dtype=bool), (3, 7, 7))
  graphdef = nnx.graphdef(
    nnx.eval_shape(lambda: Block(CONFIG, rngs=nnx.Rngs(0)))
  )

  @jax.jit
  def run_layer(layer, x):
    rotation = Rotation.of(positions, CONFIG.frequencies[0])
    return nnx.merge(graphdef, layer)(x, rotation, AttentionMask(mask=mask))[0]

  x = np.asarray(PARAMS['embedding'])[tokens]
  for index in range(CONFIG.num_layers):
    layer = jax.tree.map(np.asarray, PARAMS['layers'])
    x = run_layer(jax.tree.map(lambda leaf, i=index: leaf[i], layer), x)
  x = np.asarray(x)
  norm = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + CONFIG.norm_eps)
  np.testing.assert_allclose(hidden_of(tokens), x / norm, atol=1e-5)


def test_layers_have_different_parameters():
  first, second = PARAMS['layers']['mlp']['gate']
  assert not np.array_equal(first, second)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_changes_nothing(side):
  tokens, pad = draw_tokens(2, 2, 6), draw_tokens(3, 2, 4)
  is_token, padding = jnp.ones((2, 6), bool), jnp.zeros((2, 4), bool)
  order = -1 if side == 'left' else 1
  padded = jnp.concatenate((tokens, pad)[::order], axis=1)
  mask = jnp.concatenate((is_token, padding)[::order], axis=1)
  actual = hidden_of(padded, mask=mask)[np.asarray(mask)].reshape(2, 6, -1)
  np.testing.assert_allclose(actual, hidden_of(tokens), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 11), max_size=3, unique=True))
def test_packing_changes_nothing(cuts):
  row = np.asarray(draw_tokens(4, 12))
  sequences = np.split(row, sorted(cuts))
  ids = np.concatenate(
    [np.full(len(p), i + 1) for i, p in enumerate(sequences)]
  )
  positions = np.concatenate([np.arange(len(p)) for p in sequences])
  packed = hidden_of(
    row[None],
    segment_ids=jnp.array(ids[None]),
    positions=jnp.array([positions]),
  )[0]
  for sequence, actual in zip(
    sequences, np.split(packed, sorted(cuts)), strict=True
  ):
    padded = np.zeros((1, 12), np.int32)
    padded[0, : len(sequence)] = sequence
    mask = jnp.arange(12)[None] < len(sequence)
    expected = hidden_of(padded, mask=mask)[0, : len(sequence)]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_attention_is_causal():
  tokens = draw_tokens(5, 1, 8)
  changed = tokens.at[0, 5].add(1) % 16
  before, after = hidden_of(tokens), hidden_of(changed)
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert np.abs(before[:, 5:] - after[:, 5:]).max(axis=-1).min() > 1e-4


def test_cached_decoding_equals_the_full_forward():
  prompts, response_tokens = draw_tokens(6, 3, 5), draw_tokens(7, 3, 4)
  lengths = jnp.array([5, 3, 1])
  mask = jnp.arange(5) >= 5 - lengths[:, None]
  positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  is_token = jnp.concatenate((mask, jnp.ones((3, 4), bool)), axis=1)
  expected = hidden_of(
    jnp.concatenate((prompts, response_tokens), axis=1), mask=is_token
  )
  actual, cached = PREFILL(PARAMS, prompts, positions, mask)
  np.testing.assert_allclose(actual, expected[:, 4], atol=1e-5)
  cache = DecodeCache.empty(cached, jnp.arange(3), 4)
  for t in range(4):
    np.testing.assert_array_equal(cache.position(), lengths + t)
    actual, cache = DECODE(PARAMS, response_tokens[:, t], cache)
    np.testing.assert_allclose(actual, expected[:, 5 + t], atol=1e-5)


def test_every_parameter_has_a_gradient_and_remat_changes_none():
  config = dataclasses.replace(CONFIG, tied_embeddings=False)
  head = np.random.default_rng(0).normal(size=(32, 16), scale=0.2)
  params = PARAMS | {'head': jnp.asarray(head, jnp.float32)}
  tokens = draw_tokens(8, 4, 12)

  def gradient(config):
    def loss(params):
      logprobs = jax.nn.log_softmax(Policy(config).logits(params, tokens))
      return jnp.mean(logprobs[:, :, 3])

    return jax.jit(jax.grad(loss))(params)

  without_remat = gradient(config)
  # 'host' needs a TPU; its programs are compiled in the tests of topologies.
  for name in REMAT_POLICIES.keys() - {'host'}:
    actual = gradient(dataclasses.replace(config, remat=name))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      without_remat,
      actual,
    )
  for path, leaf in jax.tree.leaves_with_path(without_remat):
    layers = np.asarray(leaf if 'layers' in str(path) else leaf[None])
    for layer in layers:
      assert np.mean(layer != 0) > 0.99, path


def test_rows_of_one_sequence_need_no_mask(monkeypatch):
  """GPUs roll rows so that they begin in the first column, and back."""
  monkeypatch.setattr(
    attention,
    'attend_unpacked',
    functools.partial(attention.attend_unpacked, implementation='xla'),
  )
  tokens = draw_tokens(3, 3, 9)
  # Padding on the left, padding on both sides, and a row of padding only.
  start, end = jnp.array([[3], [2], [0]]), jnp.array([[9], [7], [0]])
  column = jnp.arange(9)
  is_token = (column >= start) & (column < end)
  rows = {
    'positions': jnp.maximum(column - start, 0),
    'segment_ids': is_token.astype(jnp.int32),
  }
  weights = jax.random.normal(jax.random.key(1), (3, 9, CONFIG.model_dim))

  def value(params, attends_without_mask):
    monkeypatch.setattr(
      transformer, 'attends_without_mask', lambda _: attends_without_mask
    )
    hidden, _ = POLICY.hidden_and_routing(
      params, tokens, one_sequence=True, **rows
    )
    return jnp.sum(jnp.where(is_token[..., None], hidden * weights, 0)), hidden

  (_, expected), expected_gradient = jax.value_and_grad(value, has_aux=True)(
    PARAMS, False
  )
  (_, actual), gradient = jax.value_and_grad(value, has_aux=True)(PARAMS, True)
  np.testing.assert_allclose(actual[is_token], expected[is_token], atol=1e-5)
  assert np.all(np.isfinite(actual))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
    gradient,
    expected_gradient,
  )


def test_gpus_compute_rows_of_one_sequence_without_a_mask():
  """Checks the choice of kernel by platform, dtype and window; executes nothing."""
  mesh = jax.sharding.AbstractMesh(
    (1,),
    ('data',),
    abstract_device=jax.sharding.AbstractDevice('NVIDIA H100', None, 'gpu'),
  )
  narrow = dataclasses.replace(CONFIG, dtype='bfloat16', head_dim=64)
  assert not cudnn.attends_without_mask(narrow)
  with jax.sharding.use_abstract_mesh(mesh):
    assert cudnn.attends_without_mask(narrow)
    assert not cudnn.attends_without_mask(CONFIG)
    windows = tuple(range(CONFIG.num_layers))
    assert not cudnn.attends_without_mask(
      dataclasses.replace(narrow, windows=windows)
    )
    assert cudnn.attends_without_mask(
      dataclasses.replace(narrow, windows=(4,) * CONFIG.num_layers)
    )


@pytest.mark.parametrize(
  ('windows', 'chunk'), [((), 5), ((0, 3), 4), ((5, 5), 12)]
)
def test_chunked_prefill_equals_that_of_whole_prompts(windows, chunk):
  """Rows are padded on both sides, and no chunk size divides their width."""
  policy = Policy(dataclasses.replace(CONFIG, windows=windows))
  tokens, column = draw_tokens(9, 4, 13), jnp.arange(13)
  start, end = jnp.array([[0], [4], [12], [3]]), jnp.array([[13]] * 3 + [[9]])
  mask = (column >= start) & (column < end)
  rows = tokens, jnp.maximum(column - start, 0), mask
  prefill = jax.jit(policy.prefill, static_argnames='chunk')
  full_last, full_cache = prefill(PARAMS, *rows)
  last, cache = prefill(PARAMS, *rows, chunk=chunk)
  np.testing.assert_array_equal(cache.lengths, full_cache.lengths)
  pairs = [(last[:3], full_last[:3])]
  for actual, expected in zip(cache[:2], full_cache[:2], strict=True):
    is_token = np.broadcast_to(mask[None, :, None, :, None], actual.shape)
    pairs.append((actual[is_token], expected[is_token]))
  for actual, expected in pairs:
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * scale)


def test_chunked_prefill_bounds_the_memory_of_activations():
  tokens = jnp.zeros((4, 1024), jnp.int32)
  rows = tokens, tokens, tokens == 0

  def temporary_bytes(chunk):
    run = functools.partial(POLICY.prefill, chunk=chunk)
    memory = jax.jit(run).lower(PARAMS, *rows).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes

  assert temporary_bytes(64) < temporary_bytes(0) / 4
