# SPDX-License-Identifier: Apache-2.0
"""The model of `small.py` with a critic beside it."""

import dataclasses

import small

from covrl.train.networks import critic, critic_advantages


def ppo():
  return dataclasses.replace(
    small.small(),
    networks=lambda config: {'critic': critic(config)},
    estimator=critic_advantages,
  )
