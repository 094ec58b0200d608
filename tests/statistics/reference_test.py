# SPDX-License-Identifier: Apache-2.0
"""Statistics from logits: published entropies, masked tokens, invariances."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from covrl.statistics import token_stats_from_logits

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'policy_losses.npz'


@jax.jit
def entropy_and_gradient(logits):
  def total(logits):
    targets = jnp.zeros(logits.shape[:-1], jnp.int32)
    stats = token_stats_from_logits(logits, targets)
    return jnp.sum(stats.entropy), stats.entropy

  gradient, entropy = jax.grad(total, has_aux=True)(logits)
  return entropy, gradient


def test_equals_published_entropies_and_gradients():
  with np.load(GOLDEN) as file:
    names = [n for n in json.loads(str(file['meta'])) if 'entropy/' in n]
    assert names
    for name in names:
      entropy, gradient = entropy_and_gradient(file[f'{name}/in/logits'])
      np.testing.assert_allclose(
        entropy, file[f'{name}/out/entropy'], rtol=2e-6
      )
      np.testing.assert_allclose(
        gradient, file[f'{name}/out/grad_logits'], rtol=1e-5, atol=1e-7
      )


@jax.jit
def stats_and_moments(logits, temperature):
  targets = jnp.zeros(logits.shape[0], jnp.int32)
  return token_stats_from_logits(
    logits, targets, temperature=temperature, moments=True
  )


@given(
  arrays(np.float32, (3, 5), elements=st.floats(-50, 50, width=32)),
  arrays(bool, (3, 5)),
  st.floats(0.25, 4, width=16),
)
@settings(max_examples=50, deadline=None)
def test_masked_tokens_equal_a_smaller_vocabulary(logits, masked, temperature):
  masked[:, 0] = False
  full = jnp.asarray(np.where(masked, -np.inf, logits))
  stats, moments = stats_and_moments(full, temperature)
  for row in range(3):
    z = logits[row, ~masked[row]].astype('f8') / temperature
    log_pi = z - z.max() - np.log(np.exp(z - z.max()).sum())
    pi = np.exp(log_pi)
    for actual, expected in (
      (stats.logprobs, log_pi[0]),
      (stats.entropy, -(pi * log_pi).sum()),
      (moments.square, (pi**2).sum()),
      (moments.square_log, (pi**2 * log_pi).sum()),
      (moments.square_log_square, (pi**2 * log_pi**2).sum()),
    ):
      assert actual[row] == pytest.approx(expected, rel=2e-5, abs=1e-5)


@pytest.mark.parametrize('statistic', ['logprobs', 'entropy'])
def test_masked_tokens_have_no_gradient(statistic):
  logits = jnp.array([[0.3, -jnp.inf, 1.0], [-jnp.inf, 2.0, -jnp.inf]])

  def total(logits):
    stats = token_stats_from_logits(logits, jnp.array([2, 1]))
    return jnp.sum(getattr(stats, statistic))

  gradient = jax.grad(total)(logits)
  assert np.isfinite(gradient).all()
  assert not gradient[logits == -jnp.inf].any()
  # The second row has one possible token: its statistics are constant.
  assert not gradient[1].any()
  assert gradient[0, 0] != 0


def test_statistics_do_not_change_if_all_logits_are_shifted(x64):
  rng = np.random.default_rng(0)
  logits, targets = jnp.asarray(rng.normal(size=(4, 7))), jnp.arange(4)
  stats = token_stats_from_logits(logits, targets, moments=True)
  shifted_stats = token_stats_from_logits(logits + 1e3, targets, moments=True)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11),
    stats,
    shifted_stats,
  )


def test_deterministic_and_uniform_policies_have_known_statistics():
  logits = jnp.array([[0.0, 1e6, 0.0], [5.0, 5.0, 5.0]])
  stats, moments = token_stats_from_logits(
    logits, jnp.array([1, 0]), moments=True
  )
  np.testing.assert_allclose(stats.logprobs, [0, -np.log(3)], rtol=1e-6)
  np.testing.assert_allclose(stats.entropy, [0, np.log(3)], rtol=1e-6)
  np.testing.assert_allclose(moments.square, [1, 1 / 3], rtol=1e-6)


def test_nan_logits_give_nan_statistics():
  stats = token_stats_from_logits(
    jnp.array([[0.0, jnp.nan], [0.0, 1.0]]), jnp.array([0, 0])
  )
  assert np.isnan(stats.logprobs[0])
  assert np.isnan(stats.entropy[0])
  assert np.isfinite(stats.logprobs[1])


def test_bfloat16_logits_are_computed_in_float32():
  logits = jnp.array([[0.1, 0.7, -2.0]], jnp.bfloat16)
  stats = token_stats_from_logits(logits, jnp.array([1]))
  wide = token_stats_from_logits(logits.astype(jnp.float32), jnp.array([1]))
  assert stats.entropy.dtype == jnp.float32
  assert stats.entropy == wide.entropy


def test_forward_mode_slope_equals_the_gradient():
  logits, direction = jnp.array([[0.1, 0.7, -2.0]]), jnp.array([[1.0, 0, 0]])

  def entropy(logits):
    return token_stats_from_logits(logits, jnp.array([1])).entropy[0]

  _, slope = jax.jvp(entropy, (logits,), (direction,))
  assert slope == pytest.approx(float(jax.grad(entropy)(logits)[0, 0]))
