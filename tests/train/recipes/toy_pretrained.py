# SPDX-License-Identifier: Apache-2.0
"""The toy prompts for a pretrained model, rewarded for responding in digits."""

import dataclasses

from train import scoring, toy

import covrl
from covrl.config import Config
from covrl.pretrained import load_policy, load_tokenizer
from covrl.rewards import Reward
from covrl.train import Task


def pretrained():
  """Two iterations of two updates, without a warm start."""
  recipe = toy.recipe(
    task=_task,
    model=lambda config, vocab_size: (
      load_policy(config.pretrained, dtype='float32').config
    ),
    token_tx=lambda config: covrl.kl_cov(
      config.entropy.fraction, config.entropy.coefficient
    ),
  )
  config = recipe.config
  config.rollout.prompts_per_iteration = 4
  config.train.iterations = 2
  config.train.learning_rate = 1e-2
  config.train.keep_reference = True
  config.warm_start.steps = 0
  config.evaluate.problems = 4
  config.evaluate.samples = 2
  config.checkpoint.every_updates = 0
  config.logging.entropy_change_every = 1
  return recipe


def _task(config: Config) -> Task:
  return dataclasses.replace(
    toy.make_task(config),
    tokenizer=load_tokenizer(config.pretrained),
    solved=None,  # no responses to imitate: there is no warm start
    rewards=[
      Reward(name='digits', score=scoring.share_of_digits, example=('1', None))
    ],
  )
