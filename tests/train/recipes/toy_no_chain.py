# SPDX-License-Identifier: Apache-2.0
"""The toy task without a token chain and held-out problems: few programs to compile."""

import dataclasses

import optax
from train import toy

from covrl.config import Config
from covrl.train import Task


def no_chain():
  return toy.recipe(task=_task, token_tx=lambda config: optax.identity())


def _task(config: Config) -> Task:
  return dataclasses.replace(toy.make_task(config), held_out=[])
