# SPDX-License-Identifier: Apache-2.0
"""Time limits of programs on a processor that other processes use."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from covrl.rewards import Status, code_reward
from covrl.rewards.pool import RewardPool
from covrl.rewards.sandbox import limits
from covrl.rewards.sandbox.sandbox import SandboxError
from covrl.rewards.sandbox.session import Session
from covrl.rewards.sandbox.test_formats import PrintTest, SuiteTest, Test

BURN = """
import threading, time
def burn(seconds):
  start = time.thread_time()
  while time.thread_time() - start < seconds:
    pass
def add(a, b):
  burn(0.3)
  return a + b
"""
# Sources that are added to `BURN`, by what they do.
RIGHT = {
  'script': 'print(add(*map(int, input().split())))',
  'thread of a deep recursion': """
threading.stack_size(1 << 26)
thread = threading.Thread(target=lambda: print(add(3, 4)))
thread.start()
thread.join()
""",
}
TOO_SLOW = {
  'endless loop': 'while True: pass',
  'sleep': 'time.sleep(1000)',
  'sleep after threads that contend': """
for _ in range(9): threading.Thread(target=burn, args=(0.02,)).start()
time.sleep(1000)
""",
  'sleep in many threads': """
def doze():
  while True:
    time.sleep(0.001)
for _ in range(9): threading.Thread(target=doze).start()
""",
  'children that contend': """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
  if os.fork() == 0:
    burn(0.01)
    os._exit(0)
  burn(0.001)
""",
}
LIMIT = 0.6
SUM = PrintTest(b'3 4', b'7')


@pytest.fixture
def busy_processor():
  """A processor on which four other processes run all the time."""
  cpu = max(os.sched_getaffinity(0))
  command = [sys.executable, '-S', '-c', 'while True: pass']
  # The kernel may share processors between sessions first.
  processes = [
    subprocess.Popen(command, start_new_session=True) for _ in range(4)
  ]
  for process in processes:
    os.sched_setaffinity(process.pid, {cpu})
  yield cpu
  for process in processes:
    process.kill()
    process.wait()


def _check(judge, source, cpu, test: Test = SUM):
  """Returns the outcome of a program, and the seconds that it took."""
  program = (BURN + textwrap.dedent(source)).encode()
  start = time.monotonic()
  with Session(
    judge._launcher, limits.Limits(), program, LIMIT, cpu
  ) as session:
    outcome = session.check(test)
  return outcome, time.monotonic() - start


@pytest.mark.parametrize('kind', RIGHT)
def test_waiting_for_a_processor_does_not_count(judge, busy_processor, kind):
  outcome, seconds = _check(judge, RIGHT[kind], busy_processor)
  assert outcome.status is Status.SCORED, outcome
  # It did wait: five processes shared the processor.
  assert seconds > LIMIT


def test_a_program_may_give_its_process_any_name(judge):
  cpu = max(os.sched_getaffinity(0))
  rename = r"__import__('ctypes').CDLL(None).prctl(15, b'\xff) R', 0, 0, 0)"
  outcome, _ = _check(judge, f'{rename}\n{RIGHT["script"]}', cpu)
  assert outcome.status is Status.SCORED, outcome


def test_waiting_of_suite_and_program_does_not_count(judge, busy_processor):
  # Suite and program take 0.2 s each, one after the other.
  source = BURN.replace('0.3', '0.2')
  suite = SuiteTest(
    source.replace('def add', 'def other')
    + 'from solution import add\nassert add(3, 4) == other(3, 4)',
    None,
  )
  outcome, _ = _check(judge, source, busy_processor, suite)
  assert outcome.status is Status.SCORED, outcome


def test_more_workers_than_processors_make_no_program_wrong():
  reward = code_reward(backend='bubblewrap', time_limit=LIMIT)
  processors = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {max(processors)})  # The workers inherit it.
  try:
    with RewardPool(
      reward.score, workers=4, timeout=60.0, example=reward.example
    ) as pool:
      pool.warm_up()
      # Equal responses are scored once.
      programs = [f'{BURN}{RIGHT["script"]}  # {n}' for n in range(8)]
      tests = [[{'stdin': '3 4', 'stdout': '7'}]] * 8
      outcomes = pool.submit(programs, tests).result()
  finally:
    os.sched_setaffinity(0, processors)
  assert [outcome.score for outcome in outcomes] == [1.0] * 8, outcomes


@pytest.mark.parametrize('kind', TOO_SLOW)
def test_programs_gain_no_time_on_a_busy_processor(judge, busy_processor, kind):
  outcome, seconds = _check(judge, TOO_SLOW[kind], busy_processor)
  assert (outcome.score, outcome.status) == (0.0, Status.TIMEOUT), outcome
  assert seconds < 10 * LIMIT
  if kind.startswith(('sleep', 'children')):
    assert seconds < 3 * LIMIT


@pytest.mark.parametrize('kind', TOO_SLOW)
def test_programs_gain_no_time_by_contending_with_themselves(judge, kind):
  cpu = max(os.sched_getaffinity(0))
  outcome, seconds = _check(judge, TOO_SLOW[kind], cpu)
  assert (outcome.score, outcome.status) == (0.0, Status.TIMEOUT), outcome
  assert seconds < 10 * LIMIT


def test_a_program_that_gets_no_processor_has_no_score(
  judge, busy_processor, monkeypatch
):
  monkeypatch.setattr(limits, '_MAX_SLOWDOWN', 1.2)
  with pytest.raises(SandboxError, match='no processor for most of the time'):
    _check(judge, RIGHT['script'], busy_processor)
