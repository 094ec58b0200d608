# SPDX-License-Identifier: Apache-2.0
"""Judging of programs: outcomes, refused input, limits and leftovers."""

import concurrent.futures
import contextlib
import math
import os
import pathlib
import random
import subprocess
import sys
import textwrap
import time

import pytest
from rewards.leftovers import leftovers

from covrl.rewards import Judge, JudgeError, Status, judge_code
from covrl.rewards.sandbox import (
  backends,
  bubblewrap,
  interpreter,
)

ROOT = pathlib.Path(__file__).parents[2]
ADD = 'print(sum(map(int, input().split())))'
SUM = [{'stdin': '3 4', 'stdout': '7'}]
# Imports the judge without JAX, as in workers of the reward pool.
WITHOUT_JAX = f"""
import sys, types
sys.path.insert(0, {str(ROOT / 'tests')!r})
covrl = sys.modules['covrl'] = types.ModuleType('covrl')
covrl.__path__ = [{str(ROOT / 'covrl')!r}]
"""


@pytest.fixture(scope='module')
def judge():
  return Judge(backend='bubblewrap')


@pytest.fixture(scope='module')
def small():
  """A judge with low memory and process limits."""
  return Judge(backend='bubblewrap', memory_limit=96 << 20, processes=24)


def test_works_in_a_plain_script(tmp_path):
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
  for _ in range(5000):
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
    assert outcome.is_judged
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
  jax = judge.judge('import jax\nprint(7)', SUM)
  assert "No module named 'jax'" in jax.detail
  bare = Judge(backend='bubblewrap', packages=())
  outcome = bare.judge('import numpy\nprint(7)', SUM)
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
  for number in range(count):
    text = generator.randbytes(generator.randrange(200)).decode(
      *(('latin-1',) if number % 3 else ('utf-8', 'surrogateescape'))
    )
    if number % 3 == 2:
      text = ''.join(generator.choices(_FRAGMENTS, k=30))
    tests = [
      {'stdin': text, 'stdout': text},
      {'call': 'f', 'args': [text], 'result': text},
    ]
    outcome = judge.judge(text, tests[number % 2 :], time_limit=1.0)
    assert outcome.is_judged, (text, outcome)
    assert outcome.detail.isascii()


def test_scores_all_tests_or_the_share(judge):
  tests = [{'stdin': str(n), 'stdout': str(n)} for n in range(4)]
  program = 'n = int(input())\nprint(n if n != 1 else 7)'
  outcome = judge_code(program, tests, judge=judge)
  assert (outcome.score, outcome.status) == (0.0, Status.WRONG)
  share = judge_code(program, tests, pass_rate=True, judge=judge)
  assert (share.score, share.status) == (0.75, Status.SCORED)
  assert share.detail.startswith('test 2 of 4')
  none = judge_code('print(9)', tests, pass_rate=True, judge=judge)
  assert (none.score, none.status) == (0.0, Status.WRONG)


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
  'program',
  [
    # One process; many; pages that they share in writing; files; empty files.
    'x = bytearray(200 << 20)',
    """
    import os, time
    for _ in range(10):
      if os.fork() == 0: break
    x = bytearray(20 << 20)
    time.sleep(60)
    """,
    """
    import mmap
    x = mmap.mmap(-1, 200 << 20)
    for i in range(0, len(x), 4096): x[i] = 1
    """,
    """
    for path in ('/tmp', '/dev/shm'):
      for i in range(2):
        with open(f'{path}/{i}', 'wb') as file: file.write(bytes(30 << 20))
    """,
    """
    import os
    for i in range(10**7): os.close(os.open(f'/tmp/{i}', os.O_CREAT))
    """,
  ],
)
def test_memory_limit_covers_all_processes_and_files(small, program):
  outcome = small.judge(textwrap.dedent(program), SUM, time_limit=20.0)
  assert (outcome.score, outcome.status) == (0.0, Status.CRASH)
  reasons = ('more than 96 MiB of memory', 'MemoryError')
  assert any(reason in outcome.detail for reason in reasons), outcome


def test_shared_memory_is_counted_once(small):
  program = """
    import os, time
    x = bytearray(40 << 20)
    children = []
    for _ in range(8):
      child = os.fork()
      if child == 0:
        time.sleep(0.5)
        os._exit(0)
      children.append(child)
    for child in children: os.waitpid(child, 0)
    print(7)
    """
  outcome = small.judge(textwrap.dedent(program), SUM)
  assert outcome.status is Status.SCORED, outcome


def test_number_of_processes_is_limited_for_every_user(small):
  program = """
    import os, time
    n = 0
    try:
      while n < 200:
        if os.fork() == 0:
          time.sleep(60)
        n += 1
    except OSError: pass
    print(n)
    """
  outcome = small.judge(textwrap.dedent(program), SUM)
  # The runner and the program itself are two of the 24.
  assert outcome.detail == "test 1 of 1: '7' was expected, got '22'"


def test_killed_trainer_leaves_no_sandbox_behind(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
    WITHOUT_JAX
    + textwrap.dedent("""
      import threading, time
      from covrl.rewards import Judge
      judge = Judge(backend='bubblewrap')
      forks = 'import os, time\\nos.fork()\\ntime.sleep(1000)'
      test = [{'stdin': '', 'stdout': ''}]
      threading.Thread(
        target=judge.judge, args=(forks, test), kwargs={'time_limit': 900.0}
      ).start()
      time.sleep(1.0)
      print('running', flush=True)
      """)
  )
  with subprocess.Popen(
    [sys.executable, str(script)], stdout=subprocess.PIPE
  ) as trainer:
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == b'running\n'
    inside = _descendants(trainer.pid)
    assert len(inside) >= 4
    trainer.kill()
  deadline = time.monotonic() + 10.0
  while any(map(_runs, inside)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(_runs, inside))


def test_judge_as_process_1_reaps_its_children():
  """As process 1 of a container, the judge inherits orphaned processes."""
  program = WITHOUT_JAX + textwrap.dedent("""
    import ctypes
    from rewards.leftovers import leftovers
    from covrl.rewards import Judge
    assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
    judge = Judge(backend='bubblewrap')
    test = [{'stdin': '', 'stdout': ''}]
    before = leftovers()
    for source in ('import os; os.fork()', 'import os; os.kill(1, 9)',
                   'while True: print(1)', 'x = bytearray(1 << 40)',
                   'import time; time.sleep(9)'):
      judge.judge(source, test, time_limit=0.5)
    assert leftovers() == before, (before, leftovers())
    """)
  subprocess.run([sys.executable, '-c', program], check=True)


def test_leaves_nothing_behind_and_does_not_slow_others(judge):
  """A short form of the leak test of `tests/benchmarks/judging.py`."""
  hostile = [
    'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass',
    'import os, signal\nos.kill(-1, signal.SIGKILL)',
    'import os\nfor _ in range(9):\n  if os.fork() == 0: os.close(1)\nos._exit(0)',
    "open('/dev/shm/x', 'w').write('x' * 10**6)\nwhile True: print(1)",
    'from multiprocessing import shared_memory as s\ns.SharedMemory(create=True, size=999)',
  ]
  judge.judge(ADD, SUM)
  before = leftovers()
  alone = _busy_seconds(judge)
  for source in hostile * 3:
    outcome = judge.judge(source, SUM, time_limit=0.3)
    assert outcome.score == 0.0
    assert outcome.is_judged
  assert leftovers() == before
  # CPU time, which other load on the machine affects little.
  assert _busy_seconds(judge) < 3 * alone + 0.1


def test_threads_can_share_a_judge(judge):
  before = leftovers()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    outcomes = list(
      pool.map(
        lambda n: judge.judge(ADD, [{'stdin': f'{n} 1', 'stdout': str(n + 1)}]),
        range(24),
      )
    )
  assert all(outcome.score == 1.0 for outcome in outcomes)
  assert leftovers() == before


def test_reports_a_missing_judge(monkeypatch):
  monkeypatch.setattr(bubblewrap.shutil, 'which', lambda name: None)
  with pytest.raises(
    JudgeError, match=r'bubblewrap \(bwrap\) is not installed'
  ):
    Judge(backend='bubblewrap')
  monkeypatch.setattr(backends, '_candidates', lambda *_: iter(()))
  monkeypatch.setattr('covrl.rewards.sandbox.judge._find_judge', _no_judge)
  outcome = judge_code(ADD, SUM)
  assert outcome.status is Status.INFRASTRUCTURE
  assert math.isnan(outcome.score)
  assert 'programs need a sandbox' in outcome.detail


def test_sandbox_that_does_not_start_gives_no_score(judge, monkeypatch):
  launcher = bubblewrap.Bubblewrap(
    interpreter=interpreter.find_interpreter(), mode='user', scratch=1 << 20
  )
  broken = Judge(backend='bubblewrap')
  monkeypatch.setattr(broken, '_launcher', launcher)
  monkeypatch.setattr(
    bubblewrap.Bubblewrap, 'command', lambda *_, **__: ['bwrap', '--no-such']
  )
  outcome = broken.judge(ADD, SUM)
  assert outcome.status is Status.INFRASTRUCTURE
  assert not outcome.is_judged
  assert 'no-such' in outcome.detail


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    ({'backend': 'docker'}, "backend must be one of .* got 'docker'"),
    ({'backend': 'remote'}, 'needs a url'),
    ({'memory_limit': 0}, 'memory_limit must be positive, got 0'),
    ({'processes': -1}, 'processes must be positive'),
    ({'workers': 0}, 'workers must be positive'),
  ],
)
def test_refuses_invalid_judge_settings(arguments, sentence):
  with pytest.raises(ValueError, match=sentence):
    Judge(**arguments)


def _no_judge() -> Judge | JudgeError:
  try:
    return Judge()
  except JudgeError as error:
    return error


def _busy_seconds(judge: Judge) -> float:
  """CPU time of a fixed program, measured by the program itself."""
  program = """
    import time
    sum(i * i for i in range(10**6))
    print(time.process_time())
    """
  outcome = judge.judge(
    textwrap.dedent(program), [{'stdin': '', 'stdout': 'seconds'}]
  )
  return float(outcome.detail.rpartition("got '")[2].rstrip("'"))


def _descendants(pid: int) -> list[int]:
  found, waiting = [], [pid]
  while waiting:
    current = waiting.pop()
    for task in pathlib.Path(f'/proc/{current}/task').iterdir():
      children = (task / 'children').read_text().split()
      waiting += map(int, children)
      found += map(int, children)
  return found


def _runs(pid: int) -> bool:
  with contextlib.suppress(OSError):
    return ') Z' not in pathlib.Path(f'/proc/{pid}/stat').read_text()
  return False
