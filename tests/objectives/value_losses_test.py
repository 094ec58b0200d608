# SPDX-License-Identifier: Apache-2.0
"""Value loss and explained variance equal those computed with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives import clipped_value_loss, explained_variance

RNG = np.random.default_rng(0)
VALUES, OLD_VALUES, RETURNS = RNG.normal(size=(3, 4, 6)).astype(np.float32)
WEIGHTS = (RNG.random((4, 6)) < 0.7).astype(np.float32) / 7


def test_value_loss_and_gradient_equal_numpy():
  (value, aux), gradient = jax.value_and_grad(clipped_value_loss, has_aux=True)(
    jnp.asarray(VALUES),
    old_values=jnp.asarray(OLD_VALUES),
    returns=jnp.asarray(RETURNS),
    weights=jnp.asarray(WEIGHTS),
    clip=0.5,
  )
  clipped_values = np.clip(VALUES, OLD_VALUES - 0.5, OLD_VALUES + 0.5)
  unclipped_losses, clipped_losses = (
    (VALUES - RETURNS) ** 2 / 2,
    (clipped_values - RETURNS) ** 2 / 2,
  )
  expected = np.maximum(unclipped_losses, clipped_losses)
  np.testing.assert_allclose(value, (WEIGHTS * expected).sum(), rtol=1e-5)
  clipped = (clipped_losses > unclipped_losses) & (WEIGHTS > 0)
  assert 0 < clipped.sum() < (WEIGHTS > 0).sum()
  np.testing.assert_array_equal(aux.clipped, clipped)
  expected_gradient = np.where(clipped, 0, WEIGHTS * (VALUES - RETURNS))
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_tokens_without_weight_do_not_change_the_loss():
  values = jnp.asarray(np.where(WEIGHTS > 0, VALUES, np.nan))
  options = {
    'old_values': jnp.asarray(np.where(WEIGHTS > 0, OLD_VALUES, np.inf)),
    'returns': jnp.asarray(np.where(WEIGHTS > 0, RETURNS, np.nan)),
    'weights': jnp.asarray(WEIGHTS),
  }
  (value, _), gradient = jax.value_and_grad(clipped_value_loss, has_aux=True)(
    values, **options
  )
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  value_without_tokens, _ = clipped_value_loss(
    values, **options | {'weights': jnp.zeros((4, 6))}
  )
  assert value_without_tokens == 0


def test_without_a_clip_it_is_half_the_squared_error():
  value, aux = clipped_value_loss(
    jnp.asarray(VALUES),
    old_values=jnp.asarray(OLD_VALUES),
    returns=jnp.asarray(RETURNS),
    weights=jnp.ones((4, 6)),
    clip=None,
  )
  np.testing.assert_allclose(value, ((VALUES - RETURNS) ** 2).sum() / 2, 1e-5)
  assert not aux.clipped.any()


def test_explained_variance_equals_numpy():
  mask = WEIGHTS > 0
  expected = 1 - np.var((RETURNS - VALUES)[mask]) / np.var(RETURNS[mask])
  spoilt = jnp.asarray(np.where(mask, VALUES, np.nan))
  actual = explained_variance(spoilt, jnp.asarray(RETURNS), jnp.asarray(mask))
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  perfect = explained_variance(
    jnp.asarray(RETURNS) + 3, jnp.asarray(RETURNS), jnp.asarray(mask)
  )
  assert perfect == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
  ('returns', 'mask'), [(1.0, True), (0.0, True), (RETURNS, False)]
)
def test_equal_returns_have_no_variance_to_explain(returns, mask):
  actual = explained_variance(
    jnp.asarray(VALUES),
    jnp.broadcast_to(jnp.asarray(returns), (4, 6)),
    jnp.full((4, 6), mask),
  )
  assert np.isnan(actual)


@pytest.mark.usefixtures('no_annotation_checks')
def test_refuses_arrays_of_another_shape_and_a_clip_of_zero():
  arrays = {
    'old_values': jnp.zeros((4, 6)),
    'returns': jnp.zeros((4, 6)),
    'weights': jnp.zeros((4, 6)),
  }
  with pytest.raises(ValueError, match=r'returns must be \[B, T\] = \(4, 6\)'):
    clipped_value_loss(
      jnp.zeros((4, 6)), **arrays | {'returns': jnp.zeros((4, 1))}
    )
  with pytest.raises(ValueError, match='clip must be positive, got 0'):
    clipped_value_loss(jnp.zeros((4, 6)), **arrays, clip=0.0)
