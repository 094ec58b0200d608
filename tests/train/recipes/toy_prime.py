# SPDX-License-Identifier: Apache-2.0
"""The toy task with a process reward model."""

import dataclasses

import optax
from train import between_updates, toy

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


def before() -> Recipe:
  """The same with a model that is updated before it scores, on packed rows."""
  recipe = prime()
  recipe.config.prime.update = 'before'
  recipe.config.prime.reference = 'old'
  recipe.config.train.keep_reference = False
  recipe.config.train.packed_rows = 14
  return recipe


def no_model() -> Recipe:
  """An estimator that reads a reward model which the recipe lacks."""
  return dataclasses.replace(prime(), networks=lambda config: {})


def _networks(config: Config) -> dict[str, Network]:
  between_updates.kill_if_asked()
  return {'prm': process_reward_model(config)}


def _task(config: Config) -> Task:
  return dataclasses.replace(toy.make_task(config), held_out=[])
