# SPDX-License-Identifier: Apache-2.0
"""Cloud TPU: requests slices, installs covrl, trains, and recovers preemptions.

Creates a queued resource and waits for it; copies the commit HEAD of this
checkout to every host and installs it; runs the same script on every host. The
config must be committed. If a host's exit status requests a restart, or its
connection is lost, the state of the resource decides: a preempted one is
deleted and requested again.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import re
import tempfile

from covrl.exit_codes import Exit, combined_status, means_restart
from launch import checkout
from launch.job import Job, LaunchError, render
from launch.shell import Shell, command_error
from launch.slices import Slice, find_slice

# States of a queued resource that will not become active again.
_ENDED_STATES = ('SUSPENDING', 'SUSPENDED', 'FAILED', 'DELETING')
# Errors by which Google Cloud reports a lack of quota or capacity, and not one of
# permission, whose text may name a "quota project".
_NO_CAPACITY = re.compile(
  r'\A(?!.*PERMISSION_DENIED).*(RESOURCE_EXHAUSTED|quota|capacity|UNAVAILABLE)',
  re.IGNORECASE | re.DOTALL,
)
# Line by which the script of a host reports its exit status.
_EXIT_LINE = re.compile(r'covrl-exit=(\d+)')
# Exit status of ssh when the connection is lost.
_LOST_CONNECTION = 255
# Flags of ssh that end a connection without an answer for five minutes.
_KEEP_ALIVE_FLAGS = ('-oServerAliveInterval=30', '-oServerAliveCountMax=10')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `launch tpu`."""
  parser.add_argument(
    '--type', required=True, help='accelerator type, such as v5p-64'
  )
  parser.add_argument('--project', required=True)
  parser.add_argument('--zone', required=True)
  parser.add_argument('--num-slices', type=int, default=1)
  parser.add_argument(
    '--runtime-version', help='default of the generation if absent'
  )
  parser.add_argument('--network')
  parser.add_argument('--service-account')
  provisioning = parser.add_mutually_exclusive_group()
  provisioning.add_argument('--spot', action='store_true')
  provisioning.add_argument('--reserved', action='store_true')
  parser.add_argument(
    '--poll', type=float, default=30.0, help='seconds between status requests'
  )
  parser.add_argument(
    '--max-wait',
    type=float,
    default=24.0,
    help='maximal hours to wait for a slice',
  )
  parser.add_argument(
    '--keep', action='store_true', help='keep the machines after the run'
  )


def run(job: Job, options: argparse.Namespace, shell: Shell) -> int:
  """Trains on one or several slices and returns the exit status."""
  slice_ = find_slice(options.type)
  if options.num_slices < 1:
    raise LaunchError(
      f'--num-slices must be at least 1, got {options.num_slices}'
    )
  if not (0 < options.poll < math.inf and 0 < options.max_wait < math.inf):
    raise LaunchError(
      '--poll and --max-wait must be positive and finite, got '
      f'{options.poll:g} and {options.max_wait:g}'
    )
  job.check_shared(slice_.hosts * options.num_slices)
  job = checkout.with_committed_config(job, shell, checkout.ROOT)
  with tempfile.TemporaryDirectory(prefix='covrl-') as folder:
    queued = _QueuedRun(job, options, shell, slice_, pathlib.Path(folder))
    return queued.train()


@dataclasses.dataclass
class _QueuedRun:
  """A queued resource and the run on it.

  Attributes:
    job: the run.
    options: options of the command line.
    shell: executes commands.
    slice_: the slice of TPU hosts.
    folder: local directory of the scripts that are copied to the hosts.
  """

  job: Job
  options: argparse.Namespace
  shell: Shell
  slice_: Slice
  folder: pathlib.Path

  def train(self) -> int:
    """Trains until the run ends, through preemptions."""
    self._pack()
    is_set_up, code = False, int(Exit.RESTART)
    for attempt in range(self.job.restarts + 1):
      if self._acquire() or not is_set_up:
        self._set_up()
        is_set_up = True
      code = self._run()
      if not means_restart(code):
        break
      if attempt < self.job.restarts:
        self.shell.print(f'restart {attempt + 1} of {self.job.restarts}')
        self.shell.sleep(self.options.poll)
    if code == 0 and not self.options.keep:
      self._delete()
    elif not self.shell.dry_run:
      self.shell.print(f'the machines of {self.job.name} are kept')
    return code

  @property
  def _nodes(self) -> list[str]:
    """Names of the TPU nodes, one per slice."""
    if self.options.num_slices == 1:
      return [self.job.name]
    return [f'{self.job.name}-{n}' for n in range(self.options.num_slices)]

  @property
  def _location_options(self) -> list[str]:
    """Options of gcloud that name project and zone."""
    return [f'--project={self.options.project}', f'--zone={self.options.zone}']

  def _command(self, verb: str, *arguments: str) -> list[str]:
    """Returns a command of gcloud for the queued resource."""
    return [
      *('gcloud', 'compute', 'tpus', 'queued-resources', verb, self.job.name),
      *self._location_options,
      *arguments,
    ]

  def _acquire(self) -> bool:
    """Waits for the slice; returns whether it is a new one."""
    is_new = False
    if self.shell.dry_run:
      self._create()
    waited, max_seconds = 0.0, self.options.max_wait * 3600
    while (state := self._state()) != 'ACTIVE':
      if state in _ENDED_STATES:
        self.shell.print(f'{self.job.name} is {state}: requesting another')
        self._delete()
        state = None
      if state is None:
        is_new = True
        self._create()
      if waited >= max_seconds:
        raise LaunchError(
          'a slice must become available within'
          f' {self.options.max_wait:g} hours, got none',
          status=Exit.RESTART,
        )
      self.shell.sleep(self.options.poll)
      waited += self.options.poll
    return is_new

  def _state(self) -> str | None:
    """Returns the state of the resource; `None` if it does not exist."""
    command = self._command('describe', '--format=value(state.state)')
    completed = self.shell.run(command)
    if self.shell.dry_run:
      return 'ACTIVE'
    if completed.returncode == 0:
      return completed.stdout.strip()
    if re.search('NOT_FOUND|not found', completed.stderr):
      return None
    raise command_error(command, completed)

  def _create(self) -> None:
    """Requests the slice; a lack of quota or capacity is not an error."""
    options, is_multislice = self.options, self.options.num_slices > 1
    command = self._command(
      'create',
      *(
        (f'--node-count={options.num_slices}', f'--node-prefix={self.job.name}')
        if is_multislice
        else (f'--node-id={self.job.name}',)
      ),
      f'--accelerator-type={self.slice_.accelerator}',
      f'--runtime-version={options.runtime_version or self.slice_.runtime}',
      *(['--spot'] if options.spot else []),
      *(['--reserved'] if options.reserved else []),
      *([f'--network={options.network}'] if options.network else []),
      *(
        [f'--service-account={options.service_account}']
        if options.service_account
        else []
      ),
    )
    completed = self.shell.run(command)
    if completed.returncode and not _NO_CAPACITY.search(completed.stderr):
      raise command_error(command, completed)
    if completed.returncode:
      self.shell.print(
        f'not available yet: {command_error(command, completed)}'
      )

  def _delete(self) -> None:
    """Deletes the queued resource and its nodes."""
    self.shell.check_output(self._command('delete', '--force', '--quiet'))

  def _pack(self) -> None:
    """Writes an archive of the committed tree, and the scripts."""
    name = self.job.name
    root_options = [] if self.shell.dry_run else ['-C', str(checkout.ROOT)]
    output = f'--output={self._file("tar.gz")}'
    self.shell.check_output(
      ['git', *root_options, 'archive', '--format=tar.gz', output, 'HEAD']
    )
    scripts = {
      'set-up.sh': render('set_up.sh.j2', name=name, archive=f'{name}.tar.gz'),
      'host.sh': render(
        'host.sh.j2',
        name=name,
        arguments=self.job.arguments,
        environment=self.job.environment,
        secrets=self.job.secrets,
      ),
    }
    for suffix, text in scripts.items():
      self.shell.show(f'{name}.{suffix}', text)
      (self.folder / f'{name}.{suffix}').write_text(text, encoding='utf-8')

  def _file(self, suffix: str) -> str:
    """Returns the path of a file; in a dry run only its name."""
    folder = '' if self.shell.dry_run else f'{self.folder}/'
    return f'{folder}{self.job.name}.{suffix}'

  def _set_up(self) -> None:
    """Copies archive and scripts to all hosts and installs covrl."""
    name = self.job.name
    sources = [
      self._file(suffix) for suffix in ('tar.gz', 'set-up.sh', 'host.sh')
    ]
    for node in self._nodes:
      self.shell.check_output(
        [
          *('gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', *sources),
          f'{node}:',
          *self._location_options,
          '--worker=all',
        ]
      )
    results = self.shell.follow(
      [self._ssh(node, f'bash {name}.set-up.sh') for node in self._nodes]
    )
    if any(code for code, _ in results):
      raise LaunchError(
        f'covrl cannot be installed on {name}; its output is above', status=1
      )

  def _run(self) -> int:
    """Trains on all hosts and returns one exit status for all of them."""
    script = f'bash {self.job.name}.host.sh'
    results = self.shell.follow(
      [self._ssh(node, script) for node in self._nodes]
    )
    if self.shell.dry_run:
      return 0
    codes: list[int] = []
    for _, printed in results:
      reported = [int(code) for code in _EXIT_LINE.findall(printed)]
      # A host that did not report an exit status has been lost, also where ssh
      # returns 0.
      missing = self.slice_.hosts - len(reported)
      codes += reported + [_LOST_CONNECTION] * max(missing, 0)
    return combined_status(codes)

  def _ssh(self, node: str, command: str) -> list[str]:
    """Returns a command that runs another one on all hosts of a node."""
    return [
      *('gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', node),
      *self._location_options,
      '--worker=all',
      *(f'--ssh-flag={flag}' for flag in _KEEP_ALIVE_FLAGS),
      f'--command={command}',
    ]
