# SPDX-License-Identifier: Apache-2.0
"""Isolation of reward workers: their children, signals, network, environment."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from covrl.rewards import Reward, RewardPool, Scoring, _worker_isolation

MARK = f'COVRL_MARK={os.getpid()}'.encode()
HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(autouse=True)
def _scorers_are_importable(monkeypatch):
  monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture(params=['namespaces', 'filter'])
def scorers(request, monkeypatch):
  """The scorers, on a machine with namespaces and on one without."""
  if request.param == 'filter':
    monkeypatch.setattr(_worker_isolation, 'has_namespaces', lambda: False)
  assert _worker_isolation.isolation() == request.param
  import scorers

  return scorers


def marked_processes() -> set[int]:
  """Returns all processes with this test's environment variable."""
  pids = set()
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      state = stat.read_text().rsplit(')', 1)[1].split()[0]
      environment = (stat.parent / 'environ').read_bytes()
    except OSError:
      continue
    if state not in 'ZX' and MARK in environment:
      pids.add(int(stat.parent.name))
  return pids


def wait_until_running(count: int, seconds: float = 10.0) -> int:
  """Waits until `count` processes have the mark; returns their number."""
  deadline = time.monotonic() + seconds
  while (
    num_running := len(marked_processes())
  ) < count and time.monotonic() < deadline:
    time.sleep(0.05)
  return num_running


def wait_until_gone(seconds: float = 10.0) -> set[int]:
  """Waits for all marked processes to end; returns those that have not."""
  deadline = time.monotonic() + seconds
  while (remaining := marked_processes()) and time.monotonic() < deadline:
    time.sleep(0.05)
  return remaining


@pytest.fixture(autouse=True)
def _marked(monkeypatch):
  """Sets a variable by which processes of this test are found."""
  monkeypatch.setenv('COVRL_MARK', str(os.getpid()))


def test_children_of_scorers_end_with_the_pool(scorers):
  with RewardPool(
    scorers.leave_children, workers=1, environment=['COVRL_MARK']
  ) as pool:
    (outcome,) = pool.submit(['3'], ['mark']).result()
    assert outcome.score == 1.0, outcome
    # Supervisor and worker, too.
    assert wait_until_running(6) >= 6
  assert not wait_until_gone()


def test_children_of_scorers_end_with_a_worker_that_hangs(scorers):
  with RewardPool(
    scorers.echo, workers=1, timeout=0.3, environment=['COVRL_MARK']
  ) as pool:
    assert pool.submit(['1'], [None]).result()[0].score == 1.0
    processes_before = marked_processes()
    assert pool.submit(['hang'], [None]).result()[0].status.value == 'timeout'
    assert pool.submit(['2'], [None]).result()[0].score == 2.0
    assert not processes_before & marked_processes()
  assert not wait_until_gone()


def test_children_of_scorers_end_with_a_killed_trainer(scorers, tmp_path):
  script = tmp_path / 'program.py'
  script.write_text(
    textwrap.dedent("""
      import sys, time
      sys.path[:0] = [sys.argv[1], sys.argv[2]]
      import scorers
      from covrl.rewards import RewardPool, _worker_isolation
      if sys.argv[3] == 'filter':
        _worker_isolation.has_namespaces = lambda: False
      if __name__ == '__main__':
        pool = RewardPool(
          scorers.leave_children, workers=2, environment=['COVRL_MARK'])
        print(pool.submit(['2', '3'], ['a', 'b']).result()[1].score, flush=True)
        time.sleep(3600)
      """)
  )
  isolation = _worker_isolation.isolation()
  with subprocess.Popen(
    [sys.executable, str(script), str(HERE), str(ROOT), isolation],
    stdout=subprocess.PIPE,
  ) as trainer:
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == b'1.0\n'
    assert wait_until_running(10) >= 10
    trainer.send_signal(signal.SIGKILL)
  assert not wait_until_gone()


def test_workers_cannot_signal_the_trainer(scorers):
  with RewardPool(scorers.signal_trainer, workers=1) as pool:
    (outcome,) = pool.submit([''], [[os.getpid(), os.getpgrp()]]).result()
  assert outcome.score == 0.0, outcome


def test_workers_have_a_network_only_with_network_true(scorers):
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = str(server.getsockname()[1])
    for network in (False, True):
      with RewardPool(scorers.can_connect, workers=1, network=network) as pool:
        (outcome,) = pool.submit([port], [None]).result()
      assert outcome.score == network


def test_workers_receive_the_named_variables_only(monkeypatch, scorers):
  monkeypatch.setenv('COVRL_SECRET', 'token')
  monkeypatch.setenv('COVRL_WANTED', '1')
  names = ['COVRL_SECRET', 'COVRL_WANTED', 'PATH']
  with Scoring(
    [Reward(name='mine', score=scorers.has_variable)],
    sources=['s'],
    workers=1,
    environment=['COVRL_WANTED', 'COVRL_ABSENT'],
  ) as scoring:
    scores = scoring.submit(
      names, [None] * 3, sources=['s'] * 3, lengths=[1] * 3
    ).result()
    assert not scoring.notes
  assert scores.totals() == [0.0, 1.0, 1.0]


def test_reports_missing_isolation(monkeypatch, scorers):
  monkeypatch.setattr('covrl.rewards.scoring.isolation', lambda: 'none')
  with Scoring(
    [Reward(name='mine', score=scorers.echo)], sources=['s'], workers=1
  ) as scoring:
    (note,) = scoring.notes
  assert 'can use the network and send signals to the trainer' in note
