# SPDX-License-Identifier: Apache-2.0
"""Recommends an entropy control for the next run from a run's metrics.

Reads the entropy, the covariances and the rewards that a run has logged, and
prints a method, its share of tokens, bounds and schedule, with the numbers that
led to it. Example:

  covrl advise runs/grpo
"""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl advise`."""
  parser.add_argument('workdir', metavar='DIRECTORY', help='run directory')


def run(arguments: argparse.Namespace) -> None:
  """Prints the recommendation and its reasons."""
  from covrl.report import advice
  from covrl.report.inputs.run_data import load_run

  data = load_run(arguments.workdir)
  result = advice.advise(advice.read_inputs(data))
  for sentence in data.unreadable.sentences():
    print(f'covrl: {sentence}', file=sys.stderr)
  print(result.recommendation)
  for reason in result.reasons:
    print(f'- {reason}')
