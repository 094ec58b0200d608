# SPDX-License-Identifier: Apache-2.0
"""Command line of the launchers: `python -m launch`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import launch
from launch import gke, local, slurm, tpu
from launch.job import Job, LaunchError, check_not_empty, parse_pairs
from launch.shell import Shell

_LAUNCHERS = {'tpu': tpu, 'gke': gke, 'slurm': slurm, 'local': local}


def main(argv: Sequence[str] | None = None, shell: Shell | None = None) -> int:
  """Runs a launcher and returns its exit status."""
  argv_list = list(sys.argv[1:] if argv is None else argv)
  separator = argv_list.index('--') if '--' in argv_list else len(argv_list)
  options = _parser().parse_args(argv_list[:separator])
  shell = shell or Shell(dry_run=options.dry_run)
  try:
    check_not_empty(vars(options))
    job = Job(
      name=options.name,
      arguments=tuple(argv_list[separator + 1 :]),
      environment=parse_pairs('--env', options.env),
      secrets=parse_pairs('--secret', options.secret),
      restarts=options.restarts,
    )
    return _LAUNCHERS[options.launcher].run(job, options, shell)
  except ValueError as error:
    print(f'launch: {error}', file=sys.stderr)
    return error.status if isinstance(error, LaunchError) else 2


def _parser() -> argparse.ArgumentParser:
  """Returns the parser, with a command per launcher."""
  raw_text = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    prog='launch', description=launch.__doc__, formatter_class=raw_text
  )
  commands = parser.add_subparsers(dest='launcher', required=True)
  for name, module in _LAUNCHERS.items():
    command = commands.add_parser(
      name, description=module.__doc__, formatter_class=raw_text
    )
    command.add_argument('--name', required=True, help='name of the job')
    command.add_argument(
      '--env',
      action='append',
      default=[],
      help='NAME=VALUE: environment variable of the run',
    )
    command.add_argument(
      '--secret',
      action='append',
      default=[],
      help='NAME=SECRET: variable NAME holds the value of the named secret',
    )
    command.add_argument(
      '--restarts', type=int, default=100, help='maximal number of restarts'
    )
    command.add_argument(
      '--dry-run',
      action='store_true',
      help='print commands and files, and execute nothing',
    )
    module.add_arguments(command)
  return parser


if __name__ == '__main__':
  sys.exit(main())
