# SPDX-License-Identifier: Apache-2.0
"""Warnings about the parts of a recipe, which `covrl train` and `covrl plan` print."""

from __future__ import annotations

from collections.abc import Iterator

import optax

from covrl.config import Config
from covrl.models import Policy
from covrl.tasks.task import Task
from covrl.train.algorithm import Algorithm
from covrl.train.warnings.directions import (
  direction_warnings,
  gradient_warnings,
)
from covrl.train.warnings.micro_batches import micro_batch_warnings
from covrl.train.warnings.precision import precision_warnings
from covrl.train.warnings.pretrained import pretrained_warnings
from covrl.train.warnings.schedules import schedule_warnings
from covrl.train.warnings.settings import config_warnings


def recipe_warnings(
  config: Config,
  policy: Policy,
  algorithm: Algorithm,
  warm_start_tx: optax.GradientTransformation,
  task: Task,
) -> Iterator[str]:
  """Yields a sentence for each part of a recipe that has another effect than it seems.

  Args:
    config: the configuration.
    policy: the policy.
    algorithm: the functions and transformations of the run.
    warm_start_tx: the parameter chain of the warm start.
    task: the task.
  """
  chains = {'tx': (algorithm.tx, config.total_updates)}
  if steps := config.warm_start.steps:
    chains['warm_start_tx'] = warm_start_tx, steps
  yield from config_warnings(config, algorithm, task.rewards)
  yield from pretrained_warnings(config.pretrained, policy, task.tokenizer)
  yield from precision_warnings(config, policy)
  yield from direction_warnings(policy, **chains)
  yield from gradient_warnings(algorithm)
  yield from schedule_warnings(algorithm.token_tx, config.total_updates)
  yield from micro_batch_warnings(algorithm, config.train.micro_batches)
