# SPDX-License-Identifier: Apache-2.0
"""Detection of several processes, exchange between them, and their exit."""

import math
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from covrl.exit_codes import Exit
from covrl.parallel import distributed, supervisor
from covrl.parallel.supervisor import supervise

# Variables by which a cluster describes the processes of a job.
CLUSTER_VARIABLES = (
  'TPU_WORKER_HOSTNAMES',
  'MEGASCALE_NUM_SLICES',
  'SLURM_STEP_NODELIST',
  'SLURM_NTASKS',
  'OMPI_COMM_WORLD_SIZE',
)


@pytest.mark.parametrize(
  ('environment', 'is_expected'),
  [
    ({}, False),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, True),
    ({'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '16'}, True),
    ({'SLURM_STEP_NODELIST': 'n1', 'SLURM_NTASKS': '1'}, False),
    # The shell of a batch script is not a step.
    ({'SLURM_NTASKS': '16'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '4'}, True),
  ],
)
def test_detects_several_processes_from_the_environment(
  monkeypatch, environment, is_expected
):
  for name in CLUSTER_VARIABLES:
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(distributed, '_is_tpu_machine', lambda: False)
  assert distributed.in_cluster() == is_expected


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('h:1', 2, None), 'must be given together'),
    ((None, 2, 0), 'must be given together'),
    (('h:1', 2, 2), r'--process_id must lie in \[0, 2\), got 2'),
    (('h', 2, 0), '--coordinator must be HOST:PORT'),
  ],
)
def test_refuses_invalid_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    distributed.initialize(*arguments)
  with pytest.raises(ValueError, match='--heartbeat must be at least 2'):
    distributed.initialize('h:1', 2, 0, heartbeat=1)


@pytest.mark.parametrize('count', [1, 2, 3, 7])
@pytest.mark.parametrize('size', [0, 1, 6, 7, 20])
def test_process_slices_cover_all_items_once(monkeypatch, count, size):
  monkeypatch.setattr(jax, 'process_count', lambda: count)
  items, shares = list(range(size)), []
  for process in range(count):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    shares.append(items[distributed.process_slice(size)])
  assert [item for share in shares for item in share] == items
  assert all(len(share) <= math.ceil(size / count) for share in shares)


def test_exchange_is_the_identity_with_one_process():
  rows = {'a': np.arange(3)}
  assert distributed.gather_rows(rows) is rows
  content = {'a': [1, None, 'é']}
  assert distributed.gather_objects(content) == [content]


def test_waits_poll_and_report_progress():
  polls, finished = [], []
  future: Future[int] = Future()
  threading.Timer(0.2, future.set_result, [7]).start()
  with distributed.polling(lambda: polls.append(1), lambda: finished.append(1)):
    assert distributed.wait_for(future) == 7
  assert polls
  assert finished == [1]

  def stop():
    raise KeyError('stop')

  with distributed.polling(stop), pytest.raises(KeyError):
    distributed.wait_for(Future())


@pytest.mark.parametrize('poll_fraction', [1 / 16, 1 / 4])
@pytest.mark.parametrize('duration', [0.001, 0.01, 0.0777, 10.0])
def test_a_wait_exceeds_its_condition_by_at_most_the_poll_fraction(
  monkeypatch, duration, poll_fraction
):
  clock = [100.0]

  def sleep(seconds):
    clock[0] += seconds

  monkeypatch.setattr(distributed.time, 'monotonic', lambda: clock[0])
  monkeypatch.setattr(distributed.time, 'sleep', sleep)
  distributed.wait_until(
    lambda: clock[0] >= 100 + duration, poll_fraction=poll_fraction
  )
  excess = clock[0] - 100 - duration
  assert 0 <= excess <= min(max(duration * poll_fraction, 0.0002), 0.005)


def test_recognizes_errors_of_lost_processes(monkeypatch):
  lost = ValueError(
    'UNKNOWN: Gloo all-reduce failed: Connection closed by peer'
  )
  assert not distributed.is_peer_loss(lost)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert distributed.is_peer_loss(lost)
  assert not distributed.is_peer_loss(ValueError('rows must divide'))
  timeout = TimeoutError('Timed out while waiting')
  timeout.__cause__ = lost
  assert distributed.is_peer_loss(timeout)


def bash(script):
  return ['bash', '-c', script]


def test_reports_a_child_aborted_by_jax_in_one_line(capfd):
  prints_and_aborts = (
    'echo before >&2; '
    'echo "E1 coordination_service_agent.cc:289] Polled an error" >&2; '
    'echo "*** Check failure stack trace: ***" >&2; kill -ABRT $$'
  )
  assert supervise(bash(prints_and_aborts)) == Exit.PEER_LOST
  before, message = capfd.readouterr().err.splitlines()
  assert before == 'before'
  assert message.startswith('covrl: another process of the run is lost')


def test_a_child_that_goes_on_after_a_message_about_a_peer_has_not_lost_it(
  capfd, monkeypatch
):
  monkeypatch.setattr(supervisor, '_ABORT_SECONDS', 0.2)
  script = (
    'echo "W1 coordination_service_agent.cc:289] A slow answer" >&2; '
    'echo hidden >&2; sleep 0.6; echo "iteration 2" >&2; exit 1'
  )
  assert supervise(bash(script)) == 1
  assert capfd.readouterr().err == 'iteration 2\n'


def test_an_absent_coordinator_ends_in_one_line_in_time(capfd):
  with socket.socket() as unused:
    unused.bind(('127.0.0.1', 0))
    script = (
      'from covrl.parallel import distributed\n'
      'distributed._INITIALIZATION_SECONDS = 1\n'
      f"distributed.initialize('127.0.0.1:{unused.getsockname()[1]}', 2, 1)\n"
    )
    assert supervise([sys.executable, '-c', script]) == Exit.PEER_LOST
  (message,) = capfd.readouterr().err.splitlines()
  assert message.startswith('covrl: another process of the run is lost')


@pytest.mark.parametrize(
  ('script', 'status'),
  [('exit 0', 0), ('exit 2', 2), ('exit 42', 42), ('kill -KILL $$', 137)],
)
def test_passes_other_exit_statuses_on(script, status):
  assert supervise(bash(script)) == status


def test_forwards_signals_to_the_child():
  script = 'trap "exit 42" TERM; echo; while :; do sleep 0.1; done'
  threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGTERM]).start()
  began = time.monotonic()
  assert supervise(bash(script)) == 42
  assert time.monotonic() - began < 60
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
