# SPDX-License-Identifier: Apache-2.0
"""A task that a tiny policy learns within seconds, as factories of recipes.

A prompt is three different digits, `4 7 2 :`. The solved examples answer with
the same digits in any order, so a warm-started policy begins with the largest
one about every third time; the reward is 1 if it does. The held-out
prompts are of sets of digits that training never sees.
"""

import dataclasses
import functools
import itertools
import random
from typing import Any

import optax
from train import compilation_cache, scoring

import covrl
from covrl.config import Config, Recipe
from covrl.data import ListSource, Problem, train_sentencepiece
from covrl.models import ModelConfig, tiny
from covrl.rewards import Reward
from covrl.train import Loss, Task
from covrl.train.rollout_batch import Advantages

compilation_cache.every_process_writes()

DIGITS = range(10)
# Sets of three digits in a random order.
DIGIT_SETS = sorted(
  itertools.combinations(DIGITS, 3),
  key=lambda digits: random.Random(str(digits)).random(),
)
# The first sets, whose prompts are held out.
HELD_OUT = 40


def get_config() -> Config:
  """Four iterations of four updates; every file that a run can write."""
  config = Config()
  config.rollout.prompts_per_iteration = 8
  config.rollout.responses_per_prompt = 4
  config.rollout.max_prompt_length = 6
  config.rollout.max_response_length = 4
  config.train.schedule_iterations = config.train.iterations = 4
  config.train.sequences_per_update = 8
  config.entropy.fraction = 0.05
  config.warm_start.steps = 30
  config.warm_start.batch_size = 32
  config.evaluate.every = 2
  config.evaluate.problems = 32
  config.evaluate.samples = 4
  config.countdown.held_out = HELD_OUT
  config.checkpoint.every = 1
  config.checkpoint.every_updates = 1
  config.rewards.workers = 1
  # Long, so that no score is missing on a slow machine.
  config.rewards.timeout = 60.0
  config.logging.samples_every = 1
  config.logging.samples = 4
  config.logging.warm_start_every = 10
  config.logging.tensorboard = False
  return config


def recipe(**changes: Any) -> Recipe:
  """Returns the recipe of the toy task, with some of its functions replaced."""
  return dataclasses.replace(
    Recipe(
      config=get_config(),
      task=make_task,
      model=make_model,
      advantages=make_advantages,
      loss=make_loss,
      token_tx=make_token_tx,
      tx=make_tx,
      warm_start_tx=make_warm_start_tx,
    ),
    **changes,
  )


def problems(sets: list[tuple[int, ...]], name: str = 'toy') -> list[Problem]:
  """Every order of every set, each solved by one of the orders."""
  orders = [
    order for digits in sets for order in itertools.permutations(digits)
  ]
  return [
    Problem(
      prompt=f'{_words(order)} :',
      reference=list(order),
      source=name,
      solution=_words(random.Random(index).sample(order, k=3)),
    )
    for index, order in enumerate(orders)
  ]


def make_task(config: Config) -> Task:
  solved = ListSource(problems(DIGIT_SETS[HELD_OUT:]))
  return Task(
    tokenizer=train_sentencepiece([*map(str, DIGITS), ':']),
    train=solved,
    solved=solved,
    held_out=problems(DIGIT_SETS[:HELD_OUT])[::6][: config.countdown.held_out],
    rewards=[
      Reward(
        name='largest', score=scoring.begins_with_largest, example=('1', [1])
      )
    ],
  )


def make_model(config: Config, vocab_size: int) -> ModelConfig:
  del config
  return tiny(vocab_size)


def make_advantages(config: Config) -> Advantages:
  del config
  return covrl.group_relative


def make_loss(config: Config) -> Loss:
  return functools.partial(
    covrl.clipped_surrogate,
    low=config.train.clip_low,
    high=config.train.clip_high,
  )


def make_token_tx(config: Config) -> optax.GradientTransformation:
  """A chain with every kind of state: selection, schedule and bonus."""
  beta = optax.linear_schedule(
    config.entropy.coefficient, 0.0, config.schedule_updates
  )
  return optax.chain(
    covrl.kl_cov(
      config.entropy.fraction,
      beta,
      selection_source=config.entropy.selection_source,
    ),
    covrl.entropy_bonus(1e-3),
  )


def make_tx(config: Config) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(config.train.max_gradient_norm),
    optax.adam(config.train.learning_rate),
  )


def make_warm_start_tx(config: Config) -> optax.GradientTransformation:
  return optax.adam(config.warm_start.learning_rate)


def _words(digits: tuple[int, ...] | list[int]) -> str:
  return ' '.join(map(str, digits))
