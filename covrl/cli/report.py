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
    help='file of the page (default: report.html in the directory of a run, '
    'comparison.html for a comparison)',
  )


def run(arguments: argparse.Namespace) -> None:
  """Writes the report and prints its path."""
  from covrl.report import write_comparison, write_report

  workdirs, output = arguments.workdirs, arguments.output
  if len(workdirs) == 1:
    print(write_report(workdirs[0], output))
  else:
    print(write_comparison(workdirs, output or 'comparison.html'))
