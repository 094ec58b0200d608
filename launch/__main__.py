# SPDX-License-Identifier: Apache-2.0
"""`python -m launch`; see the package's description."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import launch
from launch import gke, local, slurm, tpu
from launch.job import Job, LaunchError, pairs
from launch.shell import Shell

_PLACES = {'tpu': tpu, 'gke': gke, 'slurm': slurm, 'local': local}


def main(argv: Sequence[str] | None = None, shell: Shell | None = None) -> int:
  """Launches; the exit status."""
  given = list(sys.argv[1:] if argv is None else argv)
  cut = given.index('--') if '--' in given else len(given)
  options = _parser().parse_args(given[:cut])
  shell = shell or Shell(dry_run=options.dry_run)
  try:
    job = Job(
      name=options.name,
      arguments=tuple(given[cut + 1 :]),
      environment=pairs('--env', options.env),
      secrets=pairs('--secret', options.secret),
      restarts=options.restarts,
    )
    return _PLACES[options.place].run(job, options, shell)
  except ValueError as error:
    print(f'launch: {error}', file=sys.stderr)
    return error.status if isinstance(error, LaunchError) else 2


def _parser() -> argparse.ArgumentParser:
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    prog='launch', description=launch.__doc__, formatter_class=raw
  )
  places = parser.add_subparsers(dest='place', required=True)
  for name, module in _PLACES.items():
    place = places.add_parser(
      name, description=module.__doc__, formatter_class=raw
    )
    place.add_argument('--name', required=True, help='of the job')
    place.add_argument('--env', action='append', default=[], help='NAME=VALUE')
    place.add_argument(
      '--secret', action='append', default=[], help='NAME=SECRET, by its name'
    )
    place.add_argument('--restarts', type=int, default=100)
    place.add_argument('--dry-run', action='store_true')
    module.add_arguments(place)
  return parser


if __name__ == '__main__':
  sys.exit(main())
