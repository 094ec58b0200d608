# SPDX-License-Identifier: Apache-2.0
"""The toy task with a process reward model."""

import dataclasses

import optax
from train import killing, toy

from covrl.config import Config, Recipe
from covrl.train import Task
from covrl.train.networks import (
  Network,
  prime_advantages,
  process_reward_model,
)


def prime() -> Recipe:
  """PRIME with two updates; its model is updated with the policy."""
  recipe = toy.recipe(
    task=_task,
    token_tx=lambda config: optax.identity(),
    networks=_networks,
    estimator=prime_advantages,
  )
  config = recipe.config
  config.prime.learning_rate = 3e-3
  config.train.keep_reference = True
  config.train.sequences_per_update = 16
  config.train.iterations = 3
  config.rollout.max_draws = 2
  config.rollout.min_accuracy = 0.2
  config.rollout.max_accuracy = 0.8
  config.rollout.fill_groups = True
  config.warm_start.steps = 8
  config.logging.samples_every = 100
  config.logging.entropy_change_every = 0
  return recipe


def updated_first() -> Recipe:
  """PRIME on packed rows; its model is updated before it scores responses."""
  recipe = prime()
  recipe.config.prime.update = 'before'
  recipe.config.prime.reference = 'old'
  recipe.config.train.keep_reference = False
  recipe.config.train.packed_rows = 14
  return recipe


def without_model() -> Recipe:
  """A recipe without the reward model that its estimator reads."""
  return dataclasses.replace(prime(), networks=lambda config: {})


def _networks(config: Config) -> dict[str, Network]:
  killing.kill_before_policy_update_if_requested()
  return {'prm': process_reward_model(config)}


def _task(config: Config) -> Task:
  return dataclasses.replace(toy.make_task(config), held_out=[])
