# SPDX-License-Identifier: Apache-2.0
"""Losses and token chains that depend on micro-batches are reported."""

import jax.numpy as jnp
import optax
import pytest
from train.effects_test import algorithm_of

import covrl
from covrl.train.batch_effects import micro_batch_warnings


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
