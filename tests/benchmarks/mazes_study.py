"""Compares reinforcement learning on mazes with more supervised steps.

Trains the policy of `make train` (`mazes:kl_cov`) and `mazes:grpo` from the same
warm start, and a policy that spends the same time on supervised steps alone, with
three seeds (`make study-mazes`, about half an hour on two idle CPU cores). Runs
that are finished are not repeated.

Writes a table to `configs/results/mazes.md` and to the README.
"""

from __future__ import annotations

import os
import pathlib
import random

import numpy as np
from recipe_runs import ROOT, evaluations, study_parser, train, write_section

from covrl.config import MazeConfig
from covrl.data import held_out_mazes
from covrl.data.generated.mazes import explorer_walk, maze_of
from covrl.evaluation.intervals import student_mean

PROBLEMS = 512  # held-out mazes of an evaluation
METRICS = ('greedy', 'mean@8', 'pass@8')
# Supervised steps that take the processor time of the warm start and 160 iterations.
SUPERVISED_STEPS = 3700
# Rows of the table: name, run that it is from, and index of the run's evaluation.
TABLE_ROWS = {
  'warm start': ('kl_cov', 0),
  '`kl_cov`': ('kl_cov', -1),
  '`grpo`': ('grpo', -1),
  f'supervised, {SUPERVISED_STEPS:,} steps': ('supervised', 0),
}


def main() -> None:
  """Runs the missing runs, then writes the results."""
  parser = study_parser(__doc__, 'runs/mazes')
  arguments = parser.parse_args()
  os.chdir(ROOT)
  runs: pathlib.Path = arguments.runs
  if not arguments.only_write:
    for seed in arguments.seeds:
      train_all(runs, seed)
  write_results(runs, arguments.seeds)


def train_all(runs: pathlib.Path, seed: int) -> None:
  """Trains a seed's policies; the recipes share a warm start."""
  kl_cov = runs / f'kl_cov_{seed}'
  train('mazes:kl_cov', kl_cov, [f'seed={seed}'])
  train(
    'mazes:grpo',
    runs / f'supervised_{seed}',
    [
      f'seed={seed}',
      f'warm_start.steps={SUPERVISED_STEPS}',
      'train.iterations=1',
      'train.schedule_iterations=1',
    ],
  )
  train(
    'mazes:grpo',
    runs / f'grpo_{seed}',
    [f'seed={seed}', f'warm_start.from_run={kl_cov}'],
  )


def write_results(runs: pathlib.Path, seeds: list[int]) -> None:
  """Writes the table of finished runs."""
  rows = [
    '| policy | seeds | greedy, % | mean@8, % | pass@8, % | entropy |',
    '|---|---:|---:|---:|---:|---:|',
  ]
  rows.append(explorer_row(seeds))
  for name, (run, index) in TABLE_ROWS.items():
    results = [
      run_evaluations[index]
      for seed in seeds
      if (run_evaluations := evaluations(runs / f'{run}_{seed}'))
    ]
    if results:
      rows.append(row(name, results))
  note = (
    f'{PROBLEMS} held-out mazes; mean over seeds ± half width of the 95 % t interval, and'
    ' in parentheses each seed (no interval for less than three). Entropy in nats per token.'
    ' The explorer sees only the cells around it; the warm start imitates its walks.'
  )
  table = '\n'.join([*rows, '', note, ''])
  (ROOT / 'configs' / 'results' / 'mazes.md').write_text(table)
  write_section(ROOT / 'README.md', 'mazes', table)
  print(table)


def explorer_row(seeds: list[int]) -> str:
  """Row of the explorer that the warm start imitates: eight walks per maze."""
  config = MazeConfig()
  mazes = [maze_of(problem) for problem in held_out_mazes(config)[:PROBLEMS]]
  correct = np.array(
    [
      [
        [
          explorer_walk(rng, maze, config.max_steps)[-1] == maze.goal
          for _ in range(8)
        ]
        for maze in mazes
      ]
      for rng in map(random.Random, seeds)
    ]
  )
  numbers = (
    cell(100 * correct.mean(axis=(1, 2)), 1),
    cell(100 * correct.any(axis=2).mean(axis=1), 1),
  )
  return f'| explorer | {len(seeds)} | – | {" | ".join(numbers)} | – |'


def row(name: str, results: list[dict[str, float]]) -> str:
  """Row of a policy, from an evaluation of each seed."""
  cells = [
    cell(100 * np.array([line[metric] for line in results]), 1)
    for metric in METRICS
  ]
  cells.append(cell(np.array([line['entropy'] for line in results]), 3))
  return f'| {name} | {len(results)} | {" | ".join(cells)} |'


def cell(values: np.ndarray, digits: int) -> str:
  """Mean, half width of its interval, and the values."""
  seed_values = ', '.join(f'{value:.{digits}f}' for value in values)
  if len(values) == 1:
    return seed_values
  mean = student_mean(values)
  if len(values) == 2:  # Too few for an interval.
    return f'{mean.value:.{digits}f} ({seed_values})'
  assert mean.low is not None
  half_width = mean.value - mean.low
  return f'{mean.value:.{digits}f} ± {half_width:.{digits}f} ({seed_values})'


if __name__ == '__main__':
  main()
