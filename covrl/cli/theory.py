# SPDX-License-Identifier: Apache-2.0
"""Checks the claims of the entropy-control paper numerically.

Prints one row per check, with the measured value and its tolerance, and one
verdict per claim. The exit status is 1 if a result differs from the recorded
one. Examples:

  covrl theory --workdir=runs/theory
  covrl theory --claim=VII.4
"""

from __future__ import annotations

import argparse

from covrl.cli import jax_settings
from covrl.exit_codes import Exit


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl theory`."""
  parser.add_argument(
    '--workdir', metavar='DIRECTORY', help='directory for report.html'
  )
  parser.add_argument(
    '--claim', metavar='NAME', help='the only claim to check, such as VII.4'
  )
  parser.add_argument(
    '--quick', action='store_true', help='use fewer trials, seeds and steps'
  )


def run(arguments: argparse.Namespace) -> None:
  """Checks the claims and prints the table."""
  from covrl import storage
  from covrl.report.inputs.run_data import is_run_directory
  from covrl.report.pages.theory import write_theory_page
  from covrl.run.progress import Progress
  from covrl.theory import runner

  jax_settings.set_xla_flags()
  jax_settings.use_compilation_cache()
  if arguments.workdir is not None:
    # Before the minutes that the claims take.
    workdir = storage.as_path(arguments.workdir)
    if is_run_directory(workdir):
      raise ValueError(
        f'--workdir must not hold a run, whose report.html would be replaced, got'
        f' {workdir}'
      )
    with storage.writing(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
  with Progress() as progress:
    progress.stage('checking claims')
    checked = runner.run_claims(
      name=arguments.claim,
      quick=arguments.quick,
      on_progress=progress.counter('claims'),
    )
  runner.print_results(checked)
  if arguments.workdir is not None:
    print(write_theory_page(arguments.workdir, checked))
  if not checked.agrees:
    raise SystemExit(Exit.FAILED)
