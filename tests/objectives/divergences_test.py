# SPDX-License-Identifier: Apache-2.0
"""Divergence estimators: values, gradients, behaviour at 0 and far from it."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives import DIVERGENCES, divergence, divergence_gradient

POINTS = (-30.0, -3.0, -0.1, -1e-4, 0.0, 1e-4, 0.2, 5.0, 30.0)


def gradient(x, kind, **options):
  return jax.grad(lambda x: jnp.sum(divergence(x, kind, **options)))(x)


@jax.jit
def all_kinds(log_ratio):
  return {
    kind: (
      divergence(log_ratio, kind),
      gradient(log_ratio, kind),
      divergence_gradient(log_ratio, kind),
    )
    for kind in DIVERGENCES
  }


def check_published(golden, dtype, tolerance):
  for case in golden('kl_penalty'):
    log_ratio = case.input('logprob', dtype) - case.input('ref_logprob', dtype)
    rows, length = case.shape
    for kind, actual_values in all_kinds(log_ratio).items():
      expected = case.expected(kind), *[case.expected(f'{kind}.grad')] * 2
      for actual, expected_values in zip(actual_values, expected, strict=True):
        assert actual.dtype == dtype
        # The terms of k3 cancel: the tolerance is relative to their size.
        np.testing.assert_allclose(
          actual[:rows, :length],
          expected_values[:rows, :length],
          rtol=tolerance,
          atol=tolerance,
        )


def test_equals_published_divergences_in_float32(golden):
  check_published(golden, jnp.float32, 1e-6)


def test_equals_published_divergences_in_float64(golden, x64):
  check_published(golden, jnp.float64, 1e-12)


@pytest.mark.parametrize('kind', DIVERGENCES)
def test_closed_form_is_the_derivative(kind, x64):
  x = jnp.array(POINTS)
  np.testing.assert_allclose(
    divergence_gradient(x, kind), gradient(x, kind), rtol=1e-12
  )


@pytest.mark.parametrize('kind', DIVERGENCES)
def test_equal_probabilities_have_divergence_zero(kind):
  x = jnp.zeros(3)
  assert not divergence(x, kind).any()
  expected = 1.0 if kind == 'k1' else 0.0
  assert (gradient(x, kind) == expected).all()
  assert (divergence_gradient(x, kind) == expected).all()


def test_abs_has_no_value_and_no_gradient_in_the_dead_zone():
  x = jnp.array([-0.3, -0.1, 0.0, 0.05, 0.2])
  for zone in (0.1, jnp.array(0.1)):
    np.testing.assert_allclose(
      divergence(x, 'abs', dead_zone=zone), [0.3, 0, 0, 0, 0.2]
    )
    expected = [-1, 0, 0, 0, 1]
    np.testing.assert_array_equal(gradient(x, 'abs', dead_zone=zone), expected)
    np.testing.assert_array_equal(
      divergence_gradient(x, 'abs', dead_zone=zone), expected
    )
  np.testing.assert_array_equal(divergence_gradient(x, 'k2', dead_zone=0.1), x)


def test_k3_stays_finite():
  x = jnp.array([-1e4, 1e4])
  assert np.isfinite(divergence(x, 'k3')).all()
  assert not gradient(x, 'k3').any()
  assert not divergence_gradient(x, 'k3').any()


@pytest.mark.parametrize(
  ('kind', 'unbiased'),
  [('k1', 'value'), ('k3', 'value'), ('k2', 'gradient')],
)
def test_estimators_are_unbiased_on_policy(kind, unbiased, x64):
  # E k1 = E k3 = KL; E ∂k2 = ∂KL. (k2's mean is only near the KL.)
  rng = np.random.default_rng(0)
  z, z_ref = jnp.asarray(rng.normal(size=(2, 6)))
  log_ref = jax.nn.log_softmax(z_ref)

  def exact_kl(z):
    log_pi = jax.nn.log_softmax(z)
    return jnp.sum(jnp.exp(log_pi) * (log_pi - log_ref))

  def estimated_kl(z):
    log_pi = jax.nn.log_softmax(z)
    pi = jax.lax.stop_gradient(jnp.exp(log_pi))
    return jnp.sum(pi * divergence(log_pi - log_ref, kind))

  if unbiased == 'value':
    np.testing.assert_allclose(estimated_kl(z), exact_kl(z), rtol=1e-12)
  else:
    np.testing.assert_allclose(
      jax.grad(estimated_kl)(z), jax.grad(exact_kl)(z), rtol=1e-10, atol=1e-14
    )


def test_narrow_floats_are_widened():
  x = jnp.ones(2, jnp.bfloat16)
  assert divergence(x, 'k3').dtype == jnp.float32
  assert divergence_gradient(x, 'k3').dtype == jnp.float32


def test_refuses_unknown_estimators():
  # Without the run-time type checks of the tests, which would fail first.
  unchecked: Any = inspect.unwrap(divergence)
  with pytest.raises(ValueError, match=r"kind must be one of .* got 'k4'"):
    unchecked(jnp.zeros(1), 'k4')
