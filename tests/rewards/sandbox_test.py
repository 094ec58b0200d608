# SPDX-License-Identifier: Apache-2.0
"""Judging of programs: outcomes, statuses and refused input."""

import math
import os
import pathlib
import random
import subprocess
import sys
import textwrap
import time

import pytest

from covrl.rewards import Judge, JudgeError, Status, judge_code
from covrl.rewards.sandbox import (
  backends,
  bubblewrap,
)

ROOT = pathlib.Path(__file__).parents[2]
ADD = 'print(sum(map(int, input().split())))'
SUM = [{'stdin': '3 4', 'stdout': '7'}]


def test_judging_works_in_a_plain_script(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
    textwrap.dedent("""
      from covrl.rewards import judge_code
      tests = [{'call': 'add', 'args': [1, 2], 'result': 3}]
      outcome = judge_code('def add(a, b): return a + b', tests)
      print(outcome.score, outcome.status.value)
      """)
  )
  ended = subprocess.run(
    [sys.executable, str(script)],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert ended.stdout.split() == ['1.0', 'scored']


@pytest.mark.parametrize(
  ('tests', 'sentence'),
  [
    ([], 'tests must hold at least one test, got none'),
    ([*SUM, {'stdin': '1'}], "test 1 must be .*, got {'stdin': '1'}"),
    ([{'stdin': 1, 'stdout': ''}], 'test 0'),
    ([{'stdin': '', 'stdout': '', 'more': 1}], 'test 0'),
    ([{'call': 'f', 'args': 3, 'result': 3}], 'test 0'),
    ([{'call': 'f', 'args': [{1}], 'result': 3}], 'set is not JSON'),
    ([{'call': 'f', 'args': [], 'result': 10**5000}], 'test 0'),
    ([{'asserts': 'assert True', 'entry': 3}], 'test 0'),
    (['assert True'], 'test 0'),
    ('assert True', "tests must be a list, got 'assert True'"),
    (7, 'tests must be a list, got 7'),
  ],
)
def test_refuses_tests_of_unknown_format(judge, tests, sentence):
  with pytest.raises(ValueError, match=sentence):
    judge_code(ADD, tests, judge=judge)


def test_refuses_values_nested_too_deeply(judge):
  deep: list = []
  for _ in range(100_000):
    deep = [deep]
  for test in (
    {'call': 'f', 'args': [deep], 'result': 1},
    {'call': 'f', 'args': [], 'result': deep},
  ):
    with pytest.raises(ValueError, match='test 0: args and result'):
      judge_code(ADD, [test], judge=judge)


def test_accepts_large_arguments_results_and_inputs(judge):
  items = list(range(200_000))
  call = {'call': 'same', 'args': [items], 'result': items}
  assert judge.judge('def same(x): return x', [call]).score == 1.0
  text = 'x' * 3_000_000
  echo = {'stdin': text, 'stdout': text}
  assert judge.judge('print(input())', [echo]).score == 1.0


@pytest.mark.parametrize('limit', [0, -1, math.inf, math.nan])
def test_refuses_invalid_time_limits(judge, limit):
  with pytest.raises(ValueError, match='time_limit must be positive'):
    judge_code(ADD, SUM, time_limit=limit, judge=judge)


def test_statuses_describe_how_programs_fail(judge):
  programs = {
    ADD: Status.SCORED,
    'print(8)': Status.WRONG,
    '': Status.UNPARSABLE,
    'def f(:': Status.UNPARSABLE,
    '1 / 0': Status.CRASH,
    'while True: pass': Status.TIMEOUT,
  }
  for program, status in programs.items():
    outcome = judge_code(program, SUM, time_limit=1.0, judge=judge)
    assert outcome.status is status
    assert outcome.score == (status is Status.SCORED)
    assert outcome.has_score
    assert (outcome.detail == '') == (status is Status.SCORED)
  crash = judge_code('1 / 0', SUM, judge=judge)
  assert crash.detail == 'test 1 of 1: ZeroDivisionError: division by zero'
  wrong = judge_code('print(8)', SUM, judge=judge)
  assert wrong.detail == "test 1 of 1: '7' was expected, got '8'"


def test_programs_may_import_the_offered_packages(judge):
  program = """
    import numpy as np
    def total(n): return np.arange(n).sum()
    def table(n): return {'a': np.eye(n), 'b': np.bool_(True)}
    """
  tests = [
    {'call': 'total', 'args': [4], 'result': 6},
    {'call': 'table', 'args': [1], 'result': {'a': [[1]], 'b': True}},
    {
      'asserts': 'import numpy as np\nfrom solution import table, total\n'
      'assert np.array_equal(table(2)["a"], np.eye(2))\nassert total(4) == 6'
    },
  ]
  outcome = judge.judge(textwrap.dedent(program), tests)
  assert outcome.score == 1.0, outcome
  jax_outcome = judge.judge('import jax\nprint(7)', SUM)
  assert "No module named 'jax'" in jax_outcome.detail
  judge_without_packages = Judge(backend='bubblewrap', packages=())
  outcome = judge_without_packages.judge('import numpy\nprint(7)', SUM)
  assert "No module named 'numpy'" in outcome.detail


def test_refuses_packages_that_are_not_installed():
  for name in ('no_such_package', 'numpy.linalg', '../numpy', ''):
    with pytest.raises(ValueError, match=f'must be installed .* got {name!r}'):
      Judge(packages=[name])


_FRAGMENTS = (
  *('```python\n', '```\n', 'print(', 'input()', '\n', ')', '"', "'", '"""'),
  *(
    'def f(a):\n  ',
    'return a',
    '7',
    '\x00',
    '\ud800',
    '\ufeff',
    '[',
    '{',
    '#',
  ),
)


@pytest.mark.parametrize(
  'count', [30, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_any_response_gets_an_outcome(judge, count):
  generator = random.Random(count)
  for index in range(count):
    text = generator.randbytes(generator.randrange(200)).decode(
      *(('latin-1',) if index % 3 else ('utf-8', 'surrogateescape'))
    )
    if index % 3 == 2:
      text = ''.join(generator.choices(_FRAGMENTS, k=30))
    tests = [
      {'stdin': text, 'stdout': text},
      {'call': 'f', 'args': [text], 'result': text},
    ]
    outcome = judge.judge(text, tests[index % 2 :], time_limit=1.0)
    assert outcome.has_score, (text, outcome)
    assert outcome.detail.isascii()


def test_the_score_is_1_for_all_tests_or_their_share_with_pass_rate(judge):
  tests = [{'stdin': str(n), 'stdout': str(n)} for n in range(4)]
  program = 'n = int(input())\nprint(n if n != 1 else 7)'
  outcome = judge_code(program, tests, judge=judge)
  assert (outcome.score, outcome.status) == (0.0, Status.WRONG)
  partial = judge_code(program, tests, pass_rate=True, judge=judge)
  assert (partial.score, partial.status) == (0.75, Status.SCORED)
  assert partial.detail.startswith('test 2 of 4')
  failed = judge_code('print(9)', tests, pass_rate=True, judge=judge)
  assert (failed.score, failed.status) == (0.0, Status.WRONG)


def test_counts_tests_after_a_timeout_as_failed(judge):
  tests = [{'stdin': str(n), 'stdout': str(n)} for n in range(4)]
  program = 'n = int(input())\nprint(n, flush=True)\nwhile n == 2: pass'
  start = time.monotonic()
  outcome = judge_code(
    program, tests, time_limit=1.0, pass_rate=True, judge=judge
  )
  assert outcome.score == 0.5
  assert time.monotonic() - start < 4.0


def test_invalid_suites_are_infrastructure_errors(judge):
  for suite in ('assert (', 'import jax', 'assert True', 'def test_(tmp): 1'):
    outcome = judge_code('x = 1', [{'asserts': suite}], judge=judge)
    assert outcome.status is Status.INFRASTRUCTURE
    assert math.isnan(outcome.score)
    assert 'the suite' in outcome.detail


@pytest.mark.parametrize(
  'suite',
  [
    {'asserts': 'from solution import x\ndef check_x():\n  assert x() == 1'},
    {
      'asserts': 'from solution import x\nasync def test_x():\n  assert x() == 1'
    },
    {'asserts': 'from solution import x\ndef test_x():\n  yield\n  assert 0'},
    {
      'asserts': 'import pytest\nfrom solution import x\n'
      "@pytest.mark.parametrize('n', [])\ndef test_x(n):\n  assert x() == n"
    },
    {'asserts': 'def verify(x):\n  assert x() == 1', 'entry': 'x'},
  ],
)
def test_suites_that_run_no_test_score_no_program(judge, suite):
  for value in (1, 2):
    outcome = judge_code(f'def x(): return {value}', [suite], judge=judge)
    assert outcome.status is Status.INFRASTRUCTURE


def test_reports_a_missing_judge(monkeypatch):
  monkeypatch.setattr(bubblewrap.shutil, 'which', lambda name: None)
  with pytest.raises(
    JudgeError, match=r'bubblewrap \(bwrap\) is not installed'
  ):
    Judge(backend='bubblewrap')
  monkeypatch.setattr(backends, '_candidates', lambda *_: iter(()))
  monkeypatch.setattr(
    'covrl.rewards.sandbox.judge._find_judge', _make_judge_or_error
  )
  outcome = judge_code(ADD, SUM)
  assert outcome.status is Status.INFRASTRUCTURE
  assert math.isnan(outcome.score)
  assert 'a sandbox backend must work' in outcome.detail


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    ({'backend': 'docker'}, "backend must be one of .* got 'docker'"),
    ({'backend': 'remote'}, 'url must be an address'),
    ({'memory_limit': 0}, 'memory_limit must be positive, got 0'),
    ({'processes': -1}, 'processes must be positive'),
    ({'workers': 0}, 'workers must be positive'),
  ],
)
def test_refuses_invalid_judge_settings(arguments, sentence):
  with pytest.raises(ValueError, match=sentence):
    Judge(**arguments)


def _make_judge_or_error() -> Judge | JudgeError:
  try:
    return Judge()
  except JudgeError as error:
    return error
