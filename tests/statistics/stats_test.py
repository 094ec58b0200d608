# SPDX-License-Identifier: Apache-2.0
"""`token_stats`, whole and chunked, against float64 formulas."""

import functools
import inspect
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.statistics import stats as stats_module
from covrl.statistics import token_stats
from covrl.types import TokenStats

WIDTH, VOCABULARY = 6, 11
# Whole; chunks that do not divide 11 columns; a chunk larger than all columns.
CHUNKS = (None, 3, 16)


def forward_and_back(
  hidden, unembedding, targets, signal, temperature=1.0, **static
):
  """Statistics, moments, and cotangents of the inputs."""

  def forward(hidden, unembedding):
    return token_stats(
      hidden,
      unembedding,
      targets,
      temperature=temperature,
      moments=True,
      **static,
    )

  stats, pull_back, moments = jax.vjp(
    forward, hidden, unembedding, has_aux=True
  )
  cotangents = pull_back(
    jax.tree.map(lambda s, x: x.astype(s.dtype), stats, signal)
  )
  return {
    'logprobs': stats.logprobs,
    'entropy': stats.entropy,
    'square': moments.square,
    'square_log': moments.square_log,
    'square_log_square': moments.square_log_square,
    'hidden': cotangents[0],
    'unembedding': cotangents[1],
  }


run = jax.jit(forward_and_back, static_argnames=('soft_cap', 'chunk_size'))


def problem(seed=0, shape=(2, 7), scale=1.0, dtype=jnp.float32):
  """Hidden states, unembedding, targets, and cotangents of both statistics."""
  rng = np.random.default_rng(seed)
  hidden = jnp.asarray(rng.normal(size=(*shape, WIDTH)), dtype)
  unembedding = jnp.asarray(scale * rng.normal(size=(WIDTH, VOCABULARY)), dtype)
  targets = jnp.asarray(rng.integers(0, VOCABULARY, shape), jnp.int32)
  g, h = rng.normal(size=(2, *shape))
  return (
    hidden,
    unembedding,
    targets,
    TokenStats(logprobs=jnp.asarray(g), entropy=jnp.asarray(h)),
  )


def assert_agree(actual, expected, tolerance):
  for name, value in expected.items():
    scale = max(1.0, np.abs(value[np.isfinite(value)]).max())
    np.testing.assert_allclose(
      np.asarray(actual[name]).astype('f8'),
      value,
      rtol=tolerance,
      atol=tolerance * scale,
      err_msg=name,
    )


def expected_values(reference, case, temperature: Any = 1.0, soft_cap=None):
  hidden, unembedding, targets, signal = case
  return reference(
    hidden,
    unembedding,
    np.asarray(targets),
    temperature,
    soft_cap,
    (signal.logprobs, signal.entropy),
  )


@pytest.mark.parametrize('chunk_size', CHUNKS)
def test_statistics_and_cotangents_equal_the_formulas(reference, chunk_size):
  case = problem()
  assert_agree(
    run(*case, chunk_size=chunk_size), expected_values(reference, case), 2e-6
  )


@pytest.mark.parametrize('chunk_size', CHUNKS[:2])
@pytest.mark.parametrize('soft_cap', [None, 1.5])
def test_statistics_and_cotangents_equal_the_formulas_in_float64(
  reference, chunk_size, soft_cap, x64
):
  case = problem(dtype=jnp.float64)
  temperatures = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, (2, 7)))
  actual = run(*case, temperatures, chunk_size=chunk_size, soft_cap=soft_cap)
  assert_agree(
    actual, expected_values(reference, case, temperatures, soft_cap), 1e-13
  )
  assert {x.dtype for x in actual.values()} == {jnp.dtype('float64')}


def test_float32_inputs_stay_float32_with_wider_cotangents(x64):
  actual = run(*problem(), 0.7, chunk_size=3)
  assert {x.dtype for x in actual.values()} == {jnp.dtype('float32')}


@pytest.mark.parametrize('chunk_size', CHUNKS[:2])
def test_temperature_may_be_one_number_or_one_per_token(reference, chunk_size):
  case = problem()
  temperatures = (
    np.random.default_rng(2).uniform(0.3, 2, (2, 7)).astype(np.float32)
  )
  for temperature in (0.7, 1.3, jnp.asarray(temperatures)):
    actual = run(*case, temperature, chunk_size=chunk_size)
    assert_agree(actual, expected_values(reference, case, temperature), 3e-6)


def test_temperature_and_moments_are_not_differentiated():
  hidden, unembedding, targets, _ = problem()

  @functools.partial(jax.jit, static_argnums=2)
  def slopes(hidden, temperature, chunk_size):
    def total(hidden, temperature):
      stats, moments = token_stats(
        hidden,
        unembedding,
        targets,
        temperature=temperature,
        moments=True,
        chunk_size=chunk_size,
      )
      return jnp.sum(moments.square_log_square), jnp.sum(stats.logprobs)

    return jax.jacrev(total, argnums=(0, 1))(hidden, temperature)

  for chunk_size in CHUNKS[:2]:
    moment_slopes, logprob_slopes = slopes(hidden, 1.2, chunk_size)
    assert not moment_slopes[0].any()
    assert logprob_slopes[0].any()
    assert moment_slopes[1] == logprob_slopes[1] == 0


@pytest.mark.parametrize('chunk_size', CHUNKS[:2])
@pytest.mark.parametrize('scale', [30.0, 1e4, 1e30])
def test_extreme_logits_give_finite_statistics(reference, scale, chunk_size):
  # Few mantissa bits: the product is exact, and only the softmax is tested.
  hidden, unembedding, targets, signal = problem()
  hidden = jnp.round(hidden * 4) / 4
  unembedding = jnp.round(unembedding * 4) * scale / 4
  case = hidden, unembedding, targets, signal
  actual = run(*case, chunk_size=chunk_size)
  assert all(np.isfinite(x).all() for x in actual.values())
  if scale < 1e30:
    assert_agree(actual, expected_values(reference, case), 1e-5)


@pytest.mark.parametrize(
  ('chunk_size', 'soft_cap'), [(None, None), (3, None), (3, 2.0)]
)
def test_impossible_tokens_have_no_probability_and_no_gradient(
  reference, chunk_size, soft_cap
):
  hidden, unembedding, targets, signal = problem()
  # Hidden states of both signs, and 0.
  hidden = hidden.at[0, 0].set(0)
  impossible = jnp.arange(VOCABULARY) % 4 == 1
  unembedding = jnp.where(impossible, -jnp.inf, unembedding)
  targets = targets // 4 * 4
  static = {'chunk_size': chunk_size, 'soft_cap': soft_cap}
  case = hidden, unembedding, targets, signal
  actual = run(*case, **static)
  assert_agree(
    actual, expected_values(reference, case, soft_cap=soft_cap), 3e-6
  )
  assert not np.asarray(actual['unembedding'])[:, impossible].any()
  # An impossible target has log-probability −∞, not NaN.
  actual = run(hidden, unembedding, targets + 1, signal, **static)
  assert (np.asarray(actual['logprobs']) == -np.inf).all()
  for name in ('entropy', 'hidden', 'unembedding'):
    assert np.isfinite(actual[name]).all()


@pytest.mark.parametrize('chunk_size', CHUNKS[:2])
def test_bfloat16_inputs_are_computed_in_float32(reference, chunk_size):
  case = problem(shape=(2, 40), dtype=jnp.bfloat16)
  actual, expected = (
    run(*case, chunk_size=chunk_size),
    expected_values(reference, case),
  )
  for name in ('hidden', 'unembedding'):
    assert actual[name].dtype == jnp.bfloat16
    # One rounding to bfloat16: that of the result.
    np.testing.assert_allclose(
      actual.pop(name).astype(jnp.float32),
      expected.pop(name),
      rtol=2**-8,
      atol=1e-5,
    )
  assert {x.dtype for x in actual.values()} == {jnp.dtype('float32')}
  assert_agree(actual, expected, 2e-6)


@pytest.mark.parametrize(
  ('shape', 'chunk_size'),
  [((), None), ((), 3), ((5,), 3), ((2, 3, 4), 3), ((2, 0), None)],
)
def test_targets_may_have_any_number_of_axes(reference, shape, chunk_size):
  case = problem(shape=shape)
  actual = run(*case, chunk_size=chunk_size)
  assert actual['logprobs'].shape == shape
  if 0 not in shape:
    assert_agree(actual, expected_values(reference, case), 2e-6)


@given(
  st.integers(0, 2**32 - 1),
  st.floats(0, 40, width=32),
  st.sampled_from(CHUNKS[:2]),
)
@settings(max_examples=25, deadline=None)
def test_statistics_lie_within_their_bounds(seed, scale, chunk_size):
  actual = run(*problem(seed=seed, scale=scale), chunk_size=chunk_size)
  actual = {name: np.asarray(x) for name, x in actual.items()}
  assert (actual['logprobs'] <= 0).all()
  assert (actual['entropy'] >= 0).all()
  assert (actual['entropy'] <= np.log(VOCABULARY) * (1 + 1e-6)).all()
  # exp(−H) ≤ Σ π² ≤ 1, and Cauchy-Schwarz among the moments.
  square, log, log_square = (
    actual[f'square{suffix}'] for suffix in ('', '_log', '_log_square')
  )
  assert (square <= 1 + 1e-6).all()
  assert (square >= np.exp(-actual['entropy']) * (1 - 1e-4)).all()
  assert (log <= 0).all()
  assert (log**2 <= square * log_square * (1 + 1e-4) + 1e-12).all()
  # Logit cotangents sum to 0 over the vocabulary: shift invariance.
  cotangent_sums = actual['unembedding'] @ np.ones(VOCABULARY)
  magnitude = np.abs(actual['unembedding']).max() + 1
  np.testing.assert_allclose(cotangent_sums, 0, atol=2e-5 * magnitude)


def largest_array(vocabulary, **static):
  """Elements of the largest array in the program, forward and backward."""
  hidden, _, targets, signal = problem(shape=(2, 64))
  program = jax.make_jaxpr(functools.partial(forward_and_back, **static))(
    hidden, jnp.ones((WIDTH, vocabulary)), targets, signal
  )
  shapes = re.findall(r'[fib]\w+\[([\d,]+)\]', str(program))
  return max(math.prod(map(int, shape.split(','))) for shape in shapes)


def test_large_logits_are_never_stored_as_one_array(monkeypatch):
  vocabulary = 1000
  num_logits = 2 * 64 * vocabulary
  assert largest_array(vocabulary) == num_logits
  assert largest_array(vocabulary, chunk_size=vocabulary) == num_logits
  assert largest_array(vocabulary, chunk_size=100) == num_logits // 10
  monkeypatch.setattr(stats_module, 'MAX_WHOLE_LOGITS', num_logits - 1)
  assert largest_array(vocabulary) == 2 * 64 * 128


def test_chunks_have_at_least_the_minimum_of_logits(monkeypatch):
  monkeypatch.setattr(stats_module, 'MAX_WHOLE_LOGITS', 0)
  monkeypatch.setattr(stats_module, 'MIN_CHUNK_LOGITS', 2 * 64 * 300)
  # The largest multiple of 128 columns up to 300, or all columns.
  assert largest_array(1000) == 2 * 64 * 256
  assert largest_array(250) == 2 * 64 * 250


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'temperature': 0.0}, 'temperature must be positive, got 0'),
    ({'soft_cap': -1.0}, 'soft_cap must be positive, got -1'),
    ({'chunk_size': 0}, 'chunk_size must be positive, got 0'),
  ],
)
def test_refuses_numbers_that_are_not_positive(options, message):
  hidden, unembedding, targets, _ = problem()
  with pytest.raises(ValueError, match=message):
    token_stats(hidden, unembedding, targets, **options)


def test_refuses_unknown_implementations():
  hidden, unembedding, targets, _ = problem()
  # Without the run-time type checks of the tests, which would fail first.
  unchecked: Any = inspect.unwrap(token_stats)
  with pytest.raises(ValueError, match=r"one of .*'pallas'.*, got 'cuda'"):
    unchecked(hidden, unembedding, targets, implementation='cuda')
