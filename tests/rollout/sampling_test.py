# SPDX-License-Identifier: Apache-2.0
"""Token sampling: truncation, frequencies, greedy, masked tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covrl.parallel.sharding import ROLLOUT_RULES, make_mesh, use_mesh
from covrl.rollout import sampling as sampling_module
from covrl.rollout.sampling import BLOCK, Sampling, sample_token
from covrl.rollout.truncation import VocabShard, find_threshold

DRAW = jax.jit(sample_token)


@jax.jit
def kept_mask(logits, top_p, top_k, min_p):
  rows, size = logits.shape
  shard = VocabShard(0, size)
  logits = logits - logits.max(axis=1, keepdims=True)
  threshold = find_threshold(
    logits,
    top_p=jnp.full(rows, top_p, jnp.float32),
    top_k=jnp.full(rows, top_k, jnp.int32),
    min_p=jnp.full(rows, min_p, jnp.float32),
    shard=shard,
  )
  return threshold.keeps(logits, shard.ids(size))


def log_softmax(x):
  x = x - x.max(axis=-1, keepdims=True)
  return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def oracle_mask(logprobs, top_p, top_k, min_p=0.0):
  """Top-k, then top-p of the rest, then min-p, row by row, by sorting."""
  kept = np.zeros(logprobs.shape, bool)
  for row, kept_row in zip(logprobs.astype(np.float64), kept, strict=True):
    order = np.argsort(-row, kind='stable')[: top_k or None]
    probs = np.exp(row[order])
    mass_before = np.cumsum(probs / probs.sum()) - probs / probs.sum()
    kept_row[order if top_p == 1 else order[mass_before < top_p]] = True
    kept_row &= np.exp(row - row.max()) >= min_p
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
  min_p=st.sampled_from([0.0, 0.0505, 0.6006]),
)
def test_truncation_equals_sorting(logits, top_p, top_k, min_p):
  np.testing.assert_array_equal(
    kept_mask(logits, top_p, top_k, min_p),
    oracle_mask(log_softmax(logits), top_p, top_k, min_p),
  )


def test_truncation_of_a_large_vocabulary_equals_sorting():
  logits = np.random.default_rng(0).normal(size=(4, 5000)) * 3
  logits = np.round(logits, 2).astype(np.float32)
  for top_p, top_k, min_p in ((0.9, 0, 0), (1, 50, 0), (0.7, 700, 1e-3)):
    np.testing.assert_array_equal(
      kept_mask(logits, top_p, top_k, min_p),
      oracle_mask(log_softmax(logits), top_p, top_k, min_p),
    )


@settings(max_examples=50, deadline=None)
@given(
  logits=LOGITS,
  temperature=st.sampled_from([0.5, 1.0, 1.3]),
  top_p=st.sampled_from([0.4004, 0.9009, 1.0]),
  top_k=st.integers(0, 7),
  seed=st.integers(0, 2**31 - 1),
)
def test_log_probabilities_equal_those_of_sorting_with_and_without_truncation(
  logits, temperature, top_p, top_k, seed
):
  keys = jax.random.split(jax.random.key(seed), 4)
  sampling = Sampling.make(temperature, top_p, top_k)
  token, sampler_logprob, behaviour_logprob = DRAW(
    jnp.asarray(logits), keys, sampling
  )
  log_pi = log_softmax(logits.astype(np.float64) / temperature)
  kept = oracle_mask(log_pi.astype(np.float32), top_p, top_k)
  rows = np.arange(4)
  assert kept[rows, token].all()
  kept_mass = np.where(kept, np.exp(log_pi), 0).sum(axis=-1)
  np.testing.assert_allclose(sampler_logprob, log_pi[rows, token], atol=1e-5)
  np.testing.assert_allclose(
    behaviour_logprob, log_pi[rows, token] - np.log(kept_mass), atol=1e-5
  )


@pytest.mark.parametrize(
  ('temperature', 'top_p', 'top_k'),
  [(1.0, 1.0, 0), (0.6, 1.0, 0), (1.0, 0.75, 0), (1.4, 1.0, 3)],
)
def test_frequencies_equal_probabilities(temperature, top_p, top_k):
  logits, count = np.array([0.3, 1.2, -0.5, 0.9, -2.0]), 20_000
  sampling = Sampling.make(temperature, top_p, top_k)
  token, _, _ = draw_many(logits, count, sampling)
  log_pi = log_softmax(logits / temperature)
  kept = oracle_mask(log_pi[None], top_p, top_k)[0]
  expected = np.where(kept, np.exp(log_pi), 0)
  expected = count * expected / expected.sum()
  counts = np.bincount(token, minlength=5)
  assert (counts[~kept] == 0).all()
  chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
  # 99.9th percentile of chi-square with four degrees of freedom.
  assert chi_square < 18.47


def test_frequency_test_detects_a_wrong_temperature():
  logits, count = np.array([0.3, 1.2, -0.5, 0.9, -2.0]), 20_000
  token, _, _ = draw_many(logits, count, Sampling.make(1.1))
  expected = count * np.exp(log_softmax(logits))
  counts = np.bincount(token, minlength=5)
  assert ((counts - expected) ** 2 / expected).sum() > 18.47


@pytest.mark.parametrize(('top_p', 'top_k'), [(1.0, 0), (0.5, 2)])
def test_temperature_zero_is_greedy(top_p, top_k):
  logits = np.random.default_rng(0).normal(size=(32, 9)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 32)
  sampling = Sampling.make(0.0, top_p, top_k)
  token, sampler_logprob, behaviour_logprob = DRAW(
    jnp.asarray(logits), keys, sampling
  )
  np.testing.assert_array_equal(token, logits.argmax(axis=-1))
  log_pi = log_softmax(logits)
  np.testing.assert_allclose(sampler_logprob, log_pi.max(axis=-1), atol=1e-6)
  kept = oracle_mask(log_pi, top_p, top_k)
  share = np.where(kept, np.exp(log_pi), 0).sum(axis=-1)
  np.testing.assert_allclose(
    behaviour_logprob, log_pi.max(axis=-1) - np.log(share), atol=1e-5
  )


@pytest.mark.parametrize('setting', [{}, {'top_p': 0.9}, {'top_k': 4}])
def test_masked_tokens_are_never_sampled(setting):
  logits = np.array([-np.inf, 0.0, -np.inf, 1.0])
  token, sampler_logprob, behaviour_logprob = draw_many(
    logits, 500, Sampling.make(**setting)
  )
  assert set(np.asarray(token).tolist()) == {1, 3}
  assert np.isfinite(sampler_logprob).all()
  assert np.isfinite(behaviour_logprob).all()
  expected = np.log(1 / (1 + np.exp(-1.0)))
  np.testing.assert_allclose(sampler_logprob[token == 3], expected, atol=1e-6)


def chi_square(counts, probs, count):
  """Chi-square statistic, rare tokens together, and its 99.9th percentile."""
  expected = count * probs
  is_common = expected >= 20
  counts = np.append(counts[is_common], counts[~is_common].sum())
  expected = np.append(expected[is_common], expected[~is_common].sum())
  counts, expected = counts[expected > 0], expected[expected > 0]
  degrees = len(expected) - 1
  # The normal approximation of Wilson and Hilferty.
  variance = 2 / (9 * degrees)
  limit = degrees * (1 - variance + 3.09 * variance**0.5) ** 3
  return ((counts - expected) ** 2 / expected).sum(), limit


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  'setting',
  [
    {},
    {'temperature': 0.5},
    {'temperature': 1.5},
    {'top_p': 0.8},
    {'top_k': 40},
    {'min_p': 0.05},
  ],
)
def test_frequencies_equal_probabilities_over_many_blocks(setting, dtype):
  rng, count = np.random.default_rng(0), 8_000
  logits = rng.normal(size=5 * BLOCK + 17) * 1.5
  logits[rng.random(logits.size) < 0.2] = -np.inf
  logits = np.asarray(jnp.asarray(logits, dtype).astype(jnp.float32))
  keys = jax.random.split(jax.random.key(0), count)
  rows = jnp.broadcast_to(logits, (count, logits.size))
  token, _, _ = DRAW(rows, keys, Sampling.make(**setting))
  log_pi = log_softmax(logits / setting.get('temperature', 1.0))
  kept = oracle_mask(
    log_pi[None],
    setting.get('top_p', 1.0),
    setting.get('top_k', 0),
    setting.get('min_p', 0.0),
  )[0]
  probs = np.where(kept, np.exp(log_pi), 0)
  counts = np.bincount(token, minlength=logits.size)
  assert (counts[probs == 0] == 0).all()
  statistic, limit = chi_square(counts, probs / probs.sum(), count)
  assert statistic < limit


def test_frequencies_equal_probabilities_of_152_thousand_tokens():
  rng, size, rows, rounds = np.random.default_rng(1), 151_936, 128, 24
  logits = jnp.asarray(rng.normal(size=size) * 2, jnp.float32)
  counts = np.zeros(size)
  for index in range(rounds):
    keys = jax.random.split(jax.random.key(index), rows)
    token, *_ = DRAW(
      jnp.broadcast_to(logits, (rows, size)), keys, Sampling.make()
    )
    counts += np.bincount(token, minlength=size)
  probs = np.exp(log_softmax(np.asarray(logits, np.float64)))
  # Tokens in 50 bins of random membership.
  bins = rng.integers(0, 50, size)
  counts, probs = (np.bincount(bins, x, minlength=50) for x in (counts, probs))
  statistic, limit = chi_square(counts, probs, rows * rounds)
  assert statistic < limit


def test_large_vocabulary_is_not_padded_in_a_copy():
  logits, keys = jnp.zeros((4, 152_000)), jax.random.split(jax.random.key(0), 4)
  program = str(jax.make_jaxpr(sample_token)(logits, keys, Sampling.make()))
  assert 'f32[4,950,160]' in program
  assert 'f32[4,152064]' not in program


def test_many_logits_are_truncated_in_groups_of_rows(monkeypatch):
  """The result is that of one group to the bit, and takes little memory."""
  logits = 4 * jax.random.normal(jax.random.key(0), (24, 300))
  keys = jax.random.split(jax.random.key(1), 24)
  sampling = Sampling.make(top_p=0.8, top_k=50, min_p=0.01)
  expected = jax.jit(sample_token)(logits, keys, sampling)
  monkeypatch.setattr(sampling_module, '_MAX_UNGROUPED_LOGITS', 24 * 300 - 1)
  program = jax.jit(lambda *arguments: sample_token(*arguments))
  assert 'f32[3,8,300]' in str(jax.make_jaxpr(program)(logits, keys, sampling))
  for ours, theirs in zip(
    program(logits, keys, sampling), expected, strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  monkeypatch.undo()
  large = jax.ShapeDtypeStruct((64, 32_000), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 64))
  memory = DRAW.lower(large, keys, sampling).compile().memory_analysis()
  assert memory is not None
  assert memory.temp_size_in_bytes < large.size * 4


def test_each_row_has_its_own_sampling_parameters():
  logits = jax.random.normal(jax.random.key(1), (4, 300))
  keys = jax.random.split(jax.random.key(2), 4)
  row_parameters = [
    Sampling.make(),
    Sampling.make(0.0),
    Sampling.make(0.7, 0.5),
    Sampling.make(1.2, 1.0, 7, 0.02),
  ]
  stacked = Sampling(
    *(jnp.stack(field) for field in zip(*row_parameters, strict=True))
  )
  all_rows = DRAW(logits, keys, stacked)
  for index, sampling in enumerate(row_parameters):
    alone = DRAW(logits, keys, sampling)
    for a, b in zip(all_rows, alone, strict=True):
      np.testing.assert_allclose(a[index], b[index], rtol=1e-6)


@pytest.mark.parametrize('shape', [(1, 1, 8), (2, 1, 4), (8,)])
@pytest.mark.parametrize('setting', [{}, {'top_p': 0.9, 'top_k': 70}])
def test_a_split_vocabulary_gives_the_same_tokens(shape, setting):
  rows, size = 16, 4 * 8 * 37
  logits = jax.random.normal(jax.random.key(1), (rows, size)) * 2
  keys = jax.random.split(jax.random.key(2), rows)
  sampling = Sampling.make(**setting)
  with use_mesh(make_mesh(shape), ROLLOUT_RULES):
    compiled = jax.jit(sample_token).lower(logits, keys, sampling).compile()
    actual = jax.jit(sample_token)(logits, keys, sampling)
  expected = DRAW(logits, keys, sampling)
  np.testing.assert_array_equal(actual[0], expected[0])
  for a, b in zip(actual[1:], expected[1:], strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)
  # No device gets all logits of a row.
  if shape != (8,):
    text = compiled.as_text() or ''
    for line in text.splitlines():
      if ' all-gather(' in line or ' all-reduce(' in line:
        assert f',{size}]' not in line


def test_a_row_depends_on_its_own_key_only():
  logits = jax.random.normal(jax.random.key(1), (16, 8))
  keys = jax.random.split(jax.random.key(2), 16)
  order = np.random.default_rng(0).permutation(16)
  in_order = DRAW(logits, keys, Sampling.make())
  reordered = DRAW(logits[order], keys[order], Sampling.make())
  for a, b in zip(in_order, reordered, strict=True):
    np.testing.assert_array_equal(np.asarray(a)[order], b)


@pytest.mark.parametrize(
  ('setting', 'sentence'),
  [
    ({'temperature': -0.1}, 'temperature must be finite .* got -0.1'),
    ({'temperature': float('inf')}, 'temperature must be finite .* got inf'),
    ({'temperature': float('nan')}, 'temperature must be finite .* got nan'),
    ({'top_p': 0.0}, r'top_p must lie in \(0, 1\], got 0.0'),
    ({'top_p': 1e-40}, 'top_p must be at least 1e-30, got 1e-40'),
    ({'top_p': 1.1}, r'top_p must lie in \(0, 1\], got 1.1'),
    ({'top_k': -1}, 'top_k must be a whole number from 0, got -1'),
    ({'min_p': 1.5}, r'min_p must lie in \[0, 1\], got 1.5'),
  ],
)
def test_refuses_parameters_out_of_range(setting, sentence):
  with pytest.raises(ValueError, match=sentence):
    Sampling.make(**setting)


@pytest.mark.parametrize('temperature', [1.3, 0.7, 0.3, 0.01, 1e-5])
def test_log_probabilities_are_never_positive(temperature):
  rng = np.random.default_rng(0)
  for size in (15, 1000):
    logits = (8 * rng.normal(size=(64, size))).astype(np.float32)
    logits[np.arange(64), rng.integers(0, size, 64)] = rng.uniform(20, 60, 64)
    keys = jax.random.split(jax.random.key(1), 64)
    sampling = Sampling.make(temperature=temperature, top_p=0.9)
    token, *logprobs = DRAW(jnp.asarray(logits), keys, sampling)
    expected = log_softmax(logits.astype(np.float64) / temperature)
    expected = expected[np.arange(64), token]
    for logprob in logprobs:
      assert (np.asarray(logprob) <= 0).all()
    np.testing.assert_allclose(logprobs[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize(
  'sampling',
  [Sampling.make(), Sampling.make(temperature=0.0), Sampling.make(top_p=0.5)],
)
def test_logits_that_are_not_finite_give_nan_and_a_token(value, sampling):
  logits = jnp.zeros((2, 100)).at[0, 5].set(value).at[1].set(value)
  keys = jax.random.split(jax.random.key(0), 2)
  token, *logprobs = DRAW(logits, keys, sampling)
  assert (np.asarray(token) < 100).all()
  assert np.isnan(logprobs).all()
