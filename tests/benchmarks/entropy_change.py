# SPDX-License-Identifier: Apache-2.0
"""Which score foretells what an update does to the entropy.

  python tests/benchmarks/entropy_change.py [--from_run=runs/grpo]

Trains Countdown recipes (Adam), measures the entropy of every update's own
tokens before and after it, and prints Pearson's r and the slope of the realised
change against each prediction. `jvp` is ⟨∇H̄, Δθ⟩, the first-order effect of
the step that the optimiser made; the others are means of scores over the
tokens, as logged in every run.
"""

from __future__ import annotations

import argparse
import pathlib

from covrl import config
from covrl.report.predictors import predictors
from covrl.report.run_data import load_run
from covrl.train import train

RECIPES = ('grpo', 'entropy_bonus', 'kl_cov')


def main() -> None:
  """Trains what is not trained yet and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--recipes', nargs='+', default=RECIPES)
  parser.add_argument('--workdir', default='runs/entropy_change')
  parser.add_argument('--from_run', default='', help='whose warm start to take')
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
    for each in predictors(load_run(workdir)):
      print(
        f'{each.name:10} {each.correlation:7.3f} {each.slope:10.2e} '
        f'{each.count:8}'
      )


if __name__ == '__main__':
  main()
