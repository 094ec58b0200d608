# SPDX-License-Identifier: Apache-2.0
"""The toy task with responses that are sampled ahead of training."""

import dataclasses

import optax
from train import toy

import covrl
from covrl.config import Config, Recipe
from covrl.models import Experts, ModelConfig, tiny
from covrl.train import Task


def pipelined() -> Recipe:
  """IcePop, two updates per iteration, few slots."""
  recipe = toy.recipe(
    task=_task,
    token_tx=lambda config: covrl.icepop(),
    tx=lambda config: optax.sgd(config.train.learning_rate),
  )
  config = recipe.config
  config.rollout.pipeline = 1
  config.rollout.slots = 8
  config.rollout.segment = 1
  config.train.sequences_per_update = 16
  config.train.learning_rate = 0.1
  config.warm_start.steps = 8
  config.logging.samples = config.logging.entropy_change_every = 0
  return recipe


def partial() -> Recipe:
  """Sampling ahead, with groups that are carried over to the next iteration."""
  recipe = pipelined()
  recipe.config.rollout.carried_groups = 4
  return recipe


def partial_replay() -> Recipe:
  """Carried groups with a mixture of experts, routing replay and packed rows."""
  recipe = dataclasses.replace(partial(), model=_model)
  recipe.config.train.routing_replay = True
  recipe.config.train.packed_rows = 14
  return recipe


def _model(config: Config, vocab_size: int) -> ModelConfig:
  del config
  return dataclasses.replace(
    tiny(vocab_size), experts=Experts(count=4, per_token=2)
  )


def _task(config: Config) -> Task:
  return dataclasses.replace(toy.make_task(config), held_out=[])
