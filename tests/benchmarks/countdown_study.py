# SPDX-License-Identifier: Apache-2.0
"""Trains every Countdown recipe with three seeds (`make study-countdown`, about an hour).

The warm start is trained once per seed and shared, so that runs with the same
seed differ only by their recipe. Each run is a process on one core; as many run
at once as there are cores. Finished runs are not repeated.

Writes a table, a figure and a comparison page to `configs/results/`, and the
table to `configs/README.md`.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import queue

from recipe_runs import ROOT, study_parser, train, write_section

from covrl.report import comparison_svg, comparison_table, write_comparison

RECIPES = (
  'grpo',
  'entropy_bonus',
  'clip_cov',
  'kl_cov',
  'grpo_no_clip',
  'kl_cov_beta0',
  'random_k',
)


def main() -> None:
  """Runs the missing runs, then writes the results."""
  parser = study_parser(__doc__, 'runs/countdown')
  parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1)
  arguments = parser.parse_args()
  os.chdir(ROOT)
  runs: pathlib.Path = arguments.runs
  if not arguments.only_write:
    run_all(runs, arguments.seeds, arguments.jobs)
  write_results(runs, arguments.seeds)


def run_all(runs: pathlib.Path, seeds: list[int], jobs: int) -> None:
  """Runs the recipes seed by seed, each on one core."""
  cores: queue.SimpleQueue[int] = queue.SimpleQueue()
  for core in range(jobs):
    cores.put(core)

  def run(recipe: str, workdir: pathlib.Path, *overrides: str) -> None:
    core = cores.get()
    try:
      train(f'countdown:{recipe}', workdir, overrides, core)
    finally:
      cores.put(core)

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    warm_starts = {
      seed: pool.submit(
        run,
        'grpo',
        warm_start_directory(runs, seed),
        f'seed={seed}',
        'train.iterations=1',
        'evaluate.problems=64',
      )
      for seed in seeds
    }
    recipe_runs = [
      pool.submit(
        run_after,
        warm_starts[seed],
        run,
        recipe,
        runs / f'{recipe}_{seed}',
        f'seed={seed}',
        f'warm_start.from_run={warm_start_directory(runs, seed)}',
      )
      for seed in seeds
      for recipe in RECIPES
    ]
    for future in recipe_runs:
      future.result()


def run_after(
  prerequisite: concurrent.futures.Future[None], run: object, *arguments: object
) -> None:
  """Calls `run(*arguments)` once `prerequisite` has succeeded."""
  prerequisite.result()
  assert callable(run)
  run(*arguments)


def warm_start_directory(runs: pathlib.Path, seed: int) -> pathlib.Path:
  """Run directory of the warm start of a seed."""
  return runs / f'warm_start_{seed}'


def write_results(runs: pathlib.Path, seeds: list[int]) -> None:
  """Writes table, figure and page of the finished runs."""
  finished = [
    str(runs / f'{recipe}_{seed}')
    for recipe in RECIPES
    for seed in seeds
    if (runs / f'{recipe}_{seed}' / 'report.html').is_file()
  ]
  results = ROOT / 'configs' / 'results'
  results.mkdir(exist_ok=True)
  table = comparison_table(finished)
  (results / 'countdown.md').write_text(f'{table}\n')
  (results / 'countdown.svg').write_text(comparison_svg(finished))
  write_comparison(finished, str(results / 'countdown.html'))
  write_section(ROOT / 'configs' / 'README.md', 'study', f'{table}\n')
  print(table)


if __name__ == '__main__':
  main()
