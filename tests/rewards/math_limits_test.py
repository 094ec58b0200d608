# SPDX-License-Identifier: Apache-2.0
"""Time limits and worker processes of the grading of mathematical answers."""

import gc
import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from rewards import scorers

from covrl.rewards import RewardPool, Status, grade_math
from covrl.rewards.math import grading
from covrl.rewards.math.grading import compare
from covrl.rewards.math.math_verify import MathVerifyResult
from covrl.rewards.math.time_limit import TimeLimit, TimeLimitExceeded

pytestmark = pytest.mark.usefixtures('no_math_verify')

ROOT = pathlib.Path(__file__).parents[2]


def test_grading_in_a_script_needs_no_main_guard(tmp_path):
  lines = run(
    tmp_path,
    r"""
      import threading
      from covrl.rewards import grade_math

      def show():
        print(grade_math(r'Hence \boxed{x \ge 0}.', r'[0, \infty)').score)

      show()
      thread = threading.Thread(target=show)
      thread.start()
      thread.join()
      """,
  )
  assert lines == ['1.0', '1.0']


def run(path: pathlib.Path, script: str, **environment: str) -> list[str]:
  """Runs a script that must neither fail nor write to standard error; returns its output."""
  file = path / 'script.py'
  file.write_text(textwrap.dedent(script))
  completed = subprocess.run(
    [sys.executable, str(file)],
    env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
    capture_output=True,
    text=True,
    timeout=300,
    check=True,
  )
  assert not completed.stderr
  return completed.stdout.split()


@pytest.mark.parametrize(
  'answer',
  [
    '10^{10^{10^{10}}}',
    r'(10^{10})! + \binom{10^{9}}{10^{8}}',
    r'\lim_{x\to 0}\frac{\sin(\tan x)-\tan(\sin x)}{x^7}',
    '(' * 1500,
    r'\sqrt{' * 150 + '2' + '}' * 150,
    '+'.join(rf'\sin({n})^{{{n}}}' for n in range(1, 130)),
    r'\{' + ','.join(rf'\sqrt{{{n}}}' for n in range(60)) + r'\}',
    '0.' + '3' * 1900,
    r'\cup'.join(f'({n},{n + 1})' for n in range(100)),
  ],
)
def test_grading_any_answer_ends_in_time(answer):
  start = time.monotonic()
  outcome = grade_math(rf'\boxed{{{answer}}}', r'[1,2)\cup(3,4]')
  # Three seconds; workers may have had to start, and others may be at work.
  assert time.monotonic() - start < 30.0
  assert outcome.score != 1.0


def test_answers_that_take_too_long_score_zero_with_a_status(
  monkeypatch,
):
  monkeypatch.setattr(grading, 'COMPARE_CPU_SECONDS', 0.05)
  sines = '+'.join(rf'\sin({n}^{{{n}}})' for n in range(1, 20_000))
  outcome = compare(sines, rf'{sines}+1')
  assert (outcome.score, outcome.status) == (0.0, Status.TIMEOUT)
  assert 'not compared in 0.05 s' in outcome.detail


def test_workers_that_cannot_start_give_no_score(monkeypatch):
  class Pool:
    def submit(self, *_):
      raise RuntimeError('a reward worker could not be started: no memory')

  monkeypatch.setattr(grading._Workers, '_pool', Pool())
  outcome = grade_math(r'\boxed{x \ge 0}', '[0,1]')
  assert math.isnan(outcome.score)
  assert outcome.status is Status.INFRASTRUCTURE
  assert 'no memory' in outcome.detail
  assert not outcome.has_score


def test_forked_process_starts_its_own_workers(tmp_path):
  lines = run(
    tmp_path,
    r"""
      import os
      from covrl.rewards import grade_math

      def show():
        print(grade_math(r'\boxed{x \ge 0}', r'[0,\infty)').score, flush=True)

      show()
      child = os.fork()
      show()
      if child:
        os.waitpid(child, 0)
      """,
    # JAX warns of forks.
    PYTHONWARNINGS='ignore',
  )
  assert lines == ['1.0'] * 3


def test_time_limit_interrupts_regular_expressions():
  import re

  with pytest.raises(TimeLimitExceeded), TimeLimit(0.1):
    re.match('(a+)+b', 'a' * 40)


def compute(seconds):
  """Uses CPU time."""
  end = time.process_time() + seconds
  while time.process_time() < end:
    pass


def test_time_limit_is_not_raised_in_garbage_collection():
  finished_phases = []

  def slow(phase, _):
    if phase == 'start':
      compute(0.3)
      finished_phases.append(phase)

  def collect():
    gc.collect()
    compute(5)

  # Objects of earlier tests have finalizers, in which it would be lost, too.
  gc.freeze()
  gc.callbacks.append(slow)
  # Raised after the callback, inside of which the exception would be lost.
  with pytest.raises(TimeLimitExceeded), TimeLimit(0.1):
    collect()
  gc.callbacks.remove(slow)
  gc.unfreeze()
  assert finished_phases
  assert not any(signal.getitimer(signal.ITIMER_VIRTUAL))


def test_math_verify_runs_within_limits():
  # A response with the name of a replacement of math-verify, the reference with
  # limits in CPU seconds and in wall seconds, and the result.
  cases = [
    (r'itself \sum_{k=1}^{10} k', ['55', 30.0, 60.0], MathVerifyResult.SAME),
    (
      r'itself \sum_{k=1}^{10} k',
      ['54', 30.0, 60.0],
      MathVerifyResult.DIFFERENT,
    ),
    ('itself', ['7', 0.1, 60.0], MathVerifyResult.TIMEOUT),
    # A process that sleeps uses no CPU time; it is killed at the wall-clock limit.
    ('sleep', ['7', 30.0, 0.2], MathVerifyResult.STARVED),
    ('killed', ['7', 30.0, 60.0], MathVerifyResult.STARVED),
    ('abort', ['7', 30.0, 60.0], MathVerifyResult.CRASH),
    ('allocate', ['7', 30.0, 60.0], MathVerifyResult.CRASH),
  ]
  responses, references, results = zip(*cases, strict=True)
  with RewardPool(scorers.run_math_verify, workers=1, timeout=120.0) as pool:
    outcomes = pool.submit(responses, references).result()
  assert [outcome.score for outcome in outcomes] == [
    result.value for result in results
  ]
