# SPDX-License-Identifier: Apache-2.0
"""An entropy that cannot be measured is NaN, and controllers keep their state then."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl import TokenStats
from covrl.entropy import exact_mean, exact_quantile, exact_sum
from covrl.entropy.base import update_signal
from covrl.parallel import sharding

FULL_MASK = jnp.ones((2, 4), bool)
CONTROLLERS = {
  'adaptive_band': covrl.controllers.adaptive_band(),
  'adaptive_bonus': covrl.adaptive_bonus(0.5, 0.01, initial=0.002),
  'doubling_scale': covrl.controllers.doubling_scale(0.5),
  'entropy_band': covrl.controllers.entropy_band(
    0.4, 0.6, below=0.01, within=0.02, above=0.03
  ),
  'proportional_integral': covrl.controllers.proportional_integral(
    0.5, offset=0.1
  ),
  'target_entropy': covrl.target_entropy(0.5),
  'a schedule': covrl.target_entropy(optax.linear_schedule(0.4, 0.2, 9)),
}


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_sums_of_numbers_that_are_not_finite_are_nan(bad):
  values = jnp.ones((2, 4)).at[1, 2].set(bad)
  assert jnp.isnan(exact_sum(values, FULL_MASK))
  assert jnp.isnan(exact_mean(values, FULL_MASK))
  # Numbers outside the mask do not count.
  assert exact_sum(values, FULL_MASK.at[1, 2].set(False)) == 7
  assert exact_mean(values, FULL_MASK.at[1, 2].set(False)) == 1


def test_means_of_nan_only_are_nan():
  assert jnp.isnan(exact_mean(jnp.full(4, jnp.nan), jnp.ones(4, bool)))
  assert jnp.isnan(
    exact_mean(jnp.array([1.0, jnp.inf, 1.0, 1.0]), jnp.ones(4, bool))
  )


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_one_device_with_nan_makes_the_sum_over_all_nan(bad):
  values = np.ones((8, 2), np.float32)
  values[5, 1] = bad
  mesh = sharding.make_mesh((8,))
  placed = sharding.shard_batch((values, np.ones((8, 2), bool)), mesh)
  assert jnp.isnan(jax.jit(exact_sum)(*placed))


def test_quantiles_of_nothing_and_of_nan_are_nan():
  values = jnp.arange(8.0).reshape(2, 4)
  assert exact_quantile(values, FULL_MASK, 0.5) == 3
  assert jnp.isnan(exact_quantile(values, ~FULL_MASK, 0.5))
  assert jnp.isnan(exact_quantile(values.at[0, 0].set(jnp.nan), FULL_MASK, 0.5))


@pytest.mark.parametrize('name', CONTROLLERS)
@pytest.mark.parametrize('change', [None, 0.01, np.nan])
def test_controllers_keep_their_state_without_an_entropy(name, change):
  controller = CONTROLLERS[name]
  optional = {} if change is None else {'entropy_change': jnp.asarray(change)}
  state = controller.init()
  for step, entropy in enumerate((None, 0.3, 0.2, None, 0.25)):
    measured = jnp.asarray(jnp.nan if entropy is None else entropy)
    context = {'entropy': measured, 'step': jnp.asarray(step), **optional}
    value = controller(state, **context)
    assert jnp.isfinite(value), (step, value)
    new_state = controller.update(state, **context)
    if entropy is None:
      jax.tree.map(np.testing.assert_array_equal, new_state, state)
    state = new_state
  assert all(bool(jnp.isfinite(x)) for x in jax.tree.leaves(state))


def test_without_a_measured_entropy_the_coefficient_is_that_of_zero_error():
  unmeasured = {'entropy': jnp.asarray(jnp.nan), 'step': jnp.asarray(0)}
  for name, expected in (
    ('adaptive_bonus', 0.002),
    ('doubling_scale', 0.01),
    ('entropy_band', 0.02),
    ('proportional_integral', 0.1),
    ('target_entropy', 0.0),
  ):
    controller = CONTROLLERS[name]
    value = controller(controller.init(), **unmeasured)
    np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)


@functools.partial(jax.jit, static_argnames='token_tx')
def update(token_tx, state, stats, entropy):
  zero_signal = jax.tree.map(jnp.zeros_like, stats)
  context = {'weights': jnp.zeros((2, 4)), 'entropy': entropy}
  return update_signal(token_tx, zero_signal, state, stats, **context)


def test_chains_keep_their_controllers_states_without_an_entropy():
  """An entropy of NaN changes the state of no controller."""
  stats = TokenStats(logprobs=jnp.zeros((2, 4)), entropy=jnp.ones((2, 4)))
  bonus = covrl.adaptive_bonus(0.5, 0.05, maximum=1.0)
  controller = covrl.controllers.proportional_integral(
    0.5, proportional=0.1, integral=0.1
  )
  token_tx = optax.chain(
    covrl.entropy_bonus(bonus), covrl.entropy_bonus(controller)
  )
  state: Any = token_tx.init(TokenStats.template())
  before = state
  for entropy in (0.6, jnp.nan, jnp.nan):
    before = state
    signal, state = update(token_tx, state, stats, jnp.asarray(entropy))
    assert bool(jnp.isfinite(signal.entropy).all())
  jax.tree.map(
    np.testing.assert_array_equal,
    [bonus_state.schedule for bonus_state in state],
    [bonus_state.schedule for bonus_state in before],
  )
