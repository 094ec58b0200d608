# SPDX-License-Identifier: Apache-2.0
"""Controllers against their rules in Python, and in closed loops."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from entropy.loops import closed_loop, replay

import covrl
from covrl.entropy.base import update_signal
from covrl.types import TokenStats

ENTROPIES = np.random.default_rng(0).uniform(0.0, 1.0, 60)


def test_adaptive_bonus_follows_its_rule():
  controller = covrl.adaptive_bonus(0.5, 0.01, maximum=0.05, initial=0.02)
  values, states = replay(controller, ENTROPIES)
  coefficient, expected = 0.02, []
  for entropy in ENTROPIES:
    expected.append(coefficient if entropy <= 0.5 else 0.0)
    coefficient += 0.01 if entropy < 0.5 else -0.01
    coefficient = min(max(coefficient, 0.0), 0.05)
  np.testing.assert_allclose(values, expected, atol=1e-6)
  np.testing.assert_allclose(states.coefficient[-1], coefficient, atol=1e-6)


def test_adaptive_bonus_has_the_published_defaults():
  values, _ = replay(covrl.adaptive_bonus(), np.full(100, 0.2 - 1e-3))
  np.testing.assert_allclose(values[:3], [0, 1e-4, 2e-4], rtol=1e-5)
  np.testing.assert_allclose(values[-1], 5e-3, rtol=1e-6)
  assert not replay(covrl.adaptive_bonus(), np.full(3, 0.21))[0].any()


def test_proportional_integral_follows_its_rule():
  controller = covrl.controllers.proportional_integral(
    0.5, proportional=2.0, integral=0.3, offset=1.0, minimum=0.2, maximum=1.8
  )
  values, _ = replay(controller, ENTROPIES)
  error_sum, expected = 0.0, []
  for entropy in ENTROPIES:
    error = 0.5 - entropy
    unclipped = 1 + 2 * error + 0.3 * (error_sum + error)
    expected.append(min(max(unclipped, 0.2), 1.8))
    pushes_out = (unclipped > 1.8 and error > 0) or (
      unclipped < 0.2 and error < 0
    )
    error_sum += 0.0 if pushes_out else error
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_integral_does_not_wind_up():
  controller = covrl.controllers.proportional_integral(
    0.5, proportional=0.0, integral=0.1, minimum=0.0, maximum=0.2
  )
  values, _ = replay(controller, [0.0] * 100 + [1.0] * 6)
  assert values[99] == pytest.approx(0.2)
  assert values[-1] == 0


def test_doubling_scale_follows_its_rule():
  entropies = ENTROPIES + 0.2  # high enough for a change of sign
  controller = covrl.controllers.doubling_scale(
    0.5, initial=2e-3, minimum=1e-3, maximum=0.05, every=2
  )
  values, _ = replay(controller, entropies)
  scale, expected = 2e-3, []
  for step, entropy in enumerate(entropies, 1):
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


def test_adaptive_band_follows_its_rule():
  """c − rate · the distance from the band, as AEnt's implementation has it."""
  controller = covrl.controllers.adaptive_band(
    0.4, 0.6, rate=0.1, minimum=0.01, maximum=0.05, initial=0.02
  )
  entropies = [0.5, 0.2, 0.3, 0.1, 0.7, 2.0]
  values, _ = replay(controller, entropies)
  expected = [0.02]
  for entropy in entropies[:-1]:
    step = 0.1 * (min(0, entropy - 0.4) + max(0, entropy - 0.6))
    expected.append(min(max(expected[-1] - step, 0.01), 0.05))
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  default = covrl.controllers.adaptive_band()
  np.testing.assert_allclose(default(default.init()), 1e-3, rtol=1e-6)


def test_entropy_band_follows_an_annealed_edge():
  controller = covrl.controllers.entropy_band(
    optax.linear_schedule(0.4, 0.0, 4), 0.6, below=0.1, within=0.2, above=0.3
  )
  values, _ = replay(controller, [0.3, 0.3, 0.3, 0.7, 0.6])
  np.testing.assert_allclose(values, [0.1, 0.2, 0.2, 0.3, 0.2], rtol=1e-6)


def test_adaptive_bonus_keeps_the_target_in_a_closed_loop():
  controller = covrl.adaptive_bonus(0.5, 1e-4, maximum=0.05)
  entropy, value, _ = closed_loop(controller, 1.0, updates=1500)
  assert abs(entropy[-300:].mean() - 0.5) < 0.05
  np.testing.assert_array_equal(value, np.clip(value, 0, np.float32(0.05)))


CONTROLLERS = {
  'adaptive_band': covrl.controllers.adaptive_band(0.45, 0.55),
  'adaptive_bonus': covrl.adaptive_bonus(0.5, 0.01),
  'doubling_scale': covrl.controllers.doubling_scale(0.5),
  'entropy_band': covrl.controllers.entropy_band(0.4, 0.6, below=0.01),
  'proportional_integral': covrl.controllers.proportional_integral(0.5),
  'target_entropy': covrl.target_entropy(0.5),
}


@pytest.fixture
def stats():
  return TokenStats(logprobs=jnp.zeros((2, 3)), entropy=jnp.ones((2, 3)))


@functools.partial(jax.jit, static_argnames='token_tx')
def update(token_tx, state, stats, entropy):
  zero_signal = jax.tree.map(jnp.zeros_like, stats)
  context = {'weights': jnp.ones((2, 3)), 'entropy': entropy}
  return update_signal(token_tx, zero_signal, state, stats, **context)


@pytest.mark.parametrize('name', CONTROLLERS)
def test_controllers_replace_a_coefficient(stats, name):
  """Controllers advance once per update of a jitted chain; their state is scalars."""
  controller = CONTROLLERS[name]
  assert isinstance(controller, optax.schedules.StatefulSchedule)
  token_tx = optax.chain(covrl.entropy_bonus(controller), optax.scale(2.0))
  state, controller_state = (
    token_tx.init(TokenStats.template()),
    controller.init(),
  )
  for entropy in (0.3, 0.2, 0.45):
    measured = jnp.asarray(entropy)
    coefficient = controller(controller_state, entropy=measured)
    controller_state = controller.update(controller_state, entropy=measured)
    # As a checkpoint does: flatten and unflatten.
    leaves, structure = jax.tree.flatten(state)
    state = jax.tree.unflatten(structure, [np.asarray(x) for x in leaves])
    signal, state = update(token_tx, state, stats, measured)
    np.testing.assert_allclose(signal.entropy, -2 * coefficient, rtol=1e-6)
  assert all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(state))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6),
    state[0].schedule,
    controller_state,
  )


def test_controllers_set_a_coefficient_under_inject_hyperparams(stats):
  """optax evaluates the coefficient before there is a context."""
  controller = covrl.target_entropy(0.5, horizon=10.0)
  token_tx = optax.inject_hyperparams(covrl.entropy_bonus)(
    coefficient=controller
  )
  state = token_tx.init(TokenStats.template())
  signal, state = update(token_tx, state, stats, jnp.asarray(0.4))
  np.testing.assert_allclose(signal.entropy, -0.01, rtol=1e-6)
  assert float(state.hyperparams['coefficient']) == pytest.approx(0.01)


def test_controllers_do_not_narrow_64_bits(x64):
  for controller in CONTROLLERS.values():
    values, _ = replay(controller, ENTROPIES)
    assert values.dtype == jnp.float64


def replay_without_entropy(controller):
  controller(controller.update(controller.init(), step=0), step=0)


def test_a_missing_context_entry_is_an_error_with_its_name():
  for controller in CONTROLLERS.values():
    with pytest.raises(TypeError, match='entropy must be in the context of'):
      replay_without_entropy(controller)
  band = covrl.controllers.entropy_band(
    optax.linear_schedule(1, 0, 2), 2.0, below=1.0
  )
  with pytest.raises(TypeError, match='step must be in the context of'):
    band(band.init(), entropy=jnp.asarray(0.5))


def test_refuses_numbers_outside_their_range():
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
      lambda: covrl.controllers.proportional_integral(0.5, integral=math.nan),
      'integral must be finite',
    ),
    (
      lambda: covrl.controllers.proportional_integral(0.5, minimum=1.0),
      'offset must lie in',
    ),
    (lambda: covrl.controllers.adaptive_band(0.5, 0.4), 'got low=0.5 and high'),
    (lambda: covrl.controllers.adaptive_band(rate=0.0), 'rate must be finite'),
    (
      lambda: covrl.controllers.entropy_band(0.5, 0.5, below=1.0),
      'got low=0.5 and high=0.5',
    ),
    (
      lambda: covrl.controllers.doubling_scale(0.5, initial=0.0),
      'initial must lie in',
    ),
    (
      lambda: covrl.controllers.doubling_scale(0.5, every=0),
      'every must be at least 1',
    ),
  ):
    with pytest.raises(ValueError, match=sentence):
      make()
