# SPDX-License-Identifier: Apache-2.0
"""The toy task with one part changed, which the variable TOY_CHANGED names, if it is set."""

import dataclasses
import functools
import os

from train import toy

import covrl
from covrl.config import Config
from covrl.rewards import Reward
from covrl.train import Loss, Task

_CHANGED = os.environ.get('TOY_CHANGED')


def changed():
  return toy.recipe(task=_task, loss=_loss)


def _task(config: Config) -> Task:
  task = toy.make_task(config)
  if _CHANGED == 'problems':
    return dataclasses.replace(task, held_out=[*reversed(task.held_out)])
  if _CHANGED == 'rewards':
    (reward,) = task.rewards
    assert isinstance(reward, Reward)
    rewards = [dataclasses.replace(reward, weight=0.5)]
    return dataclasses.replace(task, rewards=rewards)
  return task


def _loss(config: Config) -> Loss:
  if _CHANGED == 'loss':
    return functools.partial(covrl.clipped_surrogate, low=0.1, high=0.1)
  return toy.make_loss(config)
