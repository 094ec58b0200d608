# SPDX-License-Identifier: Apache-2.0
"""The toy task with a slow reward function."""

import dataclasses

from train import scoring, toy

from covrl.config import Config
from covrl.rewards import Reward
from covrl.train import Task


def slow():
  return toy.recipe(task=_task)


def _task(config: Config) -> Task:
  reward = Reward(name='largest', score=scoring.slowly, example=('1', [1]))
  return dataclasses.replace(toy.make_task(config), rewards=[reward])
