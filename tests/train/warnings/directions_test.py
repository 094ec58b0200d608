# SPDX-License-Identifier: Apache-2.0
"""Parameter chains that ascend the loss and losses without a gradient are reported."""

import dataclasses

import jax
import optax
import pytest
from train.process import RECIPES

import covrl
from covrl.config import load
from covrl.models import Policy, tiny
from covrl.train.algorithm import Algorithm
from covrl.train.warnings.directions import (
  direction_warnings,
  gradient_warnings,
)


@pytest.mark.parametrize(
  ('tx', 'ascends'),
  [
    (optax.sgd(1e-3), False),
    (optax.adamw(optax.linear_schedule(0.0, 1e-3, 10)), False),
    (optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)), False),
    (optax.adafactor(1e-3), False),
    (optax.set_to_zero(), False),
    (optax.scale_by_adam(), True),
    (optax.sgd(-1e-3), True),
    (
      optax.masked(optax.sgd(1e-3), lambda p: jax.tree.map(lambda _: False, p)),
      True,
    ),
  ],
)
def test_chains_that_move_along_the_gradient_are_reported(tx, ascends):
  warnings = [*direction_warnings(Policy(tiny(8)), tx=(tx, 2))]
  assert bool(warnings) is ascends


def test_a_learning_rate_that_becomes_negative_is_reported():
  def falling(count):
    return 1e-2 * (1 - count / 10)

  policy = Policy(tiny(8))
  assert not [*direction_warnings(policy, tx=(optax.sgd(falling), 10))]
  injected = optax.inject_hyperparams(optax.sgd)(learning_rate=falling)
  warnings = direction_warnings(
    policy, tx=(optax.sgd(falling), 40), warm_start_tx=(injected, 20)
  )
  for warning, updates in zip(warnings, (40, 20), strict=True):
    assert warning.endswith(
      f'at update 11 of {updates}: its learning rate becomes negative'
    )
  cosine = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 40)
  assert not [*direction_warnings(policy, tx=(optax.sgd(cosine), 60))]


def algorithm_of(loss, token_tx=None):
  recipe = load(str(RECIPES / 'toy_kl_cov.py'))
  algorithm = Algorithm.from_recipe(recipe)
  return dataclasses.replace(
    algorithm, loss=loss, token_tx=token_tx or optax.identity()
  )


def with_value(edit):
  """Policy gradient with an edited value."""

  def loss(stats, **context):
    value, aux = covrl.losses.policy_gradient(stats, **context)
    return edit(value), aux

  return loss


@pytest.mark.parametrize(
  ('loss', 'token_tx', 'trains'),
  [
    (with_value(lambda value: value), None, True),
    (with_value(lambda value: -value), None, True),
    (with_value(jax.lax.stop_gradient), None, False),
    (with_value(lambda value: 0.0 * jax.lax.stop_gradient(value)), None, False),
    (with_value(jax.lax.stop_gradient), covrl.entropy_bonus(0.1), True),
    (covrl.losses.clipped_surrogate, None, True),
    (covrl.losses.gspo, None, True),
    (covrl.losses.cispo, covrl.kl_cov(0.01, 1.0), True),
    (covrl.losses.policy_gradient, optax.set_to_zero(), False),
  ],
)
def test_losses_without_a_gradient_are_reported(loss, token_tx, trains):
  warnings = [*gradient_warnings(algorithm_of(loss, token_tx))]
  assert bool(warnings) is not trains
