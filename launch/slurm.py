# SPDX-License-Identifier: Apache-2.0
"""Slurm: a batch script that requeues itself, one process a GPU."""

from __future__ import annotations

import argparse
import pathlib
import re
import tempfile

from covrl.exit_codes import RESTARTED
from launch.job import Job, LaunchError, render
from launch.shell import Shell

# What may stand in a directive: sbatch reads those with quoting of its own.
_WORD = re.compile(r'[A-Za-z0-9_.,:@-]+')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The options of `launch slurm`."""
  parser.add_argument('--nodes', type=int, required=True)
  parser.add_argument('--gpus-per-node', type=int, required=True)
  parser.add_argument('--cpus-per-task', type=int)
  parser.add_argument('--time', default='24:00:00')
  parser.add_argument('--partition')
  parser.add_argument('--account')
  parser.add_argument(
    '--notice', type=int, default=300, help='seconds before the limit'
  )
  parser.add_argument('--covrl', default='covrl', help='the program')


def run(job: Job, options: argparse.Namespace, shell: Shell) -> int:
  """Submits the script; the exit status of that."""
  script = batch_script(job, options)
  shell.show(f'{job.name}.sh', script)
  with tempfile.TemporaryDirectory(prefix='covrl-') as folder:
    file = pathlib.Path(folder) / f'{job.name}.sh'
    file.write_text(script)
    name = file.name if shell.dry_run else str(file)
    shell.say(shell.demand(['sbatch', name]).rstrip())
  return 0


def batch_script(job: Job, options: argparse.Namespace) -> str:
  """What `sbatch` is given."""
  for name in ('nodes', 'gpus_per_node', 'notice'):
    if getattr(options, name) < 1:
      raise LaunchError(
        f'--{name.replace("_", "-")} must be at least 1, got '
        f'{getattr(options, name)}'
      )
  for name in ('time', 'partition', 'account'):
    value = getattr(options, name)
    if value is not None and not _WORD.fullmatch(value):
      raise LaunchError(
        f'--{name} must be a word that sbatch takes, got {value!r}'
      )
  if job.secrets:
    raise LaunchError(
      '--secret is for tpu and gke; Slurm jobs have the environment that '
      'sbatch was called in'
    )
  return render(
    'slurm.sh.j2',
    name=job.name,
    nodes=options.nodes,
    tasks=options.gpus_per_node,
    gpus=options.gpus_per_node,
    cpus=options.cpus_per_task,
    time=options.time,
    partition=options.partition,
    account=options.account,
    notice=options.notice,
    covrl=options.covrl,
    arguments=job.arguments,
    environment=job.environment,
    restarts=job.restarts,
    restarted=[int(code) for code in RESTARTED],
  )
