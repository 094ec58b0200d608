# SPDX-License-Identifier: Apache-2.0
"""Outcomes of programs whose processes are ended by SIGKILL."""

import math
import os
import signal
import subprocess
import sys
import threading

import pytest

from covrl.rewards import Status
from covrl.rewards.sandbox import (
  interpreter,
  landlock,
  launcher,
  sandbox,
)
from covrl.rewards.sandbox.limits import Limits
from covrl.rewards.sandbox.resource_usage import descendants
from covrl.rewards.sandbox.session import Session
from covrl.rewards.sandbox.test_formats import PrintTest

SLOW_ADD = """
import time
def add(a, b):
  time.sleep(0.3)
  return a + b
if __name__ == '__main__':
  print(add(*map(int, input().split())))
"""
SUM = {'stdin': '3 4', 'stdout': '7'}
CALL = {'call': 'add', 'args': [3, 4], 'result': 7}
SUITE = {'asserts': 'from solution import add\nassert add(3, 4) == 7'}
# Sends SIGKILL to process 1 by a pipe that becomes readable.
FCNTL_ATTACK = """
import fcntl, os, time
read_end, write_end = os.pipe()
fcntl.fcntl(read_end, fcntl.F_SETOWN, os.getppid())
fcntl.fcntl(read_end, 10, 9)  # F_SETSIG
fcntl.fcntl(read_end, fcntl.F_SETFL, os.O_ASYNC)
os.write(write_end, b'1')
time.sleep(1)
"""
KILL_ATTACK = 'import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(1)'


@pytest.fixture
def kills(monkeypatch):
  """Kills a process of each sandbox; `kills` lists whether it is process 1."""
  kills: list[bool] = []
  usage = sandbox.Sandbox.usage
  lock = threading.Lock()

  def kill_and_measure(self, *, exact=False):
    with lock:  # Suites measure two sandboxes in two threads.
      if kills and (program := descendants(self._pid)):
        victim = self._pid if kills.pop() else program[0]
        os.kill(victim, signal.SIGKILL)
    return usage(self, exact=exact)

  monkeypatch.setattr(sandbox.Sandbox, 'usage', kill_and_measure)
  return kills


@pytest.mark.parametrize('test', [SUM, CALL, SUITE])
def test_a_program_that_is_killed_once_is_run_again(judge, kills, test):
  kills[:] = [False]
  outcome = judge.judge(SLOW_ADD, [test])
  assert outcome.status is Status.SCORED, outcome
  assert not kills


def test_a_program_that_is_killed_twice_fails(judge, kills):
  kills[:] = [True, False, False]
  outcome = judge.judge(SLOW_ADD, [SUM])
  assert (outcome.score, outcome.status) == (0.0, Status.CRASH)
  assert outcome.detail == 'test 1 of 1: it was killed by SIGKILL'
  assert len(kills) == 1


@pytest.mark.parametrize('test', [SUM, CALL, SUITE])
def test_a_sandbox_that_is_killed_gives_no_score(judge, kills, test):
  kills[:] = [True]
  outcome = judge.judge(SLOW_ADD, [test])
  assert outcome.status is Status.INFRASTRUCTURE, outcome
  assert math.isnan(outcome.score)
  assert outcome.detail == 'the sandbox was killed from outside'


@pytest.mark.parametrize('test', [SUM, SUITE])
def test_a_program_that_the_oom_killer_ends_has_no_score(
  judge, kills, monkeypatch, test
):
  counts = iter(range(100))
  monkeypatch.setattr(sandbox, 'count_oom_kills', lambda: next(counts))
  kills[:] = [False]
  outcome = judge.judge(SLOW_ADD, [test])
  assert outcome.status is Status.INFRASTRUCTURE, outcome
  assert math.isnan(outcome.score)
  assert 'OOM killer' in outcome.detail
  # A failure without a SIGKILL is the program's.
  assert judge.judge('1 / 0', [SUM]).status is Status.CRASH


def test_a_system_without_free_processes_gives_no_score(judge):
  # The fork of process 1 fails, as where a container has no process left.
  program, limits = SLOW_ADD.encode(), Limits(processes=1)
  with (
    Session(judge._launcher, limits, program, 4.0) as session,
    pytest.raises(sandbox.SandboxError, match='no process could be'),
  ):
    session.check(PrintTest(b'3 4', b'7'))


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_programs_in_a_namespace_get_no_exemption_by_signals(judge, number):
  for source in (KILL_ATTACK, FCNTL_ATTACK):
    source = source.replace('9', str(int(number)))
    outcome = judge.judge(source, [SUM])
    assert (outcome.score, outcome.has_score) == (0.0, True), outcome
  kill = f'os.kill(os.getpid(), {int(number)})'
  # An interrupt may be noticed after the call.
  suicide = f'import os, time\n{kill}\ntime.sleep(1)'
  assert judge.judge(suicide, [SUM]).status is Status.CRASH


def test_landlock_programs_cannot_send_signals_by_fcntl(landlock_launcher):
  command = [sys.executable, '-S', '-c', 'import time\ntime.sleep(60)']
  with subprocess.Popen(command) as other:
    for source in (
      FCNTL_ATTACK,
      FCNTL_ATTACK.replace('os.getppid()', str(other.pid)),
      FCNTL_ATTACK.replace('fcntl.F_SETOWN', '15'),  # F_SETOWN_EX
    ):
      outcome = _check(landlock_launcher, source)
      assert (outcome.score, outcome.status) == (0.0, Status.CRASH), outcome
      assert 'OSError: [Errno 38]' in outcome.detail, outcome
    assert other.poll() is None
    other.kill()


def test_a_landlock_sandbox_that_is_killed_gives_no_score(
  landlock_launcher, kills
):
  kills[:] = [True]
  with pytest.raises(sandbox.SandboxError, match='killed from outside'):
    _check(landlock_launcher, SLOW_ADD)


def test_an_unsandboxed_program_that_kills_its_supervisor_fails():
  unsandboxed = launcher.Unsandboxed(interpreter=interpreter.find_interpreter())
  outcome = _check(unsandboxed, KILL_ATTACK)
  assert (outcome.score, outcome.status) == (0.0, Status.CRASH), outcome
  assert outcome.detail.startswith('its sandbox failed')


@pytest.fixture
def landlock_launcher():
  """The Landlock backend, whose programs have the user of the tests."""
  return landlock.Landlock(
    interpreter=interpreter.find_interpreter(), give_up_root=False
  )


def _check(backend, source):
  """Returns the outcome of a program in a sandbox of a backend."""
  with Session(backend, Limits(), source.encode(), 4.0) as session:
    return session.check(PrintTest(b'3 4', b'7'))
