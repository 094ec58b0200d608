# SPDX-License-Identifier: Apache-2.0
"""Losses and token chains that depend on micro-batches are reported."""

import dataclasses

import jax.numpy as jnp
import optax
import pytest
from train.warnings.directions_test import algorithm_of

import covrl
from covrl.config import Config
from covrl.train.networks import (
  critic,
  critic_advantages,
  prime_advantages,
  process_reward_model,
)
from covrl.train.warnings.micro_batches import micro_batch_warnings


def mean_loss(stats, **context):
  """A policy gradient that averages over the tokens that it gets."""
  mask = context['mask']
  weights = mask / jnp.maximum(jnp.sum(mask), 1)
  return covrl.policy_gradient(stats, **{**context, 'weights': weights})


CONTROLLED = covrl.entropy_bonus(covrl.controllers.target_entropy(1.0))
METHODS = optax.chain(
  covrl.truncated_importance_weights(1.1, level='sequence'),
  covrl.kl_cov(0.2, allow_large=True, selection_source='current'),
  optax.clip(1.0),
  CONTROLLED,
)


@pytest.mark.parametrize(
  ('loss', 'token_tx', 'subject'),
  [
    (covrl.gspo, METHODS, ''),
    (covrl.policy_gradient, covrl.kl_cov(0.05, scope='micro_batch'), ''),
    (mean_loss, CONTROLLED, 'loss'),
    (covrl.policy_gradient, optax.clip_by_global_norm(0.01), 'token chain'),
  ],
)
def test_gradients_that_depend_on_micro_batches_are_reported(
  loss, token_tx, subject
):
  algorithm = algorithm_of(loss, token_tx)
  warnings = list(micro_batch_warnings(algorithm, 4))
  assert len(warnings) == bool(subject)
  assert all(f"the recipe's {subject} has another" in x for x in warnings)
  assert not list(micro_batch_warnings(algorithm, 1))


def test_an_algorithm_that_cannot_be_computed_on_the_example_is_reported():
  def loss_of_pairs(stats, **context):
    raise ValueError('the batch must have 64 rows, got 4')

  algorithm = algorithm_of(loss_of_pairs, optax.identity())
  (warning,) = micro_batch_warnings(algorithm, 4)
  assert warning.endswith(
    'cannot be checked: the batch must have 64 rows, got 4'
  )


def algorithm_with(network, estimator):
  """A policy gradient with a network beside the policy."""
  return dataclasses.replace(
    algorithm_of(covrl.policy_gradient),
    networks={'second': network},
    estimator=estimator,
  )


@pytest.mark.parametrize(
  ('network', 'estimator'),
  [(critic, critic_advantages), (process_reward_model, prime_advantages)],
)
def test_losses_of_networks_that_depend_on_micro_batches_are_reported(
  network, estimator
):
  network, estimator = (make(Config()) for make in (network, estimator))
  algorithm = algorithm_with(network, estimator)
  assert not list(micro_batch_warnings(algorithm, 4))

  def averaged(output, rows):
    mask = rows.loss_mask
    weights = mask / jnp.maximum(jnp.sum(mask), 1)
    return network.loss(output, dataclasses.replace(rows, weights=weights))

  dependent = dataclasses.replace(network, loss=averaged)
  algorithm = algorithm_with(dependent, estimator)
  (warning,) = micro_batch_warnings(algorithm, 4)
  assert warning.startswith("the loss of the network 'second' has another")
  assert not list(micro_batch_warnings(algorithm, 1))


def test_a_network_that_cannot_be_computed_on_the_example_is_reported():
  def loss_of_pairs(output, rows):
    raise ValueError('the batch must have 64 rows, got 4')

  network = dataclasses.replace(critic(Config()), loss=loss_of_pairs)
  algorithm = algorithm_with(network, critic_advantages(Config()))
  (warning,) = micro_batch_warnings(algorithm, 4)
  assert "network 'second'" in warning
  assert warning.endswith('got 4')
