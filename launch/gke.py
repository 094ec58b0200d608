# SPDX-License-Identifier: Apache-2.0
"""GKE: a JobSet with one job per slice and one pod per host, or XPK's command.

Hosts of GPUs form one job, with one process per host.

Kubernetes restarts the run: a pod that fails ends the whole set, which then
starts again. The statuses by which covrl excludes a restart, and those of a
command that cannot be started, fail the set at once.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import tempfile
from typing import Any

import yaml

from covrl.exit_codes import RESTARTED, Exit, means_restart
from covrl.parallel.xla_flags import NCCL_ENVIRONMENT
from launch.job import Job, LaunchError
from launch.shell import Shell
from launch.slices import GpuHosts, Slice, find_machines

# Exit statuses that end a run. Kubernetes takes lists of statuses, not ranges.
# A shell's 126 and 127 stand for a command that cannot be started.
_FINAL_STATUSES = (
  *(int(e) for e in Exit if e and not means_restart(e)),
  126,
  127,
)
# Seconds that a pod has to save a checkpoint after SIGTERM.
_GRACE_SECONDS = 300
# Port of the coordinator, process 0, on GPUs; TPU processes need no coordinator.
_PORT = 8476


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `launch gke`."""
  parser.add_argument(
    '--type',
    required=True,
    help='accelerator type, such as v5p-64, or GPUs, such as h100:4x8',
  )
  parser.add_argument(
    '--image', required=True, help='container image with covrl installed'
  )
  parser.add_argument(
    '--num-slices', type=int, default=1, help='number of TPU slices'
  )
  parser.add_argument('--namespace', default='default')
  parser.add_argument('--service-account')
  parser.add_argument('--queue', help='local queue of Kueue')
  parser.add_argument('--spot', action='store_true')
  parser.add_argument(
    '--xpk', action='store_true', help='submit with `xpk workload create`'
  )
  parser.add_argument('--cluster', help='cluster, for --xpk')
  parser.add_argument('--project', help='project, for --xpk')
  parser.add_argument('--zone', help='zone, for --xpk')


def run(job: Job, options: argparse.Namespace, shell: Shell) -> int:
  """Submits the job and returns the exit status of the submission."""
  machines = find_machines(options.type)
  if options.num_slices < 1:
    raise LaunchError(
      f'--num-slices must be at least 1, got {options.num_slices}'
    )
  job.check_shared(machines.hosts * options.num_slices)
  if isinstance(machines, GpuHosts):
    if options.xpk or options.num_slices > 1:
      option = '--xpk' if options.xpk else '--num-slices'
      raise LaunchError(
        f'--type must be of TPUs with {option}, got {options.type}'
      )
  elif options.xpk:
    shell.print(
      shell.check_output(_xpk_command(job, options, machines)).rstrip()
    )
    return 0
  manifest = yaml.safe_dump(job_set(job, options, machines), sort_keys=False)
  shell.show(f'{job.name}.yaml', manifest)
  with tempfile.TemporaryDirectory(prefix='covrl-') as folder:
    file = pathlib.Path(folder) / f'{job.name}.yaml'
    file.write_text(manifest, encoding='utf-8')
    name = file.name if shell.dry_run else str(file)
    shell.print(
      shell.check_output(['kubectl', 'apply', f'--filename={name}']).rstrip()
    )
  return 0


def job_set(
  job: Job, options: argparse.Namespace, machines: Slice | GpuHosts
) -> dict[str, Any]:
  """Returns the JobSet manifest: a pod, and a process, per host."""
  arguments = list(_escape_dollars(job.arguments))
  environment = dict(job.environment)
  annotations: dict[str, str] = {}
  if isinstance(machines, GpuHosts):
    selector = {'cloud.google.com/gke-accelerator': machines.gke_accelerator}
    chips = {'nvidia.com/gpu': machines.topology.per_host}
    environment = {**NCCL_ENVIRONMENT, **environment}
    if machines.hosts > 1:
      # The first pod's name in the JobSet's network. Kubernetes fills in the
      # index of the pod.
      arguments += [
        f'--coordinator={job.name}-host-0-0.{job.name}:{_PORT}',
        f'--num_processes={machines.hosts}',
        '--process_id=$(JOB_COMPLETION_INDEX)',
      ]
  else:
    selector = {
      'cloud.google.com/gke-tpu-accelerator': machines.gke_accelerator,
      'cloud.google.com/gke-tpu-topology': machines.shape,
    }
    chips = {'google.com/tpu': machines.chips_per_host}
    # A slice is a node pool, and no slice is divided.
    annotations['alpha.jobset.sigs.k8s.io/exclusive-topology'] = (
      'cloud.google.com/gke-nodepool'
    )
  if options.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
  container = {
    'name': 'covrl',
    'image': options.image,
    # Without a shell, so that arguments are passed unchanged and SIGTERM reaches
    # the program.
    'command': ['covrl', 'train', *arguments],
    'env': [
      *(
        {'name': name, 'value': _escape_dollars([value])[0]}
        for name, value in environment.items()
      ),
      *(
        {
          'name': name,
          'valueFrom': {'secretKeyRef': {'name': secret, 'key': name}},
        }
        for name, secret in job.secrets.items()
      ),
    ],
    'resources': {'requests': dict(chips), 'limits': dict(chips)},
  }
  pod: dict[str, Any] = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': _GRACE_SECONDS,
    'nodeSelector': selector,
    'containers': [container],
  }
  if isinstance(machines, GpuHosts):
    # NCCL's shared memory; Kubernetes gives 64 MiB.
    container['volumeMounts'] = [{'name': 'shm', 'mountPath': '/dev/shm'}]
    pod['volumes'] = [{'name': 'shm', 'emptyDir': {'medium': 'Memory'}}]
  if options.service_account:
    pod['serviceAccountName'] = options.service_account
  if options.spot:
    pod['tolerations'] = [
      {
        'key': 'cloud.google.com/gke-spot',
        'operator': 'Equal',
        'value': 'true',
        'effect': 'NoSchedule',
      }
    ]
  metadata: dict[str, Any] = {
    'name': job.name,
    'namespace': options.namespace,
  }
  if annotations:
    metadata['annotations'] = annotations
  if options.queue:
    metadata['labels'] = {'kueue.x-k8s.io/queue-name': options.queue}
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': metadata,
    'spec': {
      'failurePolicy': {
        'maxRestarts': job.restarts,
        'rules': [
          {
            'action': 'FailJobSet',
            'onJobFailureReasons': ['PodFailurePolicy'],
          }
        ],
      },
      'replicatedJobs': [
        {
          'name': 'host' if isinstance(machines, GpuHosts) else 'slice',
          'replicas': options.num_slices,
          'template': {
            'spec': {
              'parallelism': machines.hosts,
              'completions': machines.hosts,
              'backoffLimit': 0,
              'podFailurePolicy': {
                'rules': [
                  {
                    'action': 'FailJob',
                    'onExitCodes': {
                      'containerName': 'covrl',
                      'operator': 'In',
                      'values': list(_FINAL_STATUSES),
                    },
                  }
                ]
              },
              'template': {'spec': pod},
            }
          },
        }
      ],
    },
  }


def _escape_dollars(texts: tuple[str, ...] | list[str]) -> list[str]:
  """Escapes `$`, so that Kubernetes does not substitute `$(NAME)`.

  >>> _escape_dollars(['$(HOME)', '$$'])
  ['$$(HOME)', '$$$$']
  """
  return [text.replace('$', '$$') for text in texts]


def _xpk_command(
  job: Job, options: argparse.Namespace, slice_: Slice
) -> list[str]:
  """Returns XPK's command; XPK passes `--command` through a shell."""
  for name in ('cluster', 'project', 'zone'):
    if not getattr(options, name):
      raise LaunchError(f'--{name} must be given with --xpk, got none')
  if job.secrets:
    raise LaunchError(
      f'--secret must not be given with --xpk, got {", ".join(job.secrets)}; a'
      ' JobSet supports it'
    )
  return [
    *('xpk', 'workload', 'create'),
    f'--workload={job.name}',
    f'--cluster={options.cluster}',
    f'--project={options.project}',
    f'--zone={options.zone}',
    f'--tpu-type={slice_.accelerator}',
    f'--num-slices={options.num_slices}',
    f'--docker-image={options.image}',
    f'--max-restarts={job.restarts}',
    f'--restart-on-exit-codes={",".join(str(int(c)) for c in RESTARTED)}',
    *(f'--env={name}={value}' for name, value in job.environment.items()),
    f'--command={shlex.join(["covrl", "train", *job.arguments])}',
  ]
