# SPDX-License-Identifier: Apache-2.0
"""The Pallas kernels in TPU interpret mode, against float64 formulas.

Uninitialised memory is NaN in interpret mode, so that reads beyond an array's
end show in the results. Blocks are small, so that both axes have several of
them, with several tiles each, the last one incomplete.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from covrl.statistics import tiling, token_stats
from covrl.types import TokenStats

WIDTH, VOCABULARY, SHAPE = 24, 200, (2, 20)


@contextlib.contextmanager
def small_blocks_interpreted():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tiling, 'BLOCKS', ((32, 128),))
    patch.setattr(tiling, 'TILE', 16)
    with pltpu.force_tpu_interpret_mode():
      yield


@functools.partial(jax.jit, static_argnames='soft_cap')
def run_kernel(hidden, unembedding, targets, signal, temperature, soft_cap):
  def forward(hidden, unembedding):
    return token_stats(
      hidden,
      unembedding,
      targets,
      temperature=temperature,
      soft_cap=soft_cap,
      moments=True,
      implementation='pallas',
    )

  stats, pull_back, moments = jax.vjp(
    forward, hidden, unembedding, has_aux=True
  )
  return vars(stats) | vars(moments), pull_back(signal)


def run(*case, temperature: Any = 1.0, soft_cap=None):
  """Statistics, moments and gradients by the kernels, by name."""
  with small_blocks_interpreted():
    token_temperatures = jnp.broadcast_to(
      jnp.asarray(temperature, jnp.float32), SHAPE
    )
    stats, cotangents = run_kernel(*case, token_temperatures, soft_cap)
  # Leaves out statistics that were not requested.
  stats = {name: value for name, value in stats.items() if value is not None}
  return stats | dict(zip(('hidden', 'unembedding'), cotangents, strict=True))


def random_inputs(seed=0, scale=1.0, dtype=jnp.float32):
  """Hidden states, unembedding, targets, and cotangents of both statistics."""
  rng = np.random.default_rng(seed)
  hidden = jnp.asarray(rng.normal(size=(*SHAPE, WIDTH)) / 4, dtype)
  unembedding = jnp.asarray(scale * rng.normal(size=(WIDTH, VOCABULARY)), dtype)
  targets = jnp.asarray(rng.integers(0, VOCABULARY, SHAPE), jnp.int32)
  g, h = jnp.asarray(rng.normal(size=(2, *SHAPE)), jnp.float32)
  return hidden, unembedding, targets, TokenStats(logprobs=g, entropy=h)


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


def assert_agree(actual, expected, tolerance):
  for name, value in expected.items():
    np.testing.assert_allclose(
      np.asarray(actual[name]).astype('f8'),
      value,
      rtol=tolerance,
      atol=tolerance * max(1, np.abs(value).max()),
      err_msg=name,
    )


def temperatures():
  """One temperature per token."""
  values = np.random.default_rng(1).uniform(0.5, 2, SHAPE)
  return jnp.asarray(values, jnp.float32)


def test_kernels_equal_the_formulas(reference):
  case = random_inputs()
  actual = run(*case, temperature=temperatures())
  assert_agree(actual, expected_values(reference, case, temperatures()), 3e-6)
  assert {x.dtype for x in actual.values()} == {jnp.dtype('float32')}


@given(
  seed=st.integers(0, 2**32 - 1),
  scale=st.sampled_from([0.0, 0.1, 1.0, 30.0, 1e4]),
  masked_share=st.floats(0, 0.9),
  # Powers of two divide exactly.
  temperature=st.sampled_from([0.5, 1.0, 2.0]),
)
@settings(max_examples=6, deadline=None)
def test_impossible_tokens_and_extreme_logits_give_finite_statistics(
  reference, seed, scale, masked_share, temperature
):
  # Few mantissa bits: the product is exact, and only the softmax is tested.
  hidden, unembedding, targets, signal = random_inputs(seed)
  hidden, unembedding = (
    jnp.round(x * 4) / 4 * by for x, by in ((hidden, 1), (unembedding, scale))
  )
  masked = np.random.default_rng(seed).random(VOCABULARY) < masked_share
  masked[np.unique(targets)] = False
  case = hidden, jnp.where(masked, -jnp.inf, unembedding), targets, signal
  actual = run(*case, temperature=temperature)
  assert all(np.isfinite(x).all() for x in actual.values())
  assert (np.asarray(actual['logprobs']) <= 0).all()
  assert (np.asarray(actual['entropy']) >= 0).all()
  assert not np.asarray(actual['unembedding'])[:, masked].any()
  assert_agree(actual, expected_values(reference, case, temperature), 1e-5)


def test_an_impossible_target_has_log_probability_minus_infinity(reference):
  hidden, unembedding, targets, signal = random_inputs()
  unembedding = unembedding.at[:, 7].set(-jnp.inf)
  targets = targets.at[0].set(7)
  actual = run(hidden, unembedding, targets, signal)
  assert (np.asarray(actual['logprobs'])[0] == -np.inf).all()
  assert np.isfinite(np.asarray(actual['logprobs'])[1:]).all()
  for name in ('entropy', 'hidden', 'unembedding'):
    assert np.isfinite(actual[name]).all()


def test_bfloat16_with_a_soft_cap_equals_the_formulas(reference):
  case = random_inputs(dtype=jnp.bfloat16)
  actual = run(*case, temperature=temperatures(), soft_cap=1.5)
  expected = expected_values(reference, case, temperatures(), 1.5)
  for name in ('hidden', 'unembedding'):
    assert actual[name].dtype == jnp.bfloat16
    value = expected.pop(name)
    # The logits' cotangent is rounded for the product: √N roundings, and that
    # of the result.
    np.testing.assert_allclose(
      actual.pop(name).astype(jnp.float32),
      value,
      rtol=2**-7,
      atol=2**-8 * np.abs(value).max(),
    )
  assert {x.dtype for x in actual.values()} == {jnp.dtype('float32')}
  assert_agree(actual, expected, 3e-6)


def test_large_models_get_the_largest_blocks_that_fit():
  """A 7B model with a large vocabulary, and one that is four times as wide."""
  for width, outer in ((3584, 1024), (14336, 256)):
    inputs = jax.eval_shape(
      lambda width=width: tiling.Inputs(
        hidden=jnp.zeros((32768, width), jnp.bfloat16),
        unembedding=jnp.zeros((width, 152064), jnp.bfloat16),
        impossible=jnp.zeros((1, 152064), bool),
        targets=jnp.zeros((32768, 1), int),
        temperatures=jnp.ones((32768, 1)),
      )
    )
    dtype = jnp.dtype('bfloat16')
    for axis in ('tokens', 'columns'):
      grid = tiling.make_grid(inputs, outer=axis, accumulated=dtype)
      assert grid.outer_block_size == outer
