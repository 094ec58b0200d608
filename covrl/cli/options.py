# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_config(parser: argparse.ArgumentParser) -> None:
  """Adds `--config`, the recipe."""
  parser.add_argument(
    '--config',
    metavar='RECIPE',
    required=True,
    help='recipe: a name that `covrl recipes` lists, or FILE.py:FUNCTION',
  )


def add_topology(parser: argparse.ArgumentParser, *, required: bool) -> None:
  """Adds `--topology` and `--num_slices`."""
  parser.add_argument(
    '--topology',
    metavar='SLICE',
    required=required,
    help='TPU slice, such as v5p-64 (64 cores) or v5e:2x4 (8 chips), or GPUs,'
    ' such as h100:8 or h100:4x8 (4 hosts)',
  )
  parser.add_argument(
    '--num_slices',
    type=int,
    default=1,
    metavar='N',
    help='number of such slices (default: %(default)s)',
  )


def config_help(argv: Sequence[str]) -> str:
  """Describes all config fields, with the values of the recipe in `argv`.

  Without a recipe, the values are the defaults of `covrl.config.Config`.
  """
  from covrl import config

  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument('--config')
  spec = parser.parse_known_args(argv)[0].config
  fields = config.load(spec).config if spec else config.Config()
  values = f'of {spec}' if spec else 'without a recipe'
  return (
    f'Every config field below can be overridden, with --config.FIELD=VALUE. The'
    f'\nvalues are those {values}.\n\n{config.field_help(fields)}'
  )
