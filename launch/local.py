# SPDX-License-Identifier: Apache-2.0
"""Local launcher: several processes of one run on this machine."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Self

from covrl.exit_codes import Exit, combined_status, means_restart
from launch.job import Job, LaunchError
from launch.shell import Shell

# Seconds that the other processes have to exit after one has ended: they detect
# the end within a heartbeat and save a checkpoint.
_GRACE_SECONDS = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `launch local`."""
  parser.add_argument(
    '--processes', type=int, required=True, help='number of processes'
  )
  parser.add_argument(
    '--port', type=int, help='port of the coordinator; a free one if absent'
  )
  parser.add_argument(
    '--grace',
    type=float,
    default=_GRACE_SECONDS,
    help='seconds that the other processes have to exit after one has ended',
  )


def run(job: Job, options: argparse.Namespace, shell: Shell) -> int:
  """Trains with several processes and returns one exit status for all."""
  if options.processes < 1:
    raise LaunchError(
      f'--processes must be at least 1, got {options.processes}'
    )
  if options.port is not None and not 0 < options.port < 65536:
    raise LaunchError(f'--port must lie in [1, 65535], got {options.port}')
  if not options.grace >= 0:
    raise LaunchError(f'--grace must be at least 0, got {options.grace:g}')
  if job.secrets:
    raise LaunchError(
      '--secret must be given to tpu or gke only, got'
      f' {", ".join(job.secrets)}; local processes inherit this environment'
    )
  job.check_config_file()
  if shell.dry_run:
    for command in _commands(job, options):
      shell.run([*_environment(job), *command])
    return 0
  environment = {**os.environ, **job.environment}
  code = int(Exit.RESTART)
  with _StopSignals() as signals:
    for attempt in range(job.restarts + 1):
      commands = _commands(job, options)
      code = combined_status(_run(commands, environment, options, signals))
      if not means_restart(code) or signals.received:
        break
      if attempt < job.restarts:
        shell.print(f'restart {attempt + 1} of {job.restarts}')
  return code


def _environment(job: Job) -> list[str]:
  """Returns the words of `env` that set the variables of a job."""
  if not job.environment:
    return []
  return [
    'env',
    *(f'{name}={value}' for name, value in job.environment.items()),
  ]


def _commands(job: Job, options: argparse.Namespace) -> list[list[str]]:
  """Returns the command of each process."""
  port = options.port or _free_port()
  return [
    [
      *(sys.executable, '-m', 'covrl.cli', 'train', *job.arguments),
      f'--coordinator=127.0.0.1:{port}',
      f'--num_processes={options.processes}',
      f'--process_id={process}',
    ]
    for process in range(options.processes)
  ]


def _free_port() -> int:
  """Returns a TCP port that is free now."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


class _StopSignals:
  """Context in which SIGTERM, SIGINT and SIGHUP stop a run for good.

  SIGHUP is left alone where it is ignored, as under nohup.

  Attributes:
    received: whether there was such a signal.
  """

  def __init__(self) -> None:
    self.received = False
    self._processes: list[subprocess.Popen[bytes]] = []
    self._previous_handlers: dict[signal.Signals, Any] = {}

  def __enter__(self) -> Self:
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
      numbers.append(signal.SIGHUP)
    for number in numbers:
      self._previous_handlers[number] = signal.signal(number, self._forward)
    return self

  def __exit__(self, *error: object) -> None:
    for number, handler in self._previous_handlers.items():
      signal.signal(number, handler)

  def add(self, process: subprocess.Popen[bytes]) -> None:
    """Adds a process that receives SIGTERM, at once if it has started too late."""
    self._processes.append(process)
    if self.received:
      process.send_signal(signal.SIGTERM)

  def _forward(self, number: int, frame: object) -> None:
    del number, frame
    self.received = True
    for process in self._processes:
      if process.poll() is None:
        process.send_signal(signal.SIGTERM)


def _run(
  commands: Sequence[Sequence[str]],
  environment: dict[str, str],
  options: argparse.Namespace,
  signals: _StopSignals,
) -> list[int]:
  """Runs commands in parallel; returns exit statuses."""
  processes: list[subprocess.Popen[bytes]] = []
  try:
    for command in commands:
      process = subprocess.Popen(
        command, env=environment, start_new_session=True
      )
      processes.append(process)
      signals.add(process)
    deadline = None
    while any(process.poll() is None for process in processes):
      if deadline is None and any(process.poll() for process in processes):
        deadline = time.monotonic() + options.grace
      if deadline is not None and time.monotonic() > deadline:
        break
      time.sleep(0.1)
  finally:
    for process in processes:
      if process.poll() is None:
        process.kill()
  return [process.wait() for process in processes]
