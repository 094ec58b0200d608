# SPDX-License-Identifier: Apache-2.0
"""Controllers on a series of entropies, and in a simulated closed loop."""

import jax
import jax.numpy as jnp
import numpy as np


def replay(controller, entropies):
  """The coefficients and states over a series of measured entropies, in one program."""

  @jax.jit
  def run(entropies):
    def advance(state, step_and_entropy):
      step, entropy = step_and_entropy
      context = {'entropy': entropy, 'step': step}
      coefficient = controller(state, **context)
      state = controller.update(state, **context)
      return state, (coefficient, state)

    steps = jnp.arange(len(entropies))
    return jax.lax.scan(advance, controller.init(), (steps, entropies))[1]

  return run(jnp.asarray(entropies))


def closed_loop(
  controller, slope, *, updates, drift=-0.004, start=0.9, noise=0.005
):
  """Entropy under a controller: it drifts down, the coefficient raises it.

  Args:
    controller: controller of the coefficient.
    slope: effect of a unit of the coefficient, nats per update.
    updates: number of updates.
    drift: change without a coefficient, nats per update.
    start: initial entropy, nats.
    noise: standard deviation of the measurement error, nats.

  Returns:
    Entropies and coefficients of every update, and the controller's last state.
  """
  errors = noise * np.random.default_rng(1).normal(size=updates)

  def advance(carry, step_and_error):
    entropy, state = carry
    step, error = step_and_error
    context = {'entropy': entropy + error, 'step': step}
    coefficient = controller(state, **context)
    state = controller.update(state, **context)
    next_entropy = jnp.maximum(entropy + drift + slope * coefficient, 0.0)
    return (next_entropy, state), (next_entropy, coefficient)

  initial = jnp.asarray(start), controller.init()
  steps_and_errors = (jnp.arange(updates), jnp.asarray(errors))
  (_, state), (entropy, coefficient) = jax.lax.scan(
    advance, initial, steps_and_errors
  )
  return np.asarray(entropy), np.asarray(coefficient), state
