# SPDX-License-Identifier: Apache-2.0
"""Compiles a recipe's programs for TPUs or GPUs and reports memory and cost.

No TPU or GPU needs to be attached. The report lists, for each program, memory,
operations, bytes and collectives, and estimates the least time it can take. The
exit status is 1 if a program does not fit into a chip's memory. Examples:

  covrl compile --config=countdown:kl_cov --topology=v5e:2x4
  covrl compile --config=reasoning:qwen2_5_7b_kl_cov --topology=v5p:2x4x4 --json
  covrl compile --config=reasoning:qwen2_5_7b_kl_cov --topology=h100:4x8
"""

from __future__ import annotations

import argparse
import json

from covrl.cli import jax_settings, options
from covrl.exit_codes import Exit


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl compile`."""
  options.add_config(parser)
  options.add_topology(parser, required=True)
  parser.add_argument(
    '--programs',
    metavar='NAMES',
    help='programs to compile, separated by commas (default: all)',
  )
  parser.add_argument(
    '--json', action='store_true', help='print one JSON object, for scripts'
  )


def run(arguments: argparse.Namespace) -> None:
  """Compiles the programs and prints the report."""
  from covrl import config
  from covrl.compile import compile_recipe
  from covrl.parallel import topologies
  from covrl.run.progress import Progress

  topology = topologies.find_topology(arguments.topology)
  jax_settings.set_compiler_flags(topology.platform)
  recipe = config.load(arguments.config, arguments.overrides)
  names = arguments.programs
  with Progress() as progress:
    report = compile_recipe(
      recipe,
      topology,
      num_slices=arguments.num_slices,
      names=names.split(',') if names else None,
      on_program=lambda name, number, total: progress.stage(
        f'compiling {name} ({number} of {total})'
      ),
    )
  if arguments.json:
    print(json.dumps(report.as_json()))
  else:
    print('\n'.join(report.lines()))
  if not report.fits:
    raise SystemExit(Exit.FAILED)
