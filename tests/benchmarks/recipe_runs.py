# SPDX-License-Identifier: Apache-2.0
"""Training runs of recipes for studies; finished runs are not repeated."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[2]


def study_parser(description: str | None, runs: str) -> argparse.ArgumentParser:
  """A parser with the options of all studies.

  Args:
    description: docstring of the study.
    runs: default directory of its runs.
  """
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--runs', type=pathlib.Path, default=pathlib.Path(runs))
  parser.add_argument(
    '--only_write',
    action='store_true',
    help='only write the results of finished runs',
  )
  return parser


def train(
  recipe: str,
  workdir: pathlib.Path,
  overrides: Sequence[str] = (),
  core: int | None = None,
) -> None:
  """Trains in a new process whose output goes to a log file beside the run.

  An unfinished run is resumed, and a finished one is not started.

  Args:
    recipe: file and function, `countdown:grpo`.
    workdir: the run directory.
    overrides: config fields, `train.iterations=8`.
    core: core to run on; `None` for all.
  """
  if evaluations(workdir):
    return
  print(workdir, flush=True)
  workdir.parent.mkdir(parents=True, exist_ok=True)
  command = [
    sys.executable,
    '-m',
    'covrl.cli',
    'train',
    f'--config={recipe}',
    f'--workdir={workdir}',
    *(f'--config.{override}' for override in overrides),
  ]

  def pin_to_core() -> None:
    if core is not None and hasattr(os, 'sched_setaffinity'):
      os.sched_setaffinity(0, {core})

  with workdir.with_suffix('.log').open('a') as log:
    subprocess.run(
      command, check=True, stdout=log, stderr=log, preexec_fn=pin_to_core
    )


def evaluations(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Evaluations of a finished run; empty if it is missing or unfinished."""
  file = workdir / 'metrics.jsonl'
  if not file.is_file():
    return []
  config = json.loads((workdir / 'config.json').read_text())['config']
  lines = map(json.loads, file.read_text().splitlines())
  evaluations = [line for line in lines if line['phase'] == 'eval']
  is_finished = (
    bool(evaluations)
    and evaluations[-1]['iteration'] == config['train']['iterations']
  )
  return evaluations if is_finished else []


def write_section(file: pathlib.Path, name: str, text: str) -> None:
  """Replaces the text between `<!-- NAME -->` and `<!-- end of NAME -->`.

  A file without these lines stays as it is.
  """
  begin, end = f'<!-- {name} -->\n', f'<!-- end of {name} -->\n'
  content = file.read_text()
  if begin in content and end in content:
    head, rest = content.split(begin)
    file.write_text(head + begin + text + end + rest.split(end)[1])
