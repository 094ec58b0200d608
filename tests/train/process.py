# SPDX-License-Identifier: Apache-2.0
"""Runs of the command line as processes of their own, with one device.

Eight fake devices on few cores may wait for one another for ever.
"""

import json
import os
import pathlib
import subprocess
import sys

from compiling import FLAGS

TESTS = pathlib.Path(__file__).parents[1]
RECIPES = TESTS / 'train' / 'recipes'
ENVIRONMENT = {
  **os.environ,
  # This tree's covrl, whichever is installed.
  'PYTHONPATH': f'{TESTS.parent}{os.pathsep}{TESTS}',
  'XLA_FLAGS': FLAGS,
  'JAX_COMPILATION_CACHE_DIR': str(TESTS.parent / '.jax_cache'),
}


def arguments(recipe, workdir, **settings):
  """A command that trains; double underscores in names stand for dots."""
  return [
    sys.executable,
    *('-m', 'covrl.cli', 'train'),
    f'--config={RECIPES / recipe}.py',
    f'--workdir={workdir}',
    *(
      f'--config.{name.replace("__", ".")}={value}'
      for name, value in settings.items()
    ),
  ]


def train(recipe, workdir, **settings):
  """Trains to the end; the metric lines."""
  subprocess.run(
    arguments(recipe, workdir, **settings),
    env=ENVIRONMENT,
    check=True,
    capture_output=True,
    timeout=600,
  )
  return lines(workdir)


def lines(workdir, phase=None):
  """The metric lines that a run has finished so far."""
  file = workdir / 'metrics.jsonl'
  if not file.exists():
    return []
  whole = file.read_text().rpartition('\n')[0]
  parsed = [json.loads(line) for line in whole.splitlines()]
  return [line for line in parsed if phase in (None, line['phase'])]
