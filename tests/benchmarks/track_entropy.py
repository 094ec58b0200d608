# SPDX-License-Identifier: Apache-2.0
"""Comparison of controllers: errors of following an entropy schedule.

  python tests/benchmarks/track_entropy.py [--seeds 0 1 2] [--arms ARM …]

Trains `countdown:grpo` with an entropy bonus that each controller sets, and
without one, from the same warm start of each seed, and prints a table: the root
mean squared difference between the policy's entropy and the schedule (a straight
line), relative to its range, and accuracy at the end. The policy's entropy is
measured every fifth iteration with two responses to each of 512 problems from
the training distribution. (The held-out problems are all distinct, so easy ones
are rarer, and entropy on them is higher.) The same error is printed for the
entropy of each iteration's rollouts, which also varies with the 16 prompts of the
iteration. A run takes at most two core minutes, its seed's first one four more
for the warm start; runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import covrl
from covrl import config
from covrl.config import Config, Recipe
from covrl.entropy.controller_base import (
  Controller,
  entropy_in,
  has_reading,
  is_initializing,
  prediction_in,
  scalar,
  setpoint,
)
from covrl.report.run_data import load_run
from covrl.train import Task, train
from covrl.types import Scalar

ITERATIONS, START, END = 40, 0.40, 0.28
PROBLEMS = 512
OVERRIDES = (
  f'--config.train.iterations={ITERATIONS}',
  f'--config.train.schedule_iterations={ITERATIONS}',
  # A fourth of the recipe's work, so that a run takes two core minutes.
  '--config.rollout.prompts_per_iteration=16',
  '--config.train.sequences_per_update=32',
  '--config.evaluate.samples=2',
  '--config.evaluate.every=5',
  '--config.logging.entropy_change_every=0',
  '--config.logging.tensorboard=false',
  '--config.logging.samples=0',
)


@dataclasses.dataclass(frozen=True)
class FirstOrderRule:
  """The first-order formula with a fixed step size, and nothing learnt.

    c = clip((((target − H) / horizon) / slope − D) / E, 0, 1)

  with D and E the predicted changes of the entropy by the signal and by a unit of
  the coefficient.

  Attributes:
    target: schedule of the entropy to reach, in nats.
    horizon: updates after which it is to be reached.
    slope: step size that stands for the optimiser's.
  """

  target: optax.Schedule
  horizon: float = 10.0
  slope: float = 1.0

  def init(self) -> tuple[()]:
    return ()

  def update(self, state: tuple[()], **context: Any) -> tuple[()]:
    del context
    return state

  def __call__(self, state: tuple[()], **context: Any) -> Scalar:
    del state
    if is_initializing(context):
      return scalar(0.0)
    prediction = prediction_in(context)
    ahead = setpoint(self.target, context, later=self.horizon)
    error = jnp.where(has_reading(context), ahead - entropy_in(context), 0)
    rise = error / self.horizon / self.slope - prediction.drift
    effect = jnp.asarray(prediction.effect)
    needed = rise / jnp.where(effect > 0, effect, 1)
    return jnp.clip(jnp.where(effect > 0, needed, 0), 0, 1)


ARMS: Mapping[str, Callable[[optax.Schedule], Controller] | None] = {
  'target_entropy': covrl.target_entropy,
  'first_order': FirstOrderRule,
  'proportional_integral': lambda target: (
    covrl.controllers.proportional_integral(target, minimum=0.0, maximum=1.0)
  ),
  'adaptive_bonus': lambda target: covrl.adaptive_bonus(
    target, increment=5e-3, maximum=1.0
  ),
  'grpo': None,
}
"""Controllers of the bonus, by name of the arm; `grpo` has no bonus."""


def main() -> None:
  """Trains the missing runs, and prints the table of all that are finished."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--runs', type=pathlib.Path, default='runs/track_entropy')
  parser.add_argument('--arms', nargs='+', choices=ARMS, default=[*ARMS])
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--only_print', action='store_true')
  options = parser.parse_args()
  runs: pathlib.Path = options.runs
  for seed in [] if options.only_print else options.seeds:
    for arm in options.arms:
      train_arm(runs, arm, seed)
  print(table(runs, options.arms, options.seeds))


def train_arm(runs: pathlib.Path, arm: str, seed: int) -> None:
  """Trains a run, from the warm start of the first run with its seed."""
  first = runs / f'warm_start_{seed}.txt'
  workdir = runs / f'{arm}_{seed}'
  runs.mkdir(parents=True, exist_ok=True)
  if not first.exists():
    first.write_text(str(workdir))
  warm = first.read_text()
  recipe = config.load(
    'countdown:grpo',
    [
      *OVERRIDES,
      f'--config.seed={seed}',
      f'--config.warm_start.from_run={"" if warm == str(workdir) else warm}',
    ],
  )
  controller = ARMS[arm]
  if controller is not None:
    target = optax.linear_schedule(START, END, recipe.config.schedule_updates)
    bonus = covrl.entropy_bonus(controller(target))
    recipe = dataclasses.replace(recipe, token_tx=lambda config: bonus)
  train(with_training_problems_held_out(recipe), str(workdir))


def with_training_problems_held_out(recipe: Recipe) -> Recipe:
  """The recipe with new problems of the training distribution held out."""

  def task(config: Config) -> Task:
    # Problems of the same distribution with another seed.
    fields = dataclasses.replace(config.task, seed=config.task.seed + 1)
    stream = recipe.task(dataclasses.replace(config, task=fields)).train
    fresh = tuple(stream[index] for index in range(PROBLEMS))
    return dataclasses.replace(recipe.task(config), held_out=fresh)

  changed = dataclasses.replace(recipe, task=task)
  changed.config.evaluate.problems = PROBLEMS
  return changed


def table(runs: pathlib.Path, arms: list[str], seeds: list[int]) -> str:
  """The table of the finished runs, in Markdown."""
  lines = [
    '| arm | seeds | policy, % | rollouts, % | mean difference | mean@2, % |',
    '|---|---:|---:|---:|---:|---:|',
  ]
  for arm in arms:
    rows = [
      row
      for seed in seeds
      if (row := errors(runs / f'{arm}_{seed}')) is not None
    ]
    if rows:
      cells = [
        _cell(list(column), digits)
        for column, digits in zip(
          zip(*rows, strict=True), (1, 1, 4, 1), strict=True
        )
      ]
      lines.append(f'| `{arm}` | {len(rows)} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def errors(workdir: pathlib.Path) -> tuple[float, float, float, float] | None:
  """Errors and accuracy of a run, `None` unless it is finished.

  Returns:
    RMS difference of the policy's entropy, and of the rollouts', in percent of
    the range; mean difference of the policy's, in nats; mean@2 in percent.
  """
  if not workdir.exists():
    return None
  run = load_run(workdir)
  policy = run.evals.curve('entropy')
  if not policy or policy.x[-1] < ITERATIONS:
    return None
  rms, differences = [], []
  for curve in (policy, run.train.curve('entropy')):
    wanted = START + (END - START) * np.minimum(curve.x / ITERATIONS, 1)
    differences.append(curve.y - wanted)
    rms.append(float(np.sqrt(np.mean(differences[-1] ** 2))) / (START - END))
  accuracy = run.evals.curve('mean@2').y[-1]
  return (
    100 * rms[0],
    100 * rms[1],
    float(differences[0].mean()),
    100 * float(accuracy),
  )


def _cell(values: list[float], digits: int) -> str:
  """Mean, and each seed's value in parentheses."""
  each = ', '.join(f'{value:.{digits}f}' for value in values)
  return f'{np.mean(values):.{digits}f} ({each})'


if __name__ == '__main__':
  main()
