# SPDX-License-Identifier: Apache-2.0
"""Tracking error of a target-entropy run, and of one without a controller.

  python tests/benchmarks/track_entropy.py [--seed=1] [--from_run=RUN]

Trains `countdown:target_entropy` and `countdown:grpo` from the same warm start,
60 iterations each, and prints the root mean squared difference between the
policy's entropy and the schedule, in nats and relative to the schedule's range.
The entropy is measured every third iteration with two responses to each of
4,096 problems from the training distribution. (The held-out problems are all
distinct, so easy ones are rarer, and entropy on them is higher.) The same error
is printed for the entropy of each iteration's rollouts, which also varies with
the 64 prompts of the iteration.
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
  f'--config.train.schedule_iterations={ITERATIONS}',
  f'--config.entropy.initial_target={START}',
  f'--config.entropy.target={END}',
  '--config.evaluate.samples=2',
  '--config.evaluate.every=3',
  '--config.logging.entropy_change_every=0',
)


def main() -> None:
  """Trains the missing runs and prints both errors."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', default='runs/track_entropy')
  parser.add_argument('--from_run', default='', help='run with the warm start')
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
    train(with_training_problems_held_out(recipe), str(workdir))
    warm = warm or str(workdir)
    run = load_run(workdir)
    print(
      f'{name}: RMS error, and relative to the range {START - END:.2f} nats'
    )
    for source, curve in (
      ('policy', run.evals.curve('entropy')),
      ('rollouts', run.train.curve('entropy')),
    ):
      errors = curve.y - START - (END - START) * curve.x / ITERATIONS
      error = float(np.sqrt(np.mean(errors**2)))
      print(
        f'  {source}: {error:.4f} nats, {error / (START - END):.1%}; '
        f'mean {errors.mean():+.4f}'
      )


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


if __name__ == '__main__':
  main()
