# SPDX-License-Identifier: Apache-2.0
"""How closely a target-entropy run follows its schedule, and one without it.

  python tests/benchmarks/track_entropy.py [--seed=1] [--from_run=RUN]

Trains `countdown_target_entropy` and, as the rival, `countdown_grpo` from the
same warm start, 60 iterations each. Printed is the root of the mean squared
difference between the held-out entropy, measured every other iteration, and the
schedule, as a share of the schedule's range; and the same of the entropy of each
iteration's own rollouts, which also varies with the prompts that it drew.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from covrl import config
from covrl.report.run import load_run
from covrl.train import train

RECIPES = ('countdown_target_entropy', 'countdown_grpo')
ITERATIONS, START, END = 60, 0.40, 0.28
OVERRIDES = (
  f'--config.train.iterations={ITERATIONS}',
  f'--config.entropy.initial_target={START}',
  f'--config.entropy.target={END}',
  '--config.evaluate.every=2',
  '--config.evaluate.problems=1024',
  '--config.evaluate.samples=2',
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
  for name in [options.only] if options.only else RECIPES:
    workdir = pathlib.Path(options.workdir) / name
    overrides = [
      *OVERRIDES,
      f'--config.seed={options.seed}',
      f'--config.warm_start.from_run={options.from_run}',
    ]
    train(config.load(f'configs/{name}.py', overrides), str(workdir))
    run = load_run(workdir)
    print(
      f'{name}: RMS error of the schedule’s range of {START - END:.2f} nats'
    )
    for what, curve in (
      ('held out', run.evals.curve('entropy')),
      ('rollouts', run.train.curve('entropy')),
    ):
      schedule = START + (END - START) * curve.x / ITERATIONS
      error = float(np.sqrt(np.mean((curve.y - schedule) ** 2)))
      print(f'  {what}: {error:.4f} nats, {error / (START - END):.1%}')


if __name__ == '__main__':
  main()
