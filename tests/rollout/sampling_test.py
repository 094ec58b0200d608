# SPDX-License-Identifier: Apache-2.0
"""Token sampling: truncation, frequencies, greedy, masked tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covrl.rollout.sampling import Sampling, sample_token, truncation_mask

DRAW = jax.jit(sample_token)
MASK = jax.jit(truncation_mask)


def log_softmax(x):
  x = x - x.max(axis=-1, keepdims=True)
  return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def oracle_mask(logprobs, top_p, top_k):
  """Top-k, then top-p of the rest, row by row, by sorting."""
  kept = np.zeros(logprobs.shape, bool)
  for row, out in zip(logprobs.astype(np.float64), kept, strict=True):
    order = np.argsort(-row, kind='stable')[: top_k or None]
    probs = np.exp(row[order])
    before = np.cumsum(probs / probs.sum()) - probs / probs.sum()
    out[order if top_p == 1 else order[before < top_p]] = True
  return kept


def draw_many(logits, count, sampling, seed=0):
  rows = jnp.broadcast_to(
    jnp.asarray(logits, jnp.float32), (count, len(logits))
  )
  keys = jax.random.split(jax.random.key(seed), count)
  return DRAW(rows, keys, sampling)


# Eighths of a nat: many ties, and no cumulative sum within rounding of top_p.
LOGITS = hnp.arrays(
  np.float32, (4, 7), elements=st.integers(-24, 24).map(lambda n: n / 8)
)


@settings(max_examples=100, deadline=None)
@given(
  logits=LOGITS,
  top_p=st.sampled_from([0.0101, 0.3003, 0.7007, 0.9909, 1.0]),
  top_k=st.integers(0, 8),
)
def test_truncation_equals_sorting(logits, top_p, top_k):
  logprobs = log_softmax(logits)
  got = MASK(
    jnp.asarray(logprobs), top_p=jnp.float32(top_p), top_k=jnp.int32(top_k)
  )
  np.testing.assert_array_equal(got, oracle_mask(logprobs, top_p, top_k))


@settings(max_examples=50, deadline=None)
@given(
  logits=LOGITS,
  temperature=st.sampled_from([0.5, 1.0, 1.3]),
  top_p=st.sampled_from([0.4004, 0.9009, 1.0]),
  top_k=st.integers(0, 7),
  seed=st.integers(0, 2**31 - 1),
)
def test_log_probabilities_before_and_after_truncation(
  logits, temperature, top_p, top_k, seed
):
  keys = jax.random.split(jax.random.key(seed), 4)
  sampling = Sampling.make(temperature, top_p, top_k)
  token, sampler, behaviour = DRAW(jnp.asarray(logits), keys, sampling)
  full = log_softmax(logits.astype(np.float64) / temperature)
  kept = oracle_mask(full.astype(np.float32), top_p, top_k)
  rows = np.arange(4)
  assert kept[rows, token].all()
  share = np.where(kept, np.exp(full), 0).sum(axis=-1)
  np.testing.assert_allclose(sampler, full[rows, token], atol=1e-5)
  np.testing.assert_allclose(
    behaviour, full[rows, token] - np.log(share), atol=1e-5
  )


@pytest.mark.parametrize(
  ('temperature', 'top_p', 'top_k'),
  [(1.0, 1.0, 0), (0.6, 1.0, 0), (1.0, 0.75, 0), (1.4, 1.0, 3)],
)
def test_frequencies(temperature, top_p, top_k):
  logits, count = np.array([0.3, 1.2, -0.5, 0.9, -2.0]), 20_000
  sampling = Sampling.make(temperature, top_p, top_k)
  token, _, _ = draw_many(logits, count, sampling)
  full = log_softmax(logits / temperature)
  kept = oracle_mask(full[None], top_p, top_k)[0]
  want = np.where(kept, np.exp(full), 0)
  want = count * want / want.sum()
  seen = np.bincount(token, minlength=5)
  assert (seen[~kept] == 0).all()
  chi_square = ((seen - want)[kept] ** 2 / want[kept]).sum()
  # 99.9th percentile of chi-square with four degrees of freedom.
  assert chi_square < 18.47


def test_frequency_test_detects_a_wrong_temperature():
  logits, count = np.array([0.3, 1.2, -0.5, 0.9, -2.0]), 20_000
  token, _, _ = draw_many(logits, count, Sampling.make(1.1))
  want = count * np.exp(log_softmax(logits))
  seen = np.bincount(token, minlength=5)
  assert ((seen - want) ** 2 / want).sum() > 18.47


@pytest.mark.parametrize(('top_p', 'top_k'), [(1.0, 0), (0.5, 2)])
def test_temperature_zero_is_greedy(top_p, top_k):
  logits = np.random.default_rng(0).normal(size=(32, 9)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 32)
  sampling = Sampling.make(0.0, top_p, top_k)
  token, sampler, behaviour = DRAW(jnp.asarray(logits), keys, sampling)
  np.testing.assert_array_equal(token, logits.argmax(axis=-1))
  full = log_softmax(logits)
  np.testing.assert_allclose(sampler, full.max(axis=-1), atol=1e-6)
  kept = oracle_mask(full, top_p, top_k)
  share = np.where(kept, np.exp(full), 0).sum(axis=-1)
  np.testing.assert_allclose(
    behaviour, full.max(axis=-1) - np.log(share), atol=1e-5
  )


@pytest.mark.parametrize('setting', [{}, {'top_p': 0.9}, {'top_k': 4}])
def test_masked_tokens_are_never_sampled(setting):
  logits = np.array([-np.inf, 0.0, -np.inf, 1.0])
  token, sampler, behaviour = draw_many(logits, 500, Sampling.make(**setting))
  assert set(np.asarray(token).tolist()) == {1, 3}
  assert np.isfinite(sampler).all()
  assert np.isfinite(behaviour).all()
  want = np.log(1 / (1 + np.exp(-1.0)))
  np.testing.assert_allclose(sampler[token == 3], want, atol=1e-6)


def test_a_row_depends_on_its_own_key_only():
  logits = jax.random.normal(jax.random.key(1), (16, 8))
  keys = jax.random.split(jax.random.key(2), 16)
  order = np.random.default_rng(0).permutation(16)
  whole = DRAW(logits, keys, Sampling.make())
  mixed = DRAW(logits[order], keys[order], Sampling.make())
  for a, b in zip(whole, mixed, strict=True):
    np.testing.assert_array_equal(np.asarray(a)[order], b)


@pytest.mark.parametrize(
  ('setting', 'sentence'),
  [
    ({'temperature': -0.1}, 'temperature must be finite .* got -0.1'),
    ({'temperature': float('inf')}, 'temperature must be finite .* got inf'),
    ({'temperature': float('nan')}, 'temperature must be finite .* got nan'),
    ({'top_p': 0.0}, r'top_p must lie in \(0, 1\], got 0.0'),
    ({'top_p': 1.1}, r'top_p must lie in \(0, 1\], got 1.1'),
    ({'top_k': -1}, 'top_k must be a whole number from 0, got -1'),
  ],
)
def test_refuses_parameters_out_of_range(setting, sentence):
  with pytest.raises(ValueError, match=sentence):
    Sampling.make(**setting)
