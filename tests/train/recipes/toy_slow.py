# SPDX-License-Identifier: Apache-2.0
"""The toy task with a scorer that takes its time."""

import dataclasses

from train import scoring, toy

from covrl.config import Config
from covrl.rewards import Reward
from covrl.train import Task

get_config = toy.get_config
make_advantages = toy.make_advantages
make_loss = toy.make_loss
make_model = toy.make_model
make_token_tx = toy.make_token_tx
make_tx = toy.make_tx
make_warm_start_tx = toy.make_warm_start_tx


def make_task(config: Config) -> Task:
  slow = Reward(name='largest', score=scoring.slowly, example=('1', [1]))
  return dataclasses.replace(toy.make_task(config), rewards=[slow])
