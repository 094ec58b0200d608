# SPDX-License-Identifier: Apache-2.0
"""Schedules of token chains that leave their range are reported."""

import optax
import pytest

import covrl
from covrl.train.warnings.schedules import schedule_warnings

UPDATES = 20


def falling(count):
  """0.02 at first, and negative after update 10."""
  return 0.02 * (1 - count / 10)


def rising(count):
  """0.01 at first, and above 0.05 after update 8."""
  return 0.01 + 0.005 * count


METHODS = {
  'entropy_bonus': covrl.entropy_bonus(falling),
  'kl_cov': covrl.kl_cov(0.05, coefficient=falling),
  'kl_to_reference': covrl.kl_to_reference(falling),
  'lp_reg': covrl.lp_reg(coefficient=falling),
  'aent': covrl.aent(falling),
  'entropy_shaped': covrl.entropy_shaped(falling),
  'sample_weights': covrl.sample_weights(negative=falling),
  'detach_drain': covrl.detach_drain(falling),
  'in a chain': optax.named_chain(
    ('a', covrl.clip_cov(0.05)), ('b', covrl.entropy_bonus(falling))
  ),
}


@pytest.mark.parametrize('name', METHODS)
def test_coefficients_that_become_negative_are_reported(name):
  (warning,) = schedule_warnings(METHODS[name], UPDATES)
  assert warning.endswith(
    'at update 11 of 20, but must be finite and at least 0'
  )
  assert not [*schedule_warnings(METHODS[name], 11)]


@pytest.mark.parametrize(
  'make',
  [
    lambda: covrl.kl_cov(rising),
    lambda: covrl.clip_cov(rising),
    lambda: covrl.lp_reg(rising),
    lambda: optax.inject_hyperparams(covrl.kl_cov)(fraction=rising),
  ],
)
def test_fractions_that_are_clamped_are_reported(make):
  (warning,) = schedule_warnings(make(), UPDATES)
  assert 'has the fraction 0.055 of ' in warning
  assert warning.endswith('at update 9 of 20, which is clamped to [0, 0.05]')
  assert not [*schedule_warnings(make(), 9)]


@pytest.mark.parametrize(
  'token_tx',
  [
    covrl.entropy_bonus(optax.linear_schedule(1e-3, 0, UPDATES)),
    covrl.entropy_bonus(
      covrl.controllers.proportional_integral(0.5, proportional=-1.0)
    ),
    covrl.kl_cov(optax.linear_schedule(0.05, 0, UPDATES)),
    covrl.kl_cov(rising, allow_large=True),
    covrl.repo(falling),
    optax.identity(),
  ],
)
def test_valid_schedules_and_controllers_are_not_reported(token_tx):
  assert not [*schedule_warnings(token_tx, UPDATES)]


def test_a_chain_that_cannot_be_run_on_a_single_token_is_reported():
  def update(updates, state, params=None, **context):
    raise RuntimeError('needs two tokens')

  chain = optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )
  (warning,) = schedule_warnings(chain, UPDATES)
  assert warning.endswith('cannot be checked: needs two tokens')
