# SPDX-License-Identifier: Apache-2.0
"""Correlation of predicted and measured entropy changes, by score.

  python tests/benchmarks/entropy_change.py [--from_run=runs/grpo]

Trains Countdown recipes with Adam, measures the entropy of every update's own
tokens before and after the update, and prints Pearson's r and the slope of the
measured change against each prediction. `jvp` is ⟨∇H̄, Δθ⟩, the first-order
effect of the optimiser's step; the others are means of token scores, as logged
in every run.
"""

from __future__ import annotations

import argparse
import pathlib

from covrl import config
from covrl.report.inputs.run_data import load_run
from covrl.report.predictors import predictors
from covrl.train import train

RECIPES = ('grpo', 'entropy_bonus', 'kl_cov')


def main() -> None:
  """Trains the missing runs and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--recipes', nargs='+', default=RECIPES)
  parser.add_argument('--workdir', default='runs/entropy_change')
  parser.add_argument('--from_run', default='', help='run with the warm start')
  options = parser.parse_args()
  for name in options.recipes:
    workdir = pathlib.Path(options.workdir) / name
    recipe = config.load(
      f'countdown:{name}',
      [
        '--config.logging.entropy_change_every=1',
        f'--config.warm_start.from_run={options.from_run}',
      ],
    )
    train(recipe, str(workdir))
    print(f'{name}\n{"predictor":10} {"r":>7} {"slope":>10} {"updates":>8}')
    for predictor in predictors(load_run(workdir)):
      print(
        f'{predictor.name:10} {predictor.correlation:7.3f} {predictor.slope:10.2e} '
        f'{predictor.count:8}'
      )


if __name__ == '__main__':
  main()
