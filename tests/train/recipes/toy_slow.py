# SPDX-License-Identifier: Apache-2.0
"""The toy task with a slow reward function."""

import dataclasses

from train import scoring, toy

from covrl.config import Config, Recipe
from covrl.rewards import Reward
from covrl.train import Task


def slow() -> Recipe:
  """Toy task whose reward takes 50 ms per response."""
  return toy.recipe(task=_task)


def _task(config: Config) -> Task:
  reward = Reward(
    name='largest', score=scoring.begins_with_largest_slowly, example=('1', [1])
  )
  return dataclasses.replace(toy.make_task(config), rewards=[reward])
