# SPDX-License-Identifier: Apache-2.0
"""Tracking error of a target-entropy run, and of one without a controller.

  python tests/benchmarks/track_entropy.py [--seed=1] [--from_run=RUN]

Trains `countdown:target_entropy` and, as the rival, `countdown:grpo` from the
same warm start, 60 iterations each. Printed is the root of the mean squared
difference between the policy's entropy and the schedule, as a share of the
schedule's range. The policy's entropy is measured every third iteration, on 4,096
problems drawn as those that it is trained on, two responses to each. (Held-out
problems are all distinct, easy ones therefore rarer: there the same policy's
entropy is higher.) Printed too is the error of the entropy of
each iteration's own rollouts, which varies with the 64 prompts that it drew.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import numpy as np

from covrl import config
from covrl.config import Config, Recipe
from covrl.report.run_data import load_run
from covrl.train import Task, train

RECIPES = ('target_entropy', 'grpo')
ITERATIONS, START, END = 60, 0.40, 0.28
PROBLEMS = 4096
OVERRIDES = (
  f'--config.train.iterations={ITERATIONS}',
  f'--config.entropy.initial_target={START}',
  f'--config.entropy.target={END}',
  '--config.evaluate.samples=2',
  '--config.evaluate.every=3',
  '--config.logging.entropy_change_every=0',
)


def main() -> None:
  """Trains what is not trained yet and prints both errors."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', default='runs/track_entropy')
  parser.add_argument('--from_run', default='', help='whose warm start to take')
  parser.add_argument('--only', choices=RECIPES)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  warm = options.from_run
  for name in [options.only] if options.only else RECIPES:
    workdir = pathlib.Path(options.workdir) / name
    overrides = [
      *OVERRIDES,
      f'--config.seed={options.seed}',
      f'--config.warm_start.from_run={warm}',
    ]
    recipe = config.load(f'countdown:{name}', overrides)
    train(evaluated_on_its_kind(recipe), str(workdir))
    warm = warm or str(workdir)
    run = load_run(workdir)
    print(
      f'{name}: RMS error of the schedule’s range of {START - END:.2f} nats'
    )
    for what, curve in (
      ('policy', run.evals.curve('entropy')),
      ('rollouts', run.train.curve('entropy')),
    ):
      errors = curve.y - START - (END - START) * curve.x / ITERATIONS
      error = float(np.sqrt(np.mean(errors**2)))
      print(
        f'  {what}: {error:.4f} nats, {error / (START - END):.1%}; '
        f'in the mean {errors.mean():+.4f}'
      )


def evaluated_on_its_kind(recipe: Recipe) -> Recipe:
  """The recipe, evaluated on fresh problems of those that it trains on."""

  def task(config: Config) -> Task:
    # Another seed's stream of the same problems.
    fields = dataclasses.replace(config.task, seed=config.task.seed + 1)
    stream = recipe.task(dataclasses.replace(config, task=fields)).train
    fresh = tuple(stream[index] for index in range(PROBLEMS))
    return dataclasses.replace(recipe.task(config), held_out=fresh)

  changed = dataclasses.replace(recipe, task=task)
  changed.config.evaluate.problems = PROBLEMS
  return changed


if __name__ == '__main__':
  main()
