# SPDX-License-Identifier: Apache-2.0
"""Lists the recipes that covrl ships.

Each can be given to --config of train, plan, compile and evaluate. A recipe of
your own is named by its file and function, --config=FILE.py:FUNCTION.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds no options: the command has none."""
  del parser


def run(arguments: argparse.Namespace) -> None:
  """Prints one line per recipe."""
  del arguments
  from covrl import config

  recipes = config.recipes()
  width = max(len(spec) for spec, _ in recipes)
  for spec, summary in recipes:
    print(f'{spec:{width}}  {summary}')
