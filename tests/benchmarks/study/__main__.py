# SPDX-License-Identifier: Apache-2.0
"""Runs the study and writes its results (`make study`, `make study-quick`)."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator

from covrl.cli import jax_settings

from .driver import (
  RATES_AND_PASSES,
  SEEDS,
  Run,
  Study,
  advice_source,
  rates_and_passes_runs,
  sized_runs,
  tuning_runs,
)
from .tasks import TASKS
from .writing import write_page, write_results


def main() -> None:
  """Makes the missing runs, then writes the results of all finished ones."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.study', description=__doc__
  )
  parser.add_argument('--tasks', nargs='+', choices=TASKS, default=[*TASKS])
  parser.add_argument('--seeds', type=int, nargs='+', default=SEEDS)
  parser.add_argument(
    '--runs', type=pathlib.Path, default=pathlib.Path('runs/study')
  )
  parser.add_argument(
    '--parts',
    nargs='+',
    choices=('tuning', 'variants', 'rates_and_passes', 'sizes'),
    default=['tuning', 'variants', 'rates_and_passes', 'sizes'],
  )
  parser.add_argument(
    '--only_write',
    action='store_true',
    help='only write the results of finished runs',
  )
  parser.add_argument(
    '--quick',
    action='store_true',
    help='one seed, first values in place of tuning, two learning rates in rates_and_passes',
  )
  arguments = parser.parse_args()
  if arguments.quick:
    arguments.seeds = arguments.seeds[:1]
  study = Study(
    arguments.runs,
    lambda text: print(text, flush=True),
    quick=arguments.quick,
  )
  if not arguments.only_write:
    jax_settings.set_xla_flags()
    jax_settings.use_compilation_cache()
    for run in planned(study, arguments):
      study.train_if_missing(run)
  if arguments.quick:
    print(write_page(study, arguments.runs))
  else:
    write_results(study)


def planned(study: Study, arguments: argparse.Namespace) -> Iterator[Run]:
  """All runs in order: the variants of a seed stand together."""
  for name in arguments.tasks:
    if 'tuning' in arguments.parts and not arguments.quick:
      yield from tuning_runs(name)
    if 'variants' in arguments.parts:
      yield advice_source(name)
      for seed in arguments.seeds:
        for variant in study.variants(name):
          yield Run(task=name, variant=variant, seed=seed)
  if 'rates_and_passes' in arguments.parts:
    variants = study.variants(RATES_AND_PASSES)
    yield from rates_and_passes_runs(
      variants, arguments.seeds, quick=arguments.quick
    )
  if 'sizes' in arguments.parts and not arguments.quick:
    yield from sized_runs(study.variants(RATES_AND_PASSES), arguments.seeds)


if __name__ == '__main__':
  main()
