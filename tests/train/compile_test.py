# SPDX-License-Identifier: Apache-2.0
"""Nothing is compiled after the first step, evaluation included.

The run is a separate process, which executes this file and counts compilations.
"""

import subprocess
import sys

import jax
import pytest
from train.process import ENVIRONMENT, RECIPES

from covrl import config
from covrl.run.metrics_writer import MetricsWriter
from covrl.train import train


def main(workdir, recipe_file):
  """Trains; prints the phase of each metric line and the compilations so far."""
  compiled = []

  def listen(event, duration_secs, **_):
    del duration_secs
    if 'backend_compile' in event:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  original_write = MetricsWriter.write

  def record(self, *, phase, **values):
    print('line', phase, len(compiled))
    original_write(self, phase=phase, **values)

  MetricsWriter.write = record
  recipe = config.load(
    str(RECIPES / recipe_file),
    ['--config.warm_start.steps=4', '--config.train.packed_rows=6'],
  )
  train(recipe, workdir)
  print('line end', len(compiled))


@pytest.mark.parametrize(
  'recipe',
  [
    'toy_kl_cov.py',
    pytest.param('toy_ppo.py:ppo', marks=pytest.mark.slow),
    pytest.param('toy_off_policy.py:partial', marks=pytest.mark.slow),
  ],
)
def test_no_compilation_after_the_first_step(recipe, tmp_path):
  stdout = subprocess.run(
    [sys.executable, __file__, str(tmp_path / 'run'), recipe],
    env=ENVIRONMENT,
    check=True,
    capture_output=True,
    text=True,
    timeout=600,
  ).stdout
  counts = [
    (line.split()[1], int(line.split()[2]))
    for line in stdout.splitlines()
    if line.startswith('line ')
  ]
  first_count = next(count for phase, count in counts if phase == 'train')
  assert first_count > 0
  counts_after = counts[[phase for phase, _ in counts].index('train') :]
  assert {'train', 'end'} <= {phase for phase, _ in counts_after}
  assert {count for _, count in counts_after} == {first_count}


if __name__ == '__main__':
  main(*sys.argv[1:])
