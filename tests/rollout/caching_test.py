# SPDX-License-Identifier: Apache-2.0
"""Options of the KV cache: chunked prefill, ring buffers of windows, int8."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.models import Policy, tiny
from covrl.models.cache import DecodeCache
from covrl.parallel.sharding import make_mesh
from covrl.rollout import Caching, Sampling, SamplingEngine

# Number of prompts, their padded length, responses per prompt, largest number of
# tokens of a response, and the token that ends one.
PROMPTS, WIDTH, GROUP, LIMIT, END = 4, 11, 4, 24, 3
# Two query heads share a key head; layers differ in their windows.
POLICY = Policy(dataclasses.replace(tiny(16), windows=(5, 0)))
PARAMS = POLICY.init(jax.random.key(0))
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 16, (PROMPTS, WIDTH)).astype(np.int32)
MASK = np.arange(WIDTH) >= WIDTH - RNG.integers(1, WIDTH + 1, (PROMPTS, 1))


def make_engine(mesh=None, **caching):
  return SamplingEngine(
    POLICY,
    mesh,
    end_ids=(END,),
    pad_id=0,
    max_response_length=LIMIT,
    slots=8,
    segment=6,
    caching=Caching(**caching),
  )


def sample(engine, params=PARAMS, **options):
  samples = engine.sample(
    params,
    TOKENS,
    MASK,
    group_size=GROUP,
    key=jax.random.key(1),
    sequence_ids=np.arange(PROMPTS * GROUP, dtype=np.int32),
    sampling=Sampling.make(1.2),
    **options,
  )
  return jax.device_get(samples)


@pytest.fixture(scope='module')
def full_cache_samples():
  """Responses with a cache of all tokens in every layer."""
  with pytest.MonkeyPatch.context() as patch:
    original_empty = DecodeCache.empty
    patch.setattr(DecodeCache, 'empty', lambda *a: original_empty(*a[:3]))
    return sample(make_engine())


def assert_same(actual, expected, atol):
  np.testing.assert_array_equal(
    actual.response_tokens, expected.response_tokens
  )
  np.testing.assert_allclose(
    actual.sampler_logprobs, expected.sampler_logprobs, rtol=0, atol=atol
  )


def test_rings_and_chunked_prefill_change_no_token(full_cache_samples):
  """Slots are refilled, and responses are several windows long."""
  assert (full_cache_samples.response_mask.sum(axis=1) > 15).sum() > 4
  engine = make_engine(chunk=4)
  traced = engine.trace(PARAMS, PROMPTS, WIDTH, group_size=GROUP)
  assert traced.cache.ring is not None
  assert traced.cache.ring.keys.shape == (1, 8, 2, 5, 8)
  assert traced.cache.keys.shape == (1, 8, 2, LIMIT - 1, 8)
  assert_same(sample(engine), full_cache_samples, atol=2e-6)
  # Rings of responses that are carried over are filled at once.
  calls = iter((False, True))
  unfinished = sample(engine, is_enough=lambda: next(calls))
  length = unfinished.response_mask.sum(axis=1)
  assert length.max() > 5
  assert (length < full_cache_samples.response_mask.sum(axis=1)).any()
  assert_same(sample(engine, carried=unfinished), full_cache_samples, atol=2e-6)


@pytest.mark.slow
def test_rings_and_chunked_prefill_on_a_mesh_change_no_token(
  full_cache_samples,
):
  mesh = make_mesh({'data': 2, 'tensor': 2}, jax.devices()[:4])
  shardings = jax.tree.map(
    lambda leaf: leaf.sharding, POLICY.abstract_params(mesh)
  )
  params = jax.device_put(PARAMS, shardings)
  assert_same(
    sample(make_engine(mesh, chunk=4), params), full_cache_samples, atol=1e-5
  )
  expected = sample(make_engine(int8=True))
  actual = sample(make_engine(mesh, chunk=4, int8=True), params)
  assert_same(actual, expected, atol=1e-4)


def test_logprobs_of_an_int8_cache_differ_by_less_than_0_02_nats(
  full_cache_samples,
):
  """All caches are in int8; the first token is drawn before they are read."""
  engine = make_engine(int8=True)
  traced = engine.trace(PARAMS, PROMPTS, WIDTH, group_size=GROUP)
  assert traced.cache.ring is not None
  for keys in (
    traced.cache.keys,
    traced.cache.ring.values,
    traced.cache.prompts.keys,
  ):
    assert keys.values.dtype == jnp.int8
  samples = sample(engine)
  # Up to the first token that differs, both have seen the same tokens.
  has_same_prefix = np.cumprod(
    samples.response_tokens == full_cache_samples.response_tokens, axis=1
  )
  has_same_prefix = (has_same_prefix > 0) & samples.response_mask
  assert has_same_prefix.mean() > 0.2
  gap = np.abs(samples.sampler_logprobs - full_cache_samples.sampler_logprobs)[
    has_same_prefix
  ]
  assert 1e-6 < gap.mean() < 0.02
  np.testing.assert_array_equal(
    samples.sampler_logprobs[:, 0], full_cache_samples.sampler_logprobs[:, 0]
  )


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize('value', [1, 'int8', None, np.ones(2, bool)])
def test_int8_is_a_bool(value):
  with pytest.raises(TypeError, match='int8 must be True or False'):
    Caching(int8=value)
