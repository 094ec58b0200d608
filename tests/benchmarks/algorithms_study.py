# SPDX-License-Identifier: Apache-2.0
"""Compares PPO, PRIME and GRPO on Countdown, and other published algorithms.

`countdown:grpo`, `ppo` and `prime` are trained with three seeds, the recipes of
`configs/algorithms.py` with the first of them (`make study-algorithms`). Runs
with the same seed share a warm start. Runs are short so that one takes a few
minutes of a core: see `SHORT_SETTINGS`. Finished runs are not repeated.

Writes the table to `configs/README.md`, the curves to
`configs/results/algorithms.svg`, and all curves to
`configs/results/algorithms.html`.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from recipe_runs import ROOT, evaluations, study_parser, train, write_section

from covrl.config import recipes
from covrl.report import comparison_svg, comparison_table, write_comparison

# Recipes that are trained with every seed; the others only with the first.
COMPARED = ('countdown:grpo', 'countdown:ppo', 'countdown:prime')
ALGORITHMS = tuple(
  spec for spec, _ in recipes() if spec.startswith('algorithms:')
)
# Two thirds of the iterations of the recipes, with half of their prompts.
SHORT_SETTINGS = {
  'train.iterations': 20,
  'train.schedule_iterations': 20,
  'rollout.prompts_per_iteration': 32,
  'train.sequences_per_update': 64,
  'warm_start.steps': 400,
  'evaluate.problems': 128,
  'evaluate.every': 10,
  'logging.samples': 0,
  'logging.entropy_change_every': 0,
  'logging.tensorboard': 'false',
}


def main() -> None:
  """Runs the missing runs, then writes the results."""
  parser = study_parser(__doc__, 'runs/algorithms')
  parser.add_argument(
    '--set',
    nargs='*',
    default=[],
    metavar='FIELD=VALUE',
    help='config fields of every run, in addition to or instead of SHORT_SETTINGS',
  )
  parser.add_argument('--core', type=int, help='core to run on; all by default')
  arguments = parser.parse_args()
  os.chdir(ROOT)
  runs: pathlib.Path = arguments.runs
  fields = SHORT_SETTINGS | dict(
    override.split('=', 1) for override in arguments.set
  )
  if not arguments.only_write:
    run_all(runs, arguments.seeds, fields, arguments.core)
  write_results(runs, arguments.seeds)


def run_all(
  runs: pathlib.Path,
  seeds: list[int],
  fields: dict[str, object],
  core: int | None,
) -> None:
  """Runs all recipes, seed by seed; the first seed's other algorithms last."""
  os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(runs.absolute() / 'compilation_cache')
  )
  jobs = [(spec, seed) for seed in seeds for spec in COMPARED]
  jobs += [(spec, seeds[0]) for spec in ALGORITHMS]
  for spec, seed in jobs:
    overrides = [f'{name}={value}' for name, value in fields.items()]
    overrides.append(f'seed={seed}')
    warm_start_run = run_directory(runs, COMPARED[0], seed)
    if spec != COMPARED[0]:
      overrides.append(f'warm_start.from_run={warm_start_run}')
    train(spec, run_directory(runs, spec, seed), overrides, core)


def run_directory(runs: pathlib.Path, spec: str, seed: int) -> pathlib.Path:
  """Run directory of a recipe and a seed."""
  return runs / f'{spec.partition(":")[2]}_{seed}'


def write_results(runs: pathlib.Path, seeds: list[int]) -> None:
  """Writes table and figure of the finished runs, and names the missing ones."""
  finished: dict[str, list[str]] = {}
  missing: list[str] = []
  for spec in (*COMPARED, *ALGORITHMS):
    for seed in seeds if spec in COMPARED else seeds[:1]:
      workdir = run_directory(runs, spec, seed)
      if evaluations(workdir):
        finished.setdefault(spec, []).append(str(workdir))
      else:
        missing.append(f'`{spec}` with seed {seed}')
  if not finished:
    raise SystemExit(f'{runs} must contain a finished run, got none')
  workdirs = [
    workdir for seed_workdirs in finished.values() for workdir in seed_workdirs
  ]
  text = f'{comparison_table(workdirs)}\n{settings(workdirs[0])}\n'
  text += prime_table(finished.get('countdown:prime', []))
  if missing:
    text += f'\nMissing: {", ".join(missing)}.\n'
  write_section(ROOT / 'configs' / 'README.md', 'algorithms', text)
  compared = [w for spec in COMPARED for w in finished.get(spec, [])]
  results = ROOT / 'configs' / 'results'
  figure = comparison_svg(compared or workdirs)
  (results / 'algorithms.svg').write_text(figure)
  write_comparison(workdirs, results / 'algorithms.html')
  print(text)


def prime_table(workdirs: Sequence[str]) -> str:
  """Table of the accuracy of PRIME's process reward model, a row per seed.

  The base rate is the accuracy of always predicting the more frequent outcome.
  """
  if not workdirs:
    return ''
  lines = [
    '| PRIME, seed | pairs ordered rightly, % (least to most) | right on unseen'
    ' responses, % | base rate, % |',
    '|---|---:|---:|---:|',
  ]
  for workdir in workdirs:
    directory = pathlib.Path(workdir)
    pair_accuracies = metric(directory, 'prm/scoring/pair_accuracy')
    accuracy = np.mean(metric(directory, 'prm/before_update/accuracy'))
    success_rate = np.mean(metric(directory, 'prm/before_update/label'))
    lines.append(
      f'| {directory.name.rpartition("_")[2]} | {100 * np.mean(pair_accuracies):.0f}'
      f' ({100 * min(pair_accuracies):.0f} to {100 * max(pair_accuracies):.0f}) |'
      f' {100 * accuracy:.0f} | {100 * max(success_rate, 1 - success_rate):.0f} |'
    )
  return '\n' + '\n'.join(lines) + '\n'


def metric(workdir: pathlib.Path, name: str) -> list[float]:
  """All values of a metric in the log of a run."""
  text = (workdir / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  return [line[name] for line in lines if name in line]


def settings(workdir: str) -> str:
  """The settings of a run in one sentence."""
  file = pathlib.Path(workdir, 'config.json')
  config = json.loads(file.read_text())['config']
  rollout, train_fields = config['rollout'], config['train']
  return (
    f'{train_fields["iterations"]} iterations of'
    f' {rollout["prompts_per_iteration"]} prompts ×'
    f' {rollout["responses_per_prompt"]} responses in updates of'
    f' {train_fields["sequences_per_update"]}, after'
    f' {config["warm_start"]["steps"]} steps of warm start;'
    f' {config["evaluate"]["problems"]} held-out problems.'
  )


if __name__ == '__main__':
  main()
