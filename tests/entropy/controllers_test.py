# SPDX-License-Identifier: Apache-2.0
"""Controllers against their rules in Python, and in a loop with a plant."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl.entropy import Outlook
from covrl.entropy.chain import init_token_state, update_signal
from covrl.types import TokenStats


def replay(controller, entropies):
  """The coefficients and states over a series of readings, in one program."""

  @jax.jit
  def run(entropies):
    def advance(state, reading):
      step, entropy = reading
      context = {'entropy': entropy, 'step': step}
      value = controller(state, **context)
      state = controller.update(state, **context)
      return state, (value, state)

    steps = jnp.arange(len(entropies))
    return jax.lax.scan(advance, controller.init(), (steps, entropies))[1]

  return run(jnp.asarray(entropies))


READINGS = np.random.default_rng(0).uniform(0.0, 1.0, 60)


def test_adaptive_bonus_follows_its_rule():
  controller = covrl.adaptive_bonus(0.5, 0.01, maximum=0.05, initial=0.02)
  values, states = replay(controller, READINGS)
  coefficient, expected = 0.02, []
  for entropy in READINGS:
    expected.append(coefficient if entropy <= 0.5 else 0.0)
    coefficient += 0.01 if entropy < 0.5 else -0.01
    coefficient = min(max(coefficient, 0.0), 0.05)
  np.testing.assert_allclose(values, expected, atol=1e-6)
  np.testing.assert_allclose(states.coefficient[-1], coefficient, atol=1e-6)


def test_adaptive_bonus_ships_the_published_numbers():
  values, _ = replay(covrl.adaptive_bonus(), np.full(100, 0.2 - 1e-3))
  np.testing.assert_allclose(values[:3], [0, 1e-4, 2e-4], rtol=1e-5)
  np.testing.assert_allclose(values[-1], 5e-3, rtol=1e-6)
  assert not replay(covrl.adaptive_bonus(), np.full(3, 0.21))[0].any()


def test_proportional_integral_follows_its_rule():
  controller = covrl.proportional_integral(
    0.5, proportional=2.0, integral=0.3, offset=1.0, minimum=0.2, maximum=1.8
  )
  values, _ = replay(controller, READINGS)
  total, expected = 0.0, []
  for entropy in READINGS:
    error = 0.5 - entropy
    wanted = 1 + 2 * error + 0.3 * (total + error)
    expected.append(min(max(wanted, 0.2), 1.8))
    pushes_out = (wanted > 1.8 and error > 0) or (wanted < 0.2 and error < 0)
    total += 0.0 if pushes_out else error
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_integral_does_not_wind_up():
  controller = covrl.proportional_integral(
    0.5, proportional=0.0, integral=0.1, minimum=0.0, maximum=0.2
  )
  values, _ = replay(controller, [0.0] * 100 + [1.0] * 6)
  assert values[99] == pytest.approx(0.2)
  assert values[-1] == 0


def test_doubling_scale_follows_its_rule():
  readings = READINGS + 0.2  # high enough for a change of sign
  controller = covrl.doubling_scale(
    0.5, initial=2e-3, minimum=1e-3, maximum=0.05, every=2
  )
  values, _ = replay(controller, readings)
  scale, expected = 2e-3, []
  for step, entropy in enumerate(readings, 1):
    expected.append(scale)
    if step % 2:
      continue
    if (scale > 0) == (entropy < 0.5):
      scale = math.copysign(min(abs(scale) * 2, 0.05), scale)
    elif abs(scale) / 2 >= 1e-3:
      scale /= 2
    else:
      scale = math.copysign(1e-3, -scale)
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  assert set(np.sign(values)) == {-1, 1}


def test_entropy_band_with_an_annealed_edge():
  controller = covrl.entropy_band(
    optax.linear_schedule(0.4, 0.0, 4), 0.6, below=0.1, within=0.2, above=0.3
  )
  values, _ = replay(controller, [0.3, 0.3, 0.3, 0.7, 0.6])
  np.testing.assert_allclose(values, [0.1, 0.2, 0.2, 0.3, 0.2], rtol=1e-6)


def closed_loop(
  controller, slope, *, updates, drift=-0.004, start=0.9, every=1
):
  """Entropy under a controller: it drifts down, the coefficient lifts it.

  Readings are noisy, and renewed only every so many updates, as within an
  iteration.
  """
  noise = 0.005 * np.random.default_rng(1).normal(size=updates)

  def advance(carry, reading):
    entropy, shown, state = carry
    step, error = reading
    shown = jnp.where(step % every == 0, entropy, shown)
    context = {'entropy': shown + error, 'step': step}
    value = controller(state, **context)
    state = controller.update(state, **context)
    entropy = jnp.maximum(entropy + drift + slope * value, 0.0)
    return (entropy, shown, state), (entropy, value)

  first = (jnp.asarray(start), jnp.asarray(start), controller.init())
  readings = (jnp.arange(updates), jnp.asarray(noise))
  (_, _, state), (entropy, value) = jax.lax.scan(advance, first, readings)
  return np.asarray(entropy), np.asarray(value), state


@pytest.mark.parametrize('every', [1, 8])
@pytest.mark.parametrize('slope', [0.1, 1.0, 5.0])
def test_target_entropy_reaches_its_target(slope, every):
  controller = covrl.target_entropy(0.5, horizon=40.0, slope=1.0, maximum=0.5)
  entropy, value, state = closed_loop(
    controller, slope, updates=1500, every=every
  )
  assert abs(entropy[-300:].mean() - 0.5) < 0.01
  assert entropy[-300:].std() < 0.01
  # The coefficient that holds it there is the one that cancels the drift.
  assert value[-300:].mean() == pytest.approx(0.004 / slope, rel=0.1)
  np.testing.assert_array_equal(value, np.clip(value, 0, 0.5))
  assert int(state.readings) == 1500


def test_target_entropy_learns_its_slope():
  """From a guess thirty times too large, or left alone where it is right."""
  far = covrl.target_entropy(0.5, horizon=20.0, slope=3.0, maximum=0.5)
  _, _, state = closed_loop(far, 0.1, updates=1500)
  assert 0.03 < float(state.slope) < 0.3
  near = covrl.target_entropy(0.5, horizon=20.0, slope=0.1, maximum=0.5)
  _, _, state = closed_loop(near, 0.1, updates=1500)
  assert 0.03 < float(state.slope) < 0.3


def test_target_entropy_does_not_stay_at_zero():
  """A coefficient at 0 for long, then a drift: it comes back at once."""
  controller = covrl.target_entropy(0.5, horizon=20.0, maximum=0.5)
  falling = np.concatenate([np.full(300, 0.9), 0.9 - 0.01 * np.arange(60)])
  values, _ = replay(controller, falling)
  assert not values[:300].any()
  assert values[-1] > 0.005


def test_target_entropy_at_its_first_reading():
  """No change has been seen: only the distance to the target counts."""
  controller = covrl.target_entropy(0.5, horizon=10.0, slope=2.0)
  values, states = replay(controller, [0.3, 0.3])
  np.testing.assert_allclose(values[0], 0.2 / 10 / 2, rtol=1e-6)
  assert (states.drift[0], states.slope[0]) == (0, 2)


def test_adaptive_bonus_holds_a_plant():
  controller = covrl.adaptive_bonus(0.5, 1e-4, maximum=0.05)
  entropy, value, _ = closed_loop(controller, 1.0, updates=1500)
  assert abs(entropy[-300:].mean() - 0.5) < 0.05
  np.testing.assert_array_equal(value, np.clip(value, 0, np.float32(0.05)))


CONTROLLERS = {
  'adaptive_bonus': covrl.adaptive_bonus(0.5, 0.01),
  'doubling_scale': covrl.doubling_scale(0.5),
  'entropy_band': covrl.entropy_band(0.4, 0.6, below=0.01),
  'proportional_integral': covrl.proportional_integral(0.5),
  'target_entropy': covrl.target_entropy(0.5),
}


@pytest.fixture
def stats():
  return TokenStats(logprobs=jnp.zeros((2, 3)), entropy=jnp.ones((2, 3)))


@functools.partial(jax.jit, static_argnames='token_tx')
def update(token_tx, state, stats, entropy):
  silent = jax.tree.map(jnp.zeros_like, stats)
  context = {'weights': jnp.ones((2, 3)), 'entropy': entropy}
  return update_signal(token_tx, silent, state, stats, **context)


@pytest.mark.parametrize('name', CONTROLLERS)
def test_controllers_stand_where_a_coefficient_does(stats, name):
  """Within optax's chain, under jit: advanced once, saved as scalars."""
  controller = CONTROLLERS[name]
  assert isinstance(controller, optax.schedules.StatefulSchedule)
  token_tx = optax.chain(covrl.entropy_bonus(controller), optax.scale(2.0))
  state, alone = init_token_state(token_tx), controller.init()
  for entropy in (0.3, 0.2, 0.45):
    reading = jnp.asarray(entropy)
    coefficient = controller(alone, entropy=reading)
    alone = controller.update(alone, entropy=reading)
    # What a checkpoint does: leaves out, leaves in.
    leaves, structure = jax.tree.flatten(state)
    state = jax.tree.unflatten(structure, [np.asarray(x) for x in leaves])
    signal, state = update(token_tx, state, stats, reading)
    np.testing.assert_allclose(signal.entropy, -2 * coefficient, rtol=1e-6)
  assert all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(state))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6),
    state[0].schedule,
    alone,
  )


def test_controllers_under_inject_hyperparams(stats):
  """optax asks for a value before there is any context."""
  controller = covrl.target_entropy(0.5, horizon=10.0)
  token_tx = optax.inject_hyperparams(covrl.entropy_bonus)(
    coefficient=controller
  )
  state = init_token_state(token_tx)
  signal, state = update(token_tx, state, stats, jnp.asarray(0.4))
  np.testing.assert_allclose(signal.entropy, -0.01, rtol=1e-6)
  assert float(state.hyperparams['coefficient']) == pytest.approx(0.01)


def test_controllers_keep_64_bits(x64):
  for controller in CONTROLLERS.values():
    values, _ = replay(controller, READINGS)
    assert values.dtype == jnp.float64


def replay_without_reading(controller):
  controller(controller.update(controller.init(), step=0), step=0)


def test_a_missing_reading_is_named():
  for controller in CONTROLLERS.values():
    with pytest.raises(TypeError, match="reads 'entropy' from the context"):
      replay_without_reading(controller)
  band = covrl.entropy_band(optax.linear_schedule(1, 0, 2), 2.0, below=1.0)
  with pytest.raises(TypeError, match="reads 'step' from the context"):
    band(band.init(), entropy=jnp.asarray(0.5))


def test_numbers_outside_their_range_are_refused():
  for make, sentence in (
    (lambda: covrl.adaptive_bonus(-0.1), 'target is an entropy'),
    (lambda: covrl.adaptive_bonus(increment=0.0), 'increment must be finite'),
    (
      lambda: covrl.adaptive_bonus(minimum=1.0),
      'minimum must be below maximum',
    ),
    (lambda: covrl.adaptive_bonus(initial=1.0), r'initial must lie in \[0, 0'),
    (lambda: covrl.target_entropy(0.5, horizon=0.5), 'horizon must be finite'),
    (lambda: covrl.target_entropy(0.5, slope=-1.0), 'slope must be finite and'),
    (
      lambda: covrl.proportional_integral(0.5, integral=math.nan),
      'integral must be finite',
    ),
    (
      lambda: covrl.proportional_integral(0.5, minimum=1.0),
      'offset must lie in',
    ),
    (
      lambda: covrl.entropy_band(0.5, 0.5, below=1.0),
      'got low=0.5 and high=0.5',
    ),
    (lambda: covrl.doubling_scale(0.5, initial=0.0), 'initial must lie in'),
    (lambda: covrl.doubling_scale(0.5, every=0), 'every must be at least 1'),
  ):
    with pytest.raises(ValueError, match=sentence):
      make()


def test_target_entropy_solves_the_formula():
  """c = (((target − H) / horizon − d) / s − D) / E, clipped."""
  controller = covrl.target_entropy(0.5, horizon=10.0, slope=0.02, maximum=2.0)
  state = controller.init()._replace(drift=jnp.asarray(-0.001))

  def value(drift, effect, limit=np.inf):
    look = Outlook(drift=drift, effect=effect, limit=limit)
    context = {'entropy': jnp.asarray(0.48), 'outlook': lambda: look}
    return jnp.asarray(controller(state, **context)).item()

  needed = (0.02 / 10 + 0.001) / 0.02
  assert value(-0.1, 0.5) == pytest.approx((needed + 0.1) / 0.5, rel=1e-6)
  assert value(0.0, 1.0) == pytest.approx(needed, rel=1e-6)
  # Bounds: its own, and what the coefficient can do.
  assert value(0.4, 0.5) == 0.0
  assert value(-9.0, 0.5) == 2.0
  assert value(-9.0, 0.5, limit=0.25) == 0.25
  # No effect, or the wrong one: no coefficient helps.
  assert value(-0.1, 0.0) == value(-0.1, -1.0) == 0.0


def test_target_entropy_aims_where_the_target_will_be():
  falling = optax.linear_schedule(1.0, 0.0, 100)
  controller = covrl.target_entropy(falling, horizon=10.0)
  context = {'entropy': jnp.asarray(0.5), 'step': jnp.asarray(30)}
  value = controller(controller.init(), **context)
  np.testing.assert_allclose(value, (0.6 - 0.5) / 10, rtol=1e-5)


def test_target_entropy_follows_measured_changes():
  """Readings, which vary with the prompts, correct what changes add up to."""
  controller = covrl.target_entropy(0.5, horizon=10.0)
  state = controller.init()
  for reading, change in ((0.5, np.nan), (0.6, -0.02), (0.4, 0.01)):
    context = {'entropy': jnp.asarray(reading)}
    context['entropy_change'] = jnp.asarray(change)
    state = controller.update(state, **context)
  first = 0.6 - (0.5 - 0.02)
  entropy, unseen = 0.48 + first / 10, first / 20**2
  moved = entropy + 0.01 + unseen
  np.testing.assert_allclose(
    state.entropy, moved + (0.4 - moved) / 10, rtol=1e-6
  )
  np.testing.assert_allclose(
    state.unseen, unseen + (0.4 - moved) / 20**2, rtol=1e-5
  )
  # Of a change that was not measured nothing is learnt.
  after = controller.update(
    state,
    entropy=jnp.asarray(0.5),
    entropy_change=jnp.asarray(np.nan),
  )
  assert after.drift == pytest.approx(float(state.drift), rel=1e-6)
  assert after.slope == pytest.approx(float(state.slope), rel=1e-6)


def test_target_entropy_learns_by_a_kalman_filter():
  """Of (d, log s), from changes and what had been foreseen of them."""
  horizon, rng = 8.0, np.random.default_rng(0)
  controller = covrl.target_entropy(0.5, horizon=horizon, slope=0.02)
  state = controller.init()
  drift, slope, noise, covariance = 0.0, 0.02, 1e-4, np.diag([1e-4, 1.0])
  foreseen = None
  for _ in range(30):
    look = Outlook(drift=rng.normal(), effect=rng.uniform(0.5, 2))
    change = rng.normal(0, 0.02)
    context = {
      'entropy': jnp.asarray(0.5),
      'entropy_change': jnp.asarray(change),
      'outlook': functools.partial(lambda look: look, look),
    }
    coefficient = jnp.asarray(controller(state, **context)).item()
    state = controller.update(state, **context)
    if foreseen is not None:
      row = np.array([1, slope * foreseen])
      least = max(noise, 1e-6)
      covariance = covariance + np.diag([least / horizon**2, 1e-4])
      error = change - drift - slope * foreseen
      gain = covariance @ row / (row @ covariance @ row + least)
      drift += gain[0] * error
      slope *= math.exp(gain[1] * error)
      covariance = (np.eye(2) - np.outer(gain, row)) @ covariance
      noise += (error**2 - noise) / horizon
    foreseen = look.drift + coefficient * look.effect
  for ours, theirs in (
    (state.drift, drift),
    (state.slope, slope),
    (state.noise, noise),
    (state.drift_variance, covariance[0, 0]),
    (state.slope_variance, covariance[1, 1]),
    (state.covariance, covariance[0, 1]),
  ):
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize('missed', [0.004, 0.0, -0.004])
def test_target_entropy_meets_its_target_whatever_measured_changes_miss(missed):
  """Other tokens move by another amount than those that an update has seen."""
  controller = covrl.target_entropy(0.5, horizon=10.0, slope=0.01, maximum=2.0)
  update = jax.jit(controller.update)
  state, entropy, change = controller.init(), 0.5, np.nan
  for _ in range(300):
    context = {
      'entropy': jnp.asarray(entropy),
      'entropy_change': jnp.asarray(change),
    }
    change = 0.01 * jnp.asarray(controller(state, **context)).item() - 0.006
    state = update(state, **context)
    entropy += change + missed
  # Without learning what is missed it would be horizon · missed away, 0.04.
  assert entropy == pytest.approx(0.5, abs=2e-3)
  assert float(state.unseen) == pytest.approx(missed, abs=1e-4)
