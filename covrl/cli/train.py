# SPDX-License-Identifier: Apache-2.0
"""Trains a policy with reinforcement learning.

A run consists of an optional supervised warm start, then iterations of rollout
and optimiser updates. Metrics, samples, checkpoints and a report are written to
the run directory. An existing run is resumed from its latest checkpoint.
Examples:

  covrl train --config=countdown:kl_cov --workdir=runs/kl_cov
  covrl train --config=countdown:kl_cov --workdir=runs/seed_1 --config.seed=1

Ctrl-C and SIGTERM save a checkpoint and end the run with status 42; the same
command resumes it. A third signal within five seconds ends it at once.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from typing import TYPE_CHECKING

from covrl.cli import jax_settings, options
from covrl.cli.errors import refuse_exit, report_error
from covrl.exit_codes import Exit

if TYPE_CHECKING:
  from covrl.config import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl train`."""
  options.add_config(parser)
  parser.add_argument(
    '--workdir',
    metavar='DIRECTORY',
    required=True,
    help='run directory: a new one, or that of the run to resume',
  )
  parser.add_argument(
    '--stall_after',
    type=float,
    default=3600.0,
    metavar='SECONDS',
    help='time without progress after which the run ends with status 44, '
    '0 for never (default: %(default)g)',
  )
  parser.add_argument(
    '--profile_steps',
    default='',
    metavar='FIRST:LAST',
    help='optimiser updates to trace with the JAX profiler',
  )
  parser.add_argument(
    '--resume',
    choices=('fallback', 'strict'),
    default='fallback',
    help='if the newest checkpoint is damaged: resume from the newest intact one'
    ' and rename the damaged one, or refuse (default: %(default)s)',
  )
  processes = parser.add_argument_group(
    'several processes',
    'Found automatically on TPU pods, in GKE and under Slurm.',
  )
  processes.add_argument(
    '--coordinator', metavar='HOST:PORT', help='address of process 0'
  )
  processes.add_argument(
    '--num_processes', type=int, metavar='N', help='number of processes'
  )
  processes.add_argument(
    '--process_id', type=int, metavar='N', help='index of this process, from 0'
  )
  processes.add_argument(
    '--heartbeat',
    type=int,
    default=100,
    metavar='SECONDS',
    help='time without a heartbeat after which a process counts as lost '
    '(default: %(default)s)',
  )


def run(arguments: argparse.Namespace) -> None:
  """Trains in this process, or in a supervised child of it."""
  from covrl import config
  from covrl.parallel import agreement, distributed, supervisor
  from covrl.run import streams

  # Recipes may print to standard output; no result of the command is written there.
  sys.stdout = streams.without_write_errors(sys.stdout)
  jax_settings.prepare_to_run(trains=True)
  recipe = config.load(arguments.config, arguments.overrides)
  if arguments.coordinator or distributed.in_cluster():
    if not supervisor.is_supervised():
      # A script does not import from the working directory (-P), where a package
      # `covrl` would be executed in place of the installed one.
      is_script = getattr(sys.modules['__main__'], '__spec__', None) is None
      options = ['-P'] * is_script + ['-m', 'covrl.cli']
      command = [sys.executable, *options, *arguments.argv]
      if status := supervisor.supervise(command):
        raise SystemExit(status)
      return
    supervisor.die_with_parent()
  distributed.initialize(
    arguments.coordinator,
    arguments.num_processes,
    arguments.process_id,
    heartbeat=arguments.heartbeat,
  )
  jax_settings.use_compilation_cache()
  if distributed.process_count() == 1:
    status = _train(recipe, arguments)
  else:
    try:
      status, orderly = _train(recipe, arguments), True
    except Exception as error:
      status = _print_error(error)
      orderly = status == Exit.REFUSED and agreement.peers_arrive('refused')
    distributed.exit_process(status, orderly=orderly)
  if status:
    raise SystemExit(status)


def _train(recipe: Recipe, arguments: argparse.Namespace) -> int:
  """Trains; returns the exit status."""
  from covrl.report import write_report
  from covrl.train import Stopped, TrainOptions, train

  train_options = TrainOptions(
    stall_after=arguments.stall_after,
    profile_steps=arguments.profile_steps,
    exits_after_run=True,
    resume=arguments.resume,
  )
  try:
    with refuse_exit():
      train(recipe, arguments.workdir, train_options, write_report)
  except Stopped as stopped:
    return stopped.exit_status
  return Exit.FINISHED


def _print_error(error: Exception) -> int:
  """Prints the error of one of several processes; returns its exit status."""
  from covrl.parallel import distributed, supervisor

  if distributed.is_peer_loss(error):
    reason = ' '.join(str(error).split())[:200]
    print(supervisor.peer_lost_message(reason), file=sys.stderr)
    return Exit.PEER_LOST
  status = report_error(error)
  if status is None:
    traceback.print_exception(error)
    return Exit.FAILED
  return status
