# SPDX-License-Identifier: Apache-2.0
"""How closely a target-entropy run follows its schedule, and one without it.

  python tests/benchmarks/track_entropy.py [--from_run=runs/countdown_grpo]

Trains `countdown_target_entropy` and, as the rival, `countdown_grpo` from the
same warm start. Printed is the root of the mean squared difference between
each update's entropy and the schedule, over the run, as a share of the
schedule's range.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from covrl import config
from covrl.report.run import load_run
from covrl.train import train


def main() -> None:
  """Trains what is not trained yet and prints both errors."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', default='runs/track_entropy')
  parser.add_argument('--from_run', default='', help='whose warm start to take')
  options = parser.parse_args()
  controlled = config.load('configs/countdown_target_entropy.py')
  start = controlled.config.entropy.initial_target
  end = controlled.config.entropy.target
  for name in ('countdown_target_entropy', 'countdown_grpo'):
    workdir = pathlib.Path(options.workdir) / name
    overrides = [f'--config.warm_start.from_run={options.from_run}']
    train(config.load(f'configs/{name}.py', overrides), str(workdir))
    entropy = load_run(workdir).train.numbers('entropy')
    schedule = np.linspace(start, end, len(entropy))
    error = float(np.sqrt(np.mean((entropy - schedule) ** 2)))
    print(
      f'{name}: RMS error {error:.4f} nats, '
      f'{error / abs(end - start):.1%} of the range {start:g} → {end:g}'
    )


if __name__ == '__main__':
  main()
