# SPDX-License-Identifier: Apache-2.0
"""The toy task with a critic."""

import dataclasses
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import optax
from train import toy

from covrl.config import Config, Recipe
from covrl.train import Task
from covrl.train.compiled import CompiledPrograms
from covrl.train.networks import critic, critic_advantages


def ppo() -> Recipe:
  """PPO with one epoch of two updates, a KL penalty that adapts and packing."""
  recipe = toy.recipe(
    task=_task,
    token_tx=lambda config: optax.identity(),
    networks=lambda config: {'critic': critic(config)},
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
  config.train.packed_rows = 12
  config.warm_start.steps = 8
  config.logging.samples_every = 100
  config.logging.entropy_change_every = 0
  return recipe


def killed_between_updates() -> Recipe:
  """The same; the process is killed between the two networks' fourth updates."""
  recipe = ppo()
  return dataclasses.replace(
    recipe, networks=_after(recipe.networks, _kill_at_update(3))
  )


def _after(
  networks: Callable[[Config], Mapping[str, Any]], patch: Callable[[], None]
) -> Callable[[Config], Mapping[str, Any]]:
  def build(config: Config) -> Mapping[str, Any]:
    patch()
    return networks(config)

  return build


def _kill_at_update(number: int) -> Callable[[], None]:
  """Kills the process where the critic is updated and the policy is not yet."""

  def patch() -> None:
    made, update = [0], CompiledPrograms._update_policy

    def kill(*args: Any) -> Any:
      if made[0] == number:
        os.kill(os.getpid(), signal.SIGKILL)
      made[0] += 1
      return update(*args)

    mock.patch.object(CompiledPrograms, '_update_policy', kill).start()

  return patch


def _task(config: Config) -> Task:
  return dataclasses.replace(toy.make_task(config), held_out=[])
