# SPDX-License-Identifier: Apache-2.0
"""Statistics of truncated policies, against formulas in NumPy, on meshes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fast_compilation import QUICK

from covrl.parallel.sharding import (
  TRAIN_RULES,
  fitted_sharding,
  make_mesh,
  shard_batch,
)
from covrl.statistics import Truncation, token_stats

ROWS, LENGTH, WIDTH, VOCABULARY = 16, 20, 16, 64
TRUNCATION = Truncation(min_p=0.1, removed=0.3)


def problem(dtype=jnp.float32, length=LENGTH):
  """Hidden states, unembedding with an impossible token, targets, cotangents."""
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(ROWS, length, WIDTH)), dtype)
  unembedding = jnp.asarray(rng.normal(size=(WIDTH, VOCABULARY)) / 4, dtype)
  unembedding = unembedding.at[:, 5].set(-jnp.inf)
  targets = jnp.asarray(rng.integers(6, VOCABULARY, (ROWS, length)))
  return (
    hidden,
    unembedding,
    targets,
    jnp.asarray(rng.normal(size=(ROWS, length)), jnp.float32),
  )


def truncated_statistics(hidden, unembedding, targets, signal, soft_cap=None):
  """Entropy of the top tokens, log-probabilities under min-p, and the entropy's cotangents."""

  def forward(hidden, unembedding):
    stats, moments = token_stats(
      hidden,
      unembedding,
      targets,
      temperature=0.7,
      soft_cap=soft_cap,
      moments=True,
      truncation=TRUNCATION,
      chunk_size=16,
    )
    return stats.top_entropy, moments.filtered_logprobs

  entropy, pull_back, filtered = jax.vjp(
    forward, hidden, unembedding, has_aux=True
  )
  return entropy, filtered, pull_back(signal)


def numpy_reference(hidden, unembedding, targets, signal, soft_cap=None):
  """Reference of `truncated_statistics` in float64, by sorting."""
  hidden, unembedding, signal = (
    np.asarray(x).astype('f8') for x in (hidden, unembedding, signal)
  )
  possible = np.isfinite(unembedding).all(0)
  unembedding = np.where(possible, unembedding, 0)
  uncapped = hidden @ unembedding
  capped = (
    uncapped if soft_cap is None else soft_cap * np.tanh(uncapped / soft_cap)
  )
  z = np.where(possible, capped / 0.7, -np.inf)
  p = np.exp(z - z.max(-1, keepdims=True))
  is_above_min_p = p >= 0.1
  target_p = np.take_along_axis(p, np.asarray(targets)[..., None], -1)[..., 0]
  with np.errstate(divide='ignore'):
    filtered = np.where(
      target_p >= 0.1,
      np.log(target_p / np.sum(p * is_above_min_p, -1)),
      -np.inf,
    )
  removed = int(0.3 * VOCABULARY)
  is_top = z >= np.sort(z, -1)[..., removed : removed + 1]
  top = p * is_top / np.sum(p * is_top, -1, keepdims=True)
  log_top = np.log(np.where(top > 0, top, 1))
  entropy = -np.sum(top * log_top, -1)
  logits_cotangent = (
    -signal[..., None] * top * (log_top + entropy[..., None]) / 0.7
  )
  if soft_cap is not None:
    logits_cotangent = logits_cotangent * (1 - (capped / soft_cap) ** 2)
  return (
    entropy,
    filtered,
    (
      logits_cotangent @ unembedding.T,
      np.einsum('btd,btv->dv', hidden, logits_cotangent),
    ),
  )


def assert_close(actual, expected, tolerance=1e-5):
  for actual_leaf, expected_leaf in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    finite = np.isfinite(expected_leaf)
    np.testing.assert_array_equal(np.isfinite(actual_leaf), finite)
    np.testing.assert_allclose(
      np.asarray(actual_leaf, 'f8')[finite],
      expected_leaf[finite],
      rtol=tolerance,
      atol=tolerance * np.abs(expected_leaf[finite]).max(),
    )


@pytest.mark.parametrize('soft_cap', [None, 3.0])
def test_equals_the_formulas(soft_cap):
  case = problem()  # 320 positions: two whole blocks of 128, and a half
  expected = numpy_reference(*case, soft_cap)
  actual = jax.jit(
    truncated_statistics, static_argnums=4, compiler_options=QUICK
  )(*case, soft_cap)
  assert 0.1 < np.isfinite(expected[1]).mean() < 0.9
  assert_close(actual, expected)
  plain = token_stats(*case[:3], temperature=0.7, soft_cap=soft_cap)
  assert np.all(np.asarray(actual[0]) < plain.entropy)


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_meshes_give_the_same_statistics(shape):
  hidden, unembedding, targets, signal = problem()
  mesh = make_mesh(shape)
  rows = shard_batch((hidden, targets, signal), mesh)
  columns = fitted_sharding(
    mesh, ('embed', 'vocab'), unembedding.shape, TRAIN_RULES
  )
  actual = jax.jit(truncated_statistics, compiler_options=QUICK)(
    rows[0], jax.device_put(unembedding, columns), *rows[1:]
  )
  assert_close(actual, numpy_reference(hidden, unembedding, targets, signal))


def test_at_most_128_positions_have_logits_at_a_time():
  arrays = problem()
  text = jax.jit(truncated_statistics).lower(*arrays).compile().as_text()
  assert text is not None
  assert f'[128,{VOCABULARY}]' in text
  assert f'[{ROWS * LENGTH},{VOCABULARY}]' not in text
  assert f'[{ROWS},{LENGTH},{VOCABULARY}]' not in text


def test_ties_with_the_least_likely_kept_token_are_kept():
  hidden, targets = jnp.ones((1, 1, 1)), jnp.zeros((1, 1), int)
  unembedding = jnp.log(jnp.asarray([[1.0, 1.0, 1.0, 4.0]]))
  stats = token_stats(
    hidden, unembedding, targets, truncation=Truncation(removed=0.5)
  )
  pi = np.array([1, 1, 1, 4]) / 7
  np.testing.assert_allclose(
    np.asarray(stats.top_entropy), -np.sum(pi * np.log(pi)), rtol=1e-6
  )


def test_bfloat16_cotangents_have_the_dtypes_of_the_inputs():
  case = problem(jnp.bfloat16)
  entropy, _, cotangents = jax.jit(
    truncated_statistics, compiler_options=QUICK
  )(*case)
  assert entropy.dtype == jnp.float32
  assert {x.dtype for x in cotangents} == {jnp.dtype(jnp.bfloat16)}
  assert_close((entropy, cotangents), numpy_reference(*case)[::2], 2e-2)


@pytest.mark.parametrize(
  ('truncation', 'words'),
  [
    (Truncation(min_p=0.0), 'min_p must lie in (0, 1], got 0'),
    (Truncation(min_p=1.5), 'min_p must lie in (0, 1], got 1.5'),
    (Truncation(removed=1.0), 'removed must be below 1'),
    (Truncation(removed=-0.1), 'removed must lie in (0, 1]'),
  ],
)
def test_refuses_numbers_out_of_range(truncation, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    token_stats(*problem()[:3], moments=True, truncation=truncation)


def test_positions_without_a_possible_token_have_nan_statistics():
  hidden, unembedding, targets, _ = problem(length=2)
  stats, moments = token_stats(
    hidden,
    jnp.full_like(unembedding, -jnp.inf),
    targets,
    moments=True,
    truncation=TRUNCATION,
  )
  assert np.isnan(np.asarray(stats.top_entropy)).all()
  assert np.isnan(np.asarray(moments.filtered_logprobs)).all()


def test_refuses_min_p_without_moments():
  with pytest.raises(
    ValueError, match=r'moments must be True with truncation.min_p'
  ):
    token_stats(*problem()[:3], truncation=Truncation(min_p=0.1))
