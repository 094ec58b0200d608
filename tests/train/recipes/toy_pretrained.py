# SPDX-License-Identifier: Apache-2.0
"""The prompts of the toy task for a pretrained model, which shall say digits."""

import dataclasses

from train import scoring, toy

import covrl
from covrl.config import Config
from covrl.models import ModelConfig
from covrl.pretrained import load_policy, load_tokenizer
from covrl.rewards import Reward
from covrl.train import Task

make_advantages = toy.make_advantages
make_loss = toy.make_loss
make_tx = toy.make_tx
make_warm_start_tx = toy.make_warm_start_tx


def get_config() -> Config:
  """Two iterations of two updates, without a warm start."""
  config = toy.get_config()
  config.rollout.prompts_per_iteration = 4
  config.train.iterations = 2
  config.train.learning_rate = 1e-2
  config.train.keep_reference = True
  config.warm_start.steps = 0
  config.evaluate.problems = 4
  config.evaluate.samples = 2
  config.checkpoint.every_updates = 0
  config.logging.entropy_change_every = 1
  return config


def make_task(config: Config) -> Task:
  return dataclasses.replace(
    toy.make_task(config),
    tokenizer=load_tokenizer(config.pretrained),
    solved=None,
    rewards=[
      Reward(name='digits', score=scoring.share_of_digits, example=('1', None))
    ],
  )


def make_model(config: Config, vocab_size: int) -> ModelConfig:
  del vocab_size
  return load_policy(config.pretrained, dtype='float32').config


def make_token_tx(config: Config):
  return covrl.kl_cov(config.entropy.fraction, config.entropy.coefficient)
