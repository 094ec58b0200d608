# SPDX-License-Identifier: Apache-2.0
"""Slurm: a batch script that requeues itself, with one process per node.

Every process compiles the programs, scores its own responses and keeps whole
arrays of the batch in host memory: eight per node would do all of that eight
times. NCCL connects the GPUs of a process as it connects those of several.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import tempfile

from covrl.exit_codes import RESTARTED
from covrl.parallel.xla_flags import NCCL_ENVIRONMENT
from launch.job import Job, LaunchError, render
from launch.shell import Shell

# Values allowed in an #SBATCH directive, which has its own quoting rules.
_WORD = re.compile(r'[A-Za-z0-9_.,:@-]+')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `launch slurm`."""
  parser.add_argument('--nodes', type=int, required=True)
  parser.add_argument('--gpus-per-node', type=int, required=True)
  parser.add_argument('--cpus-per-task', type=int)
  parser.add_argument('--time', default='24:00:00')
  parser.add_argument('--partition')
  parser.add_argument('--account')
  parser.add_argument(
    '--notice',
    type=int,
    default=300,
    help='seconds before the time limit at which the run receives SIGTERM',
  )
  parser.add_argument(
    '--covrl', default='covrl', help='path of the covrl command on the nodes'
  )


def run(job: Job, options: argparse.Namespace, shell: Shell) -> int:
  """Submits the script and returns the exit status of the submission."""
  job.check_config_file()
  script = batch_script(job, options)
  shell.show(f'{job.name}.sh', script)
  with tempfile.TemporaryDirectory(prefix='covrl-') as folder:
    file = pathlib.Path(folder) / f'{job.name}.sh'
    file.write_text(script, encoding='utf-8')
    name = file.name if shell.dry_run else str(file)
    shell.print(shell.check_output(['sbatch', name]).rstrip())
  return 0


def batch_script(job: Job, options: argparse.Namespace) -> str:
  """Returns the batch script."""
  for name in ('nodes', 'gpus_per_node', 'notice', 'cpus_per_task'):
    value = getattr(options, name)
    if value is not None and value < 1:
      raise LaunchError(
        f'--{name.replace("_", "-")} must be at least 1, got {value}'
      )
  for name in ('time', 'partition', 'account'):
    value = getattr(options, name)
    if value is not None and not _WORD.fullmatch(value):
      raise LaunchError(
        f'--{name} must be letters, digits and _.,:@-, got {value!r}'
      )
  if job.secrets:
    raise LaunchError(
      '--secret must be given to tpu or gke only, got'
      f' {", ".join(job.secrets)}; Slurm jobs inherit the environment of sbatch'
    )
  return render(
    'slurm.sh.j2',
    name=job.name,
    nodes=options.nodes,
    gpus=options.gpus_per_node,
    cpus=options.cpus_per_task,
    time=options.time,
    partition=options.partition,
    account=options.account,
    notice=options.notice,
    covrl=options.covrl,
    arguments=job.arguments,
    # Variables that the cluster or the user has set take precedence.
    defaults=NCCL_ENVIRONMENT,
    environment=job.environment,
    restarts=job.restarts,
    restarted=[int(code) for code in RESTARTED],
  )
