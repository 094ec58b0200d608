# SPDX-License-Identifier: Apache-2.0
"""Finished toy runs on disk, each trained once per test session."""

import fcntl
import hashlib
import json
import os

from train import process

# Settings of a small run; every program that a run compiles costs each of its
# processes time.
SMALL = {
  'warm_start__steps': 8,
  'train__iterations': 2,
  'train__sequences_per_update': 16,
  'evaluate__problems': 8,
  'evaluate__every': 100,
  'logging__samples_every': 100,
  'logging__entropy_change_every': 0,
  'logging__warm_start_every': 4,
}
# Metrics that depend on the clock.
CLOCK = ('seconds', 'tokens_per_second', 'time/')


def finished_run(tmp_path_factory, recipe, **settings):
  """Returns the directory of a finished run, which tests must not change.

  All workers of a session share the directory.

  Args:
    tmp_path_factory: the fixture of the session.
    recipe: name of a recipe in tests/train/recipes.
    **settings: see `process.arguments`.
  """
  base = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    base = base.parent
  text = json.dumps([recipe, settings], sort_keys=True, default=str)
  name = hashlib.sha256(text.encode()).hexdigest()[:12]
  runs = base / 'finished_runs'
  runs.mkdir(exist_ok=True)
  with (runs / f'{name}.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (runs / f'{name}.done').exists():
      process.train(recipe, runs / name, **settings)
      (runs / f'{name}.done').touch()
  return runs / name


def assert_same_metrics(workdir, expected):
  """Asserts that two runs have logged the same values, clocks aside."""
  actual_lines, expected_lines = (
    process.metric_lines(workdir),
    process.metric_lines(expected),
  )
  assert [without_clock(x) for x in actual_lines] == [
    without_clock(x) for x in expected_lines
  ]


def without_clock(line):
  """Returns a metric line without values that depend on the clock."""
  return {
    name: value for name, value in line.items() if not name.startswith(CLOCK)
  }
