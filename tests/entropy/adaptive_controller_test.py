# SPDX-License-Identifier: Apache-2.0
"""`target_entropy` against its formulas in NumPy, and in closed loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from entropy.loops import closed_loop, replay

import covrl
from covrl.entropy import EntropyPrediction


def predicting(drift, effect, limit=np.inf, **context):
  """A context with an entropy prediction."""
  prediction = EntropyPrediction(drift=drift, effect=effect, limit=limit)
  return {'entropy_prediction': lambda: prediction} | jax.tree.map(
    jnp.asarray, context
  )


def test_coefficient_solves_the_formula():
  """c = (((target − H) / horizon − d) / s − D) / E, clipped."""
  controller = covrl.target_entropy(0.5, horizon=10.0, slope=0.02, maximum=2.0)
  state = controller.init()._replace(drift=jnp.asarray(-0.001))

  def value(*prediction):
    context = predicting(*prediction, entropy=0.48)
    return jnp.asarray(controller(state, **context)).item()

  needed = (0.02 / 10 + 0.001) / 0.02
  assert value(-0.1, 0.5) == pytest.approx((needed + 0.1) / 0.5, rel=1e-6)
  assert value(0.0, 1.0) == pytest.approx(needed, rel=1e-6)
  # Bounds: those of the controller, and the limit of the prediction.
  assert value(0.4, 0.5) == 0.0
  assert value(-9.0, 0.5) == 2.0
  assert value(-9.0, 0.5, 0.25) == 0.25
  # Without effect, or with the opposite one, the coefficient is 0.
  assert value(-0.1, 0.0) == value(-0.1, -1.0) == 0.0


@pytest.mark.parametrize('momentum', [0.0, 0.6, 0.9])
def test_reaches_the_target_at_the_horizon(momentum):
  """With constant z, z̄ including momentum sums to the required change."""
  horizon, updates = 7, 400
  controller = covrl.target_entropy(
    0.5, horizon=float(horizon), momentum=momentum, slope=0.1, maximum=9.0
  )
  average = 0.02
  state = controller.init()._replace(
    readings=jnp.asarray(updates), predicted=jnp.asarray(average)
  )
  z = jnp.asarray(controller(state, entropy=jnp.asarray(0.45))).item()
  total = 0.0
  for _ in range(horizon):
    average = momentum * average + (1 - momentum) * z
    total += average
  assert 0.45 + 0.1 * total == pytest.approx(0.5, rel=1e-6)


def test_predictions_are_averaged_as_adam_does():
  """z̄ is Adam's first moment of z, corrected for its start like that."""
  rng = np.random.default_rng(0)
  controller = covrl.target_entropy(0.5, momentum=0.8, maximum=9.0)
  state, average = controller.init(), optax.ema(0.8, debias=True)
  average_state = average.init(jnp.zeros(()))
  for _ in range(12):
    drift, effect = rng.normal(), rng.uniform(0.5, 2)
    context = predicting(drift, effect, entropy=rng.uniform(0.4, 0.6))
    z = drift + effect * jnp.asarray(controller(state, **context))
    before, state = state, controller.update(state, **context)
    expected, average_state = average.update(z, average_state)
    np.testing.assert_allclose(
      state.predicted, jnp.asarray(expected), rtol=1e-5, atol=1e-7
    )
    assert state.previous_predicted == before.predicted


def test_aims_at_the_scheduled_target_a_horizon_ahead():
  falling = optax.linear_schedule(1.0, 0.0, 100)
  controller = covrl.target_entropy(falling, horizon=10.0)
  context = {'entropy': jnp.asarray(0.5), 'step': jnp.asarray(30)}
  value = controller(controller.init(), **context)
  np.testing.assert_allclose(value, (0.6 - 0.5) / 10, rtol=1e-5)


def test_first_readings_change_neither_drift_nor_slope():
  """Without an observed change only the distance to the target counts."""
  controller = covrl.target_entropy(0.5, horizon=10.0, slope=2.0)
  values, states = replay(controller, [0.3, 0.35, 0.3])
  np.testing.assert_allclose(values[0], 0.2 / 10 / 2, rtol=1e-6)
  # The cause of the first change is unknown.
  np.testing.assert_array_equal(states.drift[:2], 0)
  np.testing.assert_array_equal(states.slope[:2], 2)
  assert states.drift[2] < 0


def test_follows_measured_changes():
  """Readings, which vary with the prompts, correct the sum of the changes."""
  controller = covrl.target_entropy(0.5, horizon=10.0)
  state = controller.init()
  for reading, change in ((0.5, np.nan), (0.6, -0.02), (0.4, 0.01)):
    context = {'entropy': jnp.asarray(reading)}
    context['entropy_change'] = jnp.asarray(change)
    state = controller.update(state, **context)
  # The second reading counts for a half, the third for a third.
  first = 0.6 - (0.5 - 0.02)
  entropy, bias = 0.48 + first / 2, first / 20**2
  moved = entropy + 0.01 + bias
  np.testing.assert_allclose(
    state.entropy, moved + (0.4 - moved) / 3, rtol=1e-6
  )
  np.testing.assert_allclose(
    state.bias, bias + (0.4 - moved) / 20**2, rtol=1e-5
  )
  # A change that was not measured leaves all estimates as they are.
  after = controller.update(
    state,
    entropy=jnp.asarray(0.5),
    entropy_change=jnp.asarray(np.nan),
  )
  assert after.drift == pytest.approx(float(state.drift), rel=1e-6)
  assert after.slope == pytest.approx(float(state.slope), rel=1e-6)


@pytest.mark.parametrize('momentum', [0.0, 0.9])
@pytest.mark.parametrize('measured', [True, False])
def test_learns_by_a_kalman_filter(momentum, measured):
  """State (d, log s), observed through changes and their predictions."""
  horizon, rng = 8.0, np.random.default_rng(0)
  controller = covrl.target_entropy(
    0.5, horizon=horizon, momentum=momentum, slope=0.02
  )
  state = controller.init()
  drift, slope, noise, covariance = 0.0, 0.02, 1e-4, np.diag([1e-4, 1.0])
  predicted, earlier, last = 0.0, 0.0, None
  for step in range(30):
    entropy = rng.uniform(0.4, 0.6)
    change = np.nan if last is None else entropy - last
    drawn, effect = rng.normal(), rng.uniform(0.5, 2)
    context = predicting(drawn, effect, entropy=entropy)
    if measured:
      change = rng.normal(0, 0.02)
      context['entropy_change'] = jnp.asarray(change)
    coefficient = jnp.asarray(controller(state, **context)).item()
    state = controller.update(state, **context)
    if step > 1:  # before, no update is before the last
      row = np.array([1, slope * earlier])
      least = max(noise, 1e-6)
      covariance = covariance + np.diag([least / horizon**2, 1e-4])
      error = change - drift - slope * earlier
      gain = covariance @ row / (row @ covariance @ row + least)
      drift += gain[0] * error
      slope *= math.exp(np.clip(gain[1] * error, -1, 1))
      covariance = (np.eye(2) - np.outer(gain, row)) @ covariance
      noise += (error**2 - noise) / horizon
    last = entropy
    pace = (1 - momentum) / (1 - momentum ** (step + 1))
    z = drawn + coefficient * effect
    earlier, predicted = predicted, predicted + pace * (z - predicted)
  for ours, theirs in (
    (state.drift, drift),
    (state.slope, slope),
    (state.noise, noise),
    (state.drift_variance, covariance[0, 0]),
    (state.slope_variance, covariance[1, 1]),
    (state.covariance, covariance[0, 1]),
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize('momentum', [0.0, 0.9])
@pytest.mark.parametrize('every', [1, 8])
@pytest.mark.parametrize('slope', [0.1, 1.0, 5.0])
def test_reaches_its_target(slope, every, momentum):
  controller = covrl.target_entropy(
    0.5, horizon=40.0, momentum=momentum, maximum=0.5
  )
  entropy, value, state = closed_loop(
    controller, slope, updates=1500, every=every, momentum=momentum
  )
  assert abs(entropy[-300:].mean() - 0.5) < 0.01
  assert entropy[-300:].std() < 0.01
  # The coefficient that holds it there is the one that cancels the drift.
  assert value[-300:].mean() == pytest.approx(0.004 / slope, rel=0.1)
  np.testing.assert_array_equal(value, np.clip(value, 0, 0.5))
  assert int(state.readings) == 1500


def test_accounts_for_momentum_instead_of_oscillating():
  """With momentum 0.9, an update goes on to act for about ten updates."""
  errors = {}
  for momentum in (0.0, 0.9):
    controller = covrl.target_entropy(
      0.5, horizon=10.0, momentum=momentum, maximum=0.5
    )
    entropy, *_ = closed_loop(
      controller, 1.0, updates=600, momentum=0.9, missed=0.0, noise=0.02
    )
    errors[momentum] = np.sqrt(np.mean((entropy[200:] - 0.5) ** 2))
  assert errors[0.9] < 0.01
  assert errors[0.9] < 0.5 * errors[0.0]


def test_learns_its_slope():
  """A guess thirty times too large converges; a right one stays."""
  for guess in (3.0, 0.1):
    controller = covrl.target_entropy(0.5, slope=guess, maximum=0.5)
    _, _, state = closed_loop(controller, 0.1, updates=1500, momentum=0.9)
    assert 0.03 < float(state.slope) < 0.3


def test_coefficient_of_zero_is_not_final():
  """A coefficient that was 0 for long rises as soon as entropy drifts."""
  controller = covrl.target_entropy(0.5, maximum=0.5)
  falling = np.concatenate([np.full(300, 0.9), 0.9 - 0.01 * np.arange(60)])
  values, _ = replay(controller, falling)
  assert not values[:300].any()
  assert values[-1] > 0.005


@pytest.mark.parametrize('missed', [0.004, 0.0, -0.004])
def test_reaches_its_target_with_biased_measurements(missed):
  """The entropy of other tokens changes by more or less than that measured."""
  controller = covrl.target_entropy(0.5, horizon=10.0, slope=0.01, maximum=2.0)
  entropy, _, state = closed_loop(
    controller,
    0.01,
    updates=300,
    drift=-0.006,
    start=0.5,
    momentum=0.9,
    missed=missed,
    noise=0.0,
  )
  # Without an estimate of the bias it would miss by horizon · missed, 0.04.
  assert entropy[-1] == pytest.approx(0.5, abs=2e-3)
  assert float(state.bias) == pytest.approx(missed, abs=1e-4)
