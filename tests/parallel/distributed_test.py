# SPDX-License-Identifier: Apache-2.0
"""What one process can know of several: who there is, and how they end."""

import math
import os
import signal
import threading
import time
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from covrl.exit_codes import Exit
from covrl.parallel import distributed
from covrl.parallel.supervisor import supervise

CLUSTER = (
  'TPU_WORKER_HOSTNAMES',
  'MEGASCALE_NUM_SLICES',
  'SLURM_STEP_NODELIST',
  'SLURM_NTASKS',
  'OMPI_COMM_WORLD_SIZE',
)


@pytest.mark.parametrize(
  ('environment', 'several'),
  [
    ({}, False),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, True),
    ({'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '16'}, True),
    ({'SLURM_STEP_NODELIST': 'n1', 'SLURM_NTASKS': '1'}, False),
    # A batch script's own shell is no step.
    ({'SLURM_NTASKS': '16'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '4'}, True),
  ],
)
def test_what_the_environment_says(monkeypatch, environment, several):
  for name in CLUSTER:
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(distributed, '_is_tpu_machine', lambda: False)
  assert distributed.in_cluster() == several


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (('h:1', 2, None), 'required together'),
    ((None, 2, 0), 'required together'),
    (('h:1', 2, 2), r'--process_id must lie in \[0, 2\), got 2'),
    (('h', 2, 0), '--coordinator must be HOST:PORT'),
  ],
)
def test_bad_input(given, message):
  with pytest.raises(ValueError, match=message):
    distributed.join(*given)
  with pytest.raises(ValueError, match='--heartbeat must be at least 2'):
    distributed.join('h:1', 2, 0, heartbeat=1)


@pytest.mark.parametrize('count', [1, 2, 3, 7])
@pytest.mark.parametrize('size', [0, 1, 6, 7, 20])
def test_shares_are_all_there_is(monkeypatch, count, size):
  monkeypatch.setattr(jax, 'process_count', lambda: count)
  items, shares = list(range(size)), []
  for process in range(count):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    shares.append(items[distributed.own_share(size)])
  assert [item for share in shares for item in share] == items
  assert all(len(share) <= math.ceil(size / count) for share in shares)


def test_one_process_has_everything():
  rows = {'a': np.arange(3)}
  assert distributed.gather_rows(rows) is rows
  content = {'a': [1, None, 'é']}
  assert distributed.gather_objects(content) == [content]


def test_waits_poll_and_say_that_they_ended():
  polls, moved = [], []
  future: Future[int] = Future()
  threading.Timer(0.2, future.set_result, [7]).start()
  with distributed.polled(lambda: polls.append(1), lambda: moved.append(1)):
    assert distributed.result(future) == 7
  assert polls
  assert moved == [1]

  def stop():
    raise KeyError('stop')

  with distributed.polled(stop), pytest.raises(KeyError):
    distributed.result(Future())


def test_which_errors_mean_a_lost_process(monkeypatch):
  lost = ValueError(
    'UNKNOWN: Gloo all-reduce failed: Connection closed by peer'
  )
  assert not distributed.is_loss(lost)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert distributed.is_loss(lost)
  assert not distributed.is_loss(ValueError('rows must divide'))
  late = TimeoutError('Timed out while waiting')
  late.__cause__ = lost
  assert distributed.is_loss(late)


def bash(script):
  return ['bash', '-c', script]


def test_a_child_that_jax_ends_ends_with_one_line(capfd):
  jax_says = (
    'echo before >&2; '
    'echo "E1 coordination_service_agent.cc:289] Polled an error" >&2; '
    'echo "*** Check failure stack trace: ***" >&2; kill -ABRT $$'
  )
  assert supervise(bash(jax_says)) == Exit.PEER_LOST
  before, told = capfd.readouterr().err.splitlines()
  assert before == 'before'
  assert told.startswith('covrl: another process of the run is lost')


@pytest.mark.parametrize(
  ('script', 'status'),
  [('exit 0', 0), ('exit 2', 2), ('exit 42', 42), ('kill -KILL $$', 137)],
)
def test_other_ends_are_passed_on(script, status):
  assert supervise(bash(script)) == status


def test_signals_are_passed_on():
  script = 'trap "exit 42" TERM; echo; while :; do sleep 0.1; done'
  threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGTERM]).start()
  began = time.monotonic()
  assert supervise(bash(script)) == 42
  assert time.monotonic() - began < 60
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
