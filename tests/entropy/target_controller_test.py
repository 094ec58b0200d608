# SPDX-License-Identifier: Apache-2.0
"""`target_entropy` against its formula, and in closed loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from entropy.loops import closed_loop, replay

import covrl
from covrl.entropy import EntropyPrediction


def context_with_prediction(drift, effect, limit=np.inf, **context):
  """A context with an entropy prediction."""
  prediction = EntropyPrediction(drift=drift, effect=effect, limit=limit)
  return {'entropy_prediction': lambda: prediction} | jax.tree.map(
    jnp.asarray, context
  )


def test_coefficient_solves_the_formula():
  """c = ((target − H) / (horizon · s) − D) / E, clipped."""
  controller = covrl.target_entropy(0.5, horizon=10.0, slope=0.02, maximum=2.0)

  def value(*prediction, entropy=0.48):
    context = context_with_prediction(*prediction, entropy=entropy)
    return jnp.asarray(controller(controller.init(), **context)).item()

  needed = 0.02 / 10 / 0.02
  assert value(-0.1, 0.5) == pytest.approx((needed + 0.1) / 0.5, rel=1e-6)
  assert value(0.0, 1.0) == pytest.approx(needed, rel=1e-6)
  # At the target, what cancels the rest of the signal.
  assert value(-0.1, 0.5, entropy=0.5) == pytest.approx(0.2, rel=1e-6)
  # Bounds: those of the controller, and the limit of the prediction.
  assert value(0.4, 0.5) == 0.0
  assert value(-9.0, 0.5) == 2.0
  assert value(-9.0, 0.5, 0.25) == 0.25
  # Without effect, or with the opposite one, the coefficient is 0.
  assert value(-0.1, 0.0) == value(-0.1, -1.0) == 0.0


def test_aims_at_the_scheduled_target_a_horizon_ahead():
  falling = optax.linear_schedule(1.0, 0.0, 100)
  controller = covrl.target_entropy(falling, horizon=10.0)
  context = {'entropy': jnp.asarray(0.5), 'step': jnp.asarray(30)}
  value = controller(controller.init(), **context)
  np.testing.assert_allclose(value, (0.6 - 0.5) / 10, rtol=1e-5)


@pytest.mark.parametrize('slope', [0.3, 1.0])
def test_an_unpredicted_drift_leaves_an_offset(slope):
  """The offset of the entropy from the target is horizon · drift."""
  controller = covrl.target_entropy(0.5, horizon=10.0, slope=slope, maximum=0.5)
  entropy, value, _ = closed_loop(
    controller, slope, updates=600, drift=-0.002, noise=0.0
  )
  assert entropy[-100:].mean() == pytest.approx(0.5 - 10 * 0.002, abs=2e-3)
  assert value[-100:].mean() == pytest.approx(0.002 / slope, rel=0.05)


def test_coefficient_of_zero_is_not_final():
  """A coefficient that was 0 for long rises as soon as entropy drifts."""
  controller = covrl.target_entropy(0.5, maximum=0.5)
  falling = np.concatenate([np.full(300, 0.9), 0.9 - 0.01 * np.arange(60)])
  values, _ = replay(controller, falling)
  assert not values[:300].any()
  assert values[-1] > 0.005
