# SPDX-License-Identifier: Apache-2.0
"""Isolation of reward workers from the trainer and the network on this machine."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import subprocess
import sys

SUPERVISOR_SCRIPT = pathlib.Path(__file__).with_name('_worker_supervisor.py')
"""Program that starts a worker, in namespaces of its own where it can."""

# Seconds for the test whether a worker can have namespaces.
_PROBE_SECONDS = 30.0


def isolation() -> str:
  """Returns the kind of isolation of workers from the trainer and the network.

  `namespaces`: in separate namespaces of processes and, unless a worker may use the
  network, of the network. `filter`: a seccomp filter refuses signals to the trainer
  and sockets of the network. `none`: neither is possible on this machine.
  """
  if has_namespaces():
    return 'namespaces'
  return 'none' if worker_filter(network=False) is None else 'filter'


@functools.cache
def has_namespaces() -> bool:
  """Returns whether workers can have their own namespaces."""
  if sys.platform != 'linux':
    return False
  with contextlib.suppress(OSError, subprocess.TimeoutExpired):
    completed = subprocess.run(
      [sys.executable, '-I', '-S', str(SUPERVISOR_SCRIPT), 'probe'],
      stdin=subprocess.DEVNULL,
      capture_output=True,
      check=False,
      timeout=_PROBE_SECONDS,
    )
    return completed.returncode == 0
  return False


@functools.cache
def worker_filter(*, network: bool) -> bytes | None:
  """Returns the seccomp filter of workers without namespaces, if possible.

  Args:
    network: whether they may use the network.
  """
  from covrl.rewards.sandbox.seccomp import make_worker_filter

  if sys.platform != 'linux':
    return None
  try:
    return make_worker_filter(
      trainer=os.getpid(), group=os.getpgrp(), network=network
    )
  except OSError:
    return None
