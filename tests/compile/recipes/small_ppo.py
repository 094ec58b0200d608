# SPDX-License-Identifier: Apache-2.0
"""The model of `small.py` with a critic beside it."""

import dataclasses
import pathlib

from covrl import config
from covrl.train.networks import critic, critic_advantages

SMALL = str(pathlib.Path(__file__).with_name('small.py'))


def ppo():
  """Returns the recipe."""
  return dataclasses.replace(
    config.load(SMALL),
    networks=lambda config: {'critic': critic(config)},
    estimator=critic_advantages,
  )
