# SPDX-License-Identifier: Apache-2.0
"""Runs the command line in separate processes with one device each.

Eight fake devices on few cores can deadlock.
"""

import json
import os
import pathlib
import subprocess
import sys

from fast_compilation import FLAGS

TESTS = pathlib.Path(__file__).parents[1]
RECIPES = TESTS / 'train' / 'recipes'
ENVIRONMENT = {
  **os.environ,
  # The package of this checkout, even if another one is installed.
  'PYTHONPATH': f'{TESTS.parent}{os.pathsep}{TESTS}',
  'XLA_FLAGS': FLAGS,
  'JAX_COMPILATION_CACHE_DIR': str(TESTS.parent / '.jax_cache'),
  # Several processes run the same programs, most of which compile in less than
  # the default of a second.
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
}


def arguments(recipe, workdir, **settings):
  """Returns a training command; double underscores in names stand for dots.

  The recipe is a file of tests/train/recipes, with `:FUNCTION` if it has several.
  """
  file, colon, function = recipe.partition(':')
  return [
    sys.executable,
    *('-m', 'covrl.cli', 'train'),
    f'--config={RECIPES / file}.py{colon}{function}',
    f'--workdir={workdir}',
    *(
      f'--config.{name.replace("__", ".")}={value}'
      for name, value in settings.items()
    ),
  ]


def train(recipe, workdir, **settings):
  """Trains to the end; returns the metric lines."""
  subprocess.run(
    arguments(recipe, workdir, **settings),
    env=ENVIRONMENT,
    check=True,
    capture_output=True,
    timeout=600,
  )
  return metric_lines(workdir)


def start(recipe, workdir, **settings):
  """Starts training; returns the process, its standard error a pipe of text."""
  return subprocess.Popen(
    arguments(recipe, workdir, **settings),
    env=ENVIRONMENT,
    stderr=subprocess.PIPE,
    text=True,
  )


def metric_lines(workdir, phase=None):
  """Returns the complete metric lines written so far, of one phase or all."""
  file = workdir / 'metrics.jsonl'
  if not file.exists():
    return []
  complete = file.read_text().rpartition('\n')[0]
  parsed = [json.loads(line) for line in complete.splitlines()]
  return [line for line in parsed if phase in (None, line['phase'])]
