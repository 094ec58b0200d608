# SPDX-License-Identifier: Apache-2.0
"""Previews a run: sizes, prompts, memory and estimated time.

Prints batch sizes, three prompts with the rewards of their reference answers,
and with --topology the memory and the time on those TPUs or GPUs, which need not
be attached. Example:

  covrl plan --config=countdown:kl_cov --topology=v5p-64
"""

from __future__ import annotations

import argparse

from covrl.cli import jax_settings, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl plan`."""
  options.add_config(parser)
  options.add_topology(parser, required=False)
  parser.add_argument(
    '--compiled',
    metavar='FILE',
    help='output of `covrl compile --json` for this recipe and topology',
  )


def run(arguments: argparse.Namespace) -> None:
  """Prints the plan of a recipe."""
  from covrl import config, storage
  from covrl.compile.plan import plan
  from covrl.parallel import topologies

  topology = compiled = None
  if arguments.topology is not None:
    topology = topologies.find_topology(arguments.topology)
  elif arguments.compiled is not None or arguments.num_slices > 1:
    raise ValueError(
      '--topology must be given with --compiled or --num_slices, got none'
    )
  if arguments.compiled is not None:
    compiled = storage.as_path(arguments.compiled)
  jax_settings.set_xla_flags()
  jax_settings.use_compilation_cache()
  recipe = config.load(arguments.config, arguments.overrides)
  for line in plan(recipe, topology, arguments.num_slices, compiled):
    print(line)
