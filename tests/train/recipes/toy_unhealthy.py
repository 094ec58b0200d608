# SPDX-License-Identifier: Apache-2.0
"""The toy task with numbers that are not finite."""

import dataclasses
import math

import optax
from train import scoring, toy

from covrl.config import Config
from covrl.rewards import Reward
from covrl.train import Task


def nan_learning_rate():
  return toy.recipe(tx=lambda config: optax.adam(math.nan))


def nan_warm_start():
  return toy.recipe(warm_start_tx=lambda config: optax.adam(math.nan))


def infinite_rewards():
  return toy.recipe(task=_task)


def _task(config: Config) -> Task:
  reward = Reward(
    name='largest', score=scoring.overflows_float32, example=('1', [1])
  )
  return dataclasses.replace(toy.make_task(config), rewards=[reward])
