# SPDX-License-Identifier: Apache-2.0
"""Controllers on a series of readings, and in a simulated closed loop."""

import jax
import jax.numpy as jnp
import numpy as np


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


def closed_loop(
  controller,
  slope,
  *,
  updates,
  drift=-0.004,
  start=0.9,
  every=1,
  momentum=0.0,
  missed=None,
  noise=0.005,
):
  """Entropy under a controller: it drifts down, the coefficient raises it.

  Readings are noisy, and renewed only every so many updates, as within an
  iteration.

  Args:
    controller: controller of the coefficient.
    slope: effect of a unit of the coefficient, nats per update.
    updates: number of updates.
    drift: change without a coefficient, nats per update.
    start: initial entropy, nats.
    every: updates between new readings.
    momentum: momentum of the optimiser, which averages coefficients like Adam.
    missed: bias of the measured changes, nats; `None` passes no
      `entropy_change`.
    noise: standard deviation of readings, nats.

  Returns:
    Entropies and coefficients of every update, and the controller's last state.
  """
  errors = noise * np.random.default_rng(1).normal(size=updates)

  def advance(carry, reading):
    entropy, shown, change, before, average, state = carry
    step, error = reading
    shown = jnp.where(step % every == 0, entropy, shown)
    context = {'entropy': shown + error, 'step': step}
    if missed is not None:
      context['entropy_change'] = before - missed
    value = controller(state, **context)
    state = controller.update(state, **context)
    pace = (1 - momentum) / (1 - momentum ** (step + 1))
    average += pace * (value - average)
    moved = jnp.maximum(entropy + drift + slope * average, 0.0)
    carry = moved, shown, moved - entropy, change, average, state
    return carry, (moved, value)

  start, unknown, zero = (jnp.asarray(x) for x in (start, jnp.nan, 0.0))
  first = start, start, unknown, unknown, zero, controller.init()
  readings = (jnp.arange(updates), jnp.asarray(errors))
  (*_, state), (entropy, value) = jax.lax.scan(advance, first, readings)
  return np.asarray(entropy), np.asarray(value), state
