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
  write = MetricsWriter.write

  def record(self, *, phase, **values):
    print('line', phase, len(compiled))
    write(self, phase=phase, **values)

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
  printed = subprocess.run(
    [sys.executable, __file__, str(tmp_path / 'run'), recipe],
    env=ENVIRONMENT,
    check=True,
    capture_output=True,
    text=True,
    timeout=600,
  ).stdout
  seen = [
    (line.split()[1], int(line.split()[2]))
    for line in printed.splitlines()
    if line.startswith('line ')
  ]
  first = next(count for phase, count in seen if phase == 'train')
  assert first > 0
  after = seen[[phase for phase, _ in seen].index('train') :]
  assert {'train', 'end'} <= {phase for phase, _ in after}
  assert {count for _, count in after} == {first}


if __name__ == '__main__':
  main(*sys.argv[1:])
