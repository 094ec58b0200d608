# SPDX-License-Identifier: Apache-2.0
"""The toy task with programs that are quickly compiled, and no evaluation."""

import dataclasses

import optax
from train import toy

from covrl.config import Config
from covrl.train import Task


def plain():
  return toy.recipe(
    task=_task,
    token_tx=lambda config: optax.identity(),
    tx=lambda config: optax.sgd(config.train.learning_rate),
  )


def _task(config: Config) -> Task:
  return dataclasses.replace(toy.make_task(config), held_out=[])
