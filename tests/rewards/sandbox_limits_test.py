# SPDX-License-Identifier: Apache-2.0
"""Limits of memory and processes of a sandbox, and its clean-up."""

import concurrent.futures
import contextlib
import pathlib
import subprocess
import sys
import textwrap
import time

import pytest
from rewards.leftovers import (
  descendants,
  leftovers,
  leftovers_once_ended,
)

from covrl.rewards import Judge, Status
from covrl.rewards.sandbox import (
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
def small():
  """A judge with low memory and process limits."""
  return Judge(backend='bubblewrap', memory_limit=96 << 20, processes=24)


@pytest.mark.parametrize(
  'program',
  [
    # Memory of one process; of many; of a shared mapping; of files; of empty files.
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
    import time
    time.sleep(60)  # The limit is checked at intervals.
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
    inside = descendants(trainer.pid)
    assert len(inside) >= 4
    trainer.kill()
  deadline = time.monotonic() + 10.0
  while any(map(_is_running, inside)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(_is_running, inside))


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
  attacks = [
    'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass',
    'import os, signal\nos.kill(-1, signal.SIGKILL)',
    'import os\nfor _ in range(9):\n  if os.fork() == 0: os.close(1)\nos._exit(0)',
    "open('/dev/shm/x', 'w').write('x' * 10**6)\nwhile True: print(1)",
    'from multiprocessing import shared_memory as s\ns.SharedMemory(create=True, size=999)',
  ]
  judge.judge(ADD, SUM)
  before = leftovers()
  seconds_alone = _busy_seconds(judge)
  for source in attacks * 3:
    outcome = judge.judge(source, SUM, time_limit=0.3)
    assert outcome.score == 0.0
    assert outcome.has_score
  assert leftovers_once_ended(before) == before
  # CPU time, which other load on the machine affects little.
  assert _busy_seconds(judge) < 3 * seconds_alone + 0.1


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
  assert leftovers_once_ended(before) == before


def test_sandbox_that_does_not_start_gives_no_score(judge, monkeypatch):
  launcher = bubblewrap.Bubblewrap(
    interpreter=interpreter.find_interpreter(),
    mode='user',
    scratch_size=1 << 20,
  )
  broken_judge = Judge(backend='bubblewrap')
  monkeypatch.setattr(broken_judge, '_launcher', launcher)
  monkeypatch.setattr(
    bubblewrap.Bubblewrap, 'command', lambda *_, **__: ['bwrap', '--no-such']
  )
  outcome = broken_judge.judge(ADD, SUM)
  assert outcome.status is Status.INFRASTRUCTURE
  assert not outcome.has_score
  assert 'no-such' in outcome.detail


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


def _is_running(pid: int) -> bool:
  with contextlib.suppress(OSError):
    return ') Z' not in pathlib.Path(f'/proc/{pid}/stat').read_text()
  return False
