# SPDX-License-Identifier: Apache-2.0
"""Writes an HTML report about a run, or one that compares several runs.

The report of one run is report.html in its directory. A comparison pairs runs
by seed and has confidence intervals. Examples:

  covrl report runs/kl_cov
  covrl report runs/*
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl report`."""
  parser.add_argument(
    'workdirs', nargs='+', metavar='DIRECTORY', help='run directories'
  )
  parser.add_argument(
    '--output',
    metavar='FILE',
    default='comparison.html',
    help='file of a comparison (default: %(default)s)',
  )


def run(arguments: argparse.Namespace) -> None:
  """Writes the report and prints its path."""
  from covrl.report import write_comparison, write_report

  if len(arguments.workdirs) == 1:
    print(write_report(arguments.workdirs[0]))
  else:
    print(write_comparison(arguments.workdirs, arguments.output))
