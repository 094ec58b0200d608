# SPDX-License-Identifier: Apache-2.0
"""The toy task with a critic."""

import dataclasses

import optax
from train import killing, toy

from covrl.config import Config, Recipe
from covrl.train import Task
from covrl.train.networks import Network, critic, critic_advantages


def ppo() -> Recipe:
  """PPO with two updates, a warm-up and a KL penalty that adapts."""
  recipe = toy.recipe(
    task=_task,
    token_tx=lambda config: optax.identity(),
    networks=_networks,
    estimator=critic_advantages,
  )
  config = recipe.config
  config.critic.learning_rate = 3e-3
  config.critic.kl_coefficient = 0.05
  config.critic.kl_target = 0.02
  config.critic.kl_horizon = 64.0
  config.critic.warm_up = 3
  config.train.keep_reference = True
  config.train.sequences_per_update = 16
  config.train.iterations = 3
  config.warm_start.steps = 8
  config.logging.samples_every = 100
  config.logging.entropy_change_every = 0
  return recipe


def no_critic() -> Recipe:
  """An estimator that reads a critic which the recipe lacks."""
  return dataclasses.replace(ppo(), networks=lambda config: {})


def _networks(config: Config) -> dict[str, Network]:
  killing.kill_before_policy_update_if_requested()
  return {'critic': critic(config)}


def _task(config: Config) -> Task:
  return dataclasses.replace(toy.make_task(config), held_out=[])
