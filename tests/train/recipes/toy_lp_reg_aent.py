# SPDX-License-Identifier: Apache-2.0
"""The toy task with Lp-Reg and AEnt, which read the policy without rare tokens."""

import dataclasses

import optax
from train import toy

import covrl
from covrl.config import Config, Recipe
from covrl.train import Task


def lp_reg_and_aent() -> Recipe:
  """Lp-Reg, and AEnt with a coefficient that follows its band."""
  return toy.recipe(
    task=_task,
    token_tx=lambda config: optax.chain(
      covrl.lp_reg(0.5, allow_large=True),
      covrl.aent(covrl.controllers.adaptive_band(maximum=0.1)),
    ),
    tx=lambda config: optax.sgd(config.train.learning_rate),
  )


def _task(config: Config) -> Task:
  return dataclasses.replace(toy.make_task(config), held_out=[])
