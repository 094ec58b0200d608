# SPDX-License-Identifier: Apache-2.0
"""The sandbox backends besides bubblewrap: Landlock, a remote server, and no sandbox."""

import contextlib
import functools
import http.server
import json
import math
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from rewards.leftovers import leftovers, leftovers_once_ended

from covrl.rewards import Judge, JudgeError, Status, cached_judge, code_reward
from covrl.rewards.code import score_code
from covrl.rewards.sandbox import backends, interpreter
from covrl.rewards.sandbox import landlock as landlock_backend
from covrl.rewards.sandbox.limits import Limits
from covrl.rewards.sandbox.session import Session
from covrl.rewards.sandbox.test_formats import PrintTest

ADD = 'print(sum(map(int, input().split())))'
SUM = [{'stdin': '3 4', 'stdout': '7'}]


@pytest.fixture(scope='module')
def landlock():
  """A function that judges a program in Landlock's sandbox."""
  # Root stays root: its interpreter may be in a directory that other users cannot
  # read, and Landlock restricts root, too.
  launcher = landlock_backend.Landlock(
    interpreter=interpreter.find_interpreter(), give_up_root=False
  )

  def judge_program(program: str, seconds: float = 4.0):
    source = textwrap.dedent(program).encode()
    with Session(launcher, Limits(), source, seconds) as session:
      return session.check(PrintTest(b'3 4', b'7'))

  return judge_program


def test_landlock_runs_control_programs(landlock):
  assert landlock(ADD).status is Status.SCORED
  assert landlock('import json, re\n' + ADD).status is Status.SCORED
  threads = """
    import threading
    thread = threading.Thread(target=lambda: print(7))
    thread.start()
    """
  assert landlock(threads).status is Status.SCORED


def test_workers_have_the_backend_that_their_run_has_chosen(monkeypatch):
  def arguments(backend=None):
    score = code_reward(backend=backend).score
    assert isinstance(score, functools.partial)
    return score.keywords

  assert arguments('landlock')['backend'] == 'landlock'
  assert arguments()['backend'] == cached_judge().backend
  # A worker in which bubblewrap does not work must not take another one.
  monkeypatch.setattr(
    backends, '_failure', lambda launcher, _: 'not in this worker'
  )
  chosen = arguments()
  cached_judge.cache_clear()
  try:
    with pytest.raises(JudgeError, match=r"backend '\w+' must work here"):
      score_code(ADD, SUM, **chosen)
  finally:
    cached_judge.cache_clear()


def test_landlock_contains_attacks(landlock, tmp_path):
  secret = tmp_path / 'secret'
  secret.write_text('7')
  attacks = {
    f'print(open({str(secret)!r}).read())': 'PermissionError',
    "print(open('/proc/self/environ').read())": 'PermissionError',
    "open('/tmp/7', 'w')": 'PermissionError',
    'import socket; socket.socket()': 'OSError: [Errno 38]',
    f'import os; os.kill({os.getpid()}, 0)': 'OSError: [Errno 38]',
    'import os; os.fork()': 'OSError: [Errno 38]',
    'import os; os.setsid()': 'OSError: [Errno 38]',
    "import os; os.execv('/bin/true', ['true'])": 'OSError: [Errno 38]',
  }
  for program, reason in attacks.items():
    outcome = landlock(program)
    assert outcome.status is Status.CRASH
    assert reason in outcome.detail, (program, outcome)
  before = leftovers()
  assert landlock('while True: pass', 0.5).status is Status.TIMEOUT
  assert leftovers_once_ended(before) == before


@pytest.fixture
def server():
  """A server with SandboxFusion's interface that uses the local sandbox."""
  requests = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      size = int(self.headers['Content-Length'])
      request = json.loads(self.rfile.read(size))
      requests.append((self.path, request))
      completed = None
      with contextlib.suppress(subprocess.TimeoutExpired):
        completed = subprocess.run(
          [sys.executable, '-I', '-S', '-c', request['code']],
          input=request['stdin'],
          capture_output=True,
          text=True,
          check=False,
          timeout=request['run_timeout'],
        )
      run = {'status': 'TimeLimitExceeded', 'stdout': '', 'return_code': None}
      if completed is not None:
        run = {
          'status': 'Finished',
          'stdout': completed.stdout,
          'return_code': completed.returncode,
        }
      status = 'Success' if completed and not completed.returncode else 'Failed'
      answer = json.dumps({'status': status, 'run_result': run}).encode()
      self.send_response(200)
      self.end_headers()
      self.wfile.write(answer)

    def log_message(self, format, *args):
      del format, args

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}', requests
    server.shutdown()
    thread.join()


def test_remote_server_runs_programs(server):
  url, requests = server
  judge = Judge(backend='remote', url=url)
  assert judge.backend == 'remote'
  call = [{'call': 'add', 'args': [3, 4], 'result': 7}]
  assert judge.judge(ADD, SUM, time_limit=20.0).status is Status.SCORED
  assert judge.judge('print(8)', SUM, time_limit=20.0).status is Status.WRONG
  assert judge.judge('1 / 0', SUM, time_limit=20.0).status is Status.CRASH
  endless = judge.judge('while True: pass', SUM, time_limit=0.5)
  assert endless.status is Status.TIMEOUT
  add = judge.judge('def add(a, b): return a + b', call, time_limit=20.0)
  assert add.status is Status.SCORED, add
  wrong_result = judge.judge(
    'def add(a, b): return True', call, time_limit=20.0
  )
  assert wrong_result.status is Status.WRONG
  no_program = judge.judge('def add(', call, time_limit=20.0)
  assert no_program.status is Status.UNPARSABLE
  # Asserts need a local sandbox.
  suite = judge.judge('x = 1', [{'asserts': 'assert x == 1'}])
  assert suite.status is Status.INFRASTRUCTURE
  assert {path for path, _ in requests} == {'/run_code'}
  # The expected result is not sent to the server.
  assert set(requests[0][1]) == {
    'code',
    'language',
    'stdin',
    'run_timeout',
    'memory_limit_MB',
  }


def test_a_program_draws_the_same_numbers_each_time_in_every_backend(
  landlock, server
):
  script = 'from __future__ import annotations\nimport random\n'
  script += 'def f():\n  return random.random()\nprint(f())'
  late = "print(__import__('ran' + 'dom').random())"
  call = [{'call': 'f', 'args': [], 'result': 7}]
  unsandboxed = Judge(backend='unsandboxed')
  remote = Judge(backend='remote', url=server[0])

  def details(program: str) -> list[str]:
    return [
      *(landlock(program).detail, unsandboxed.judge(program, SUM).detail),
      remote.judge(program, SUM, time_limit=20.0).detail,
    ]

  for program in (script, late):
    first = details(program)
    assert details(program) == first
    assert all(' got ' in detail for detail in first), first
    # Backends have the same seeds.
    assert first[1] == first[2]
  judged = [remote.judge(script[:-10], call, time_limit=20.0) for _ in range(2)]
  assert judged[0] == judged[1]
  assert ' got 0.' in judged[0].detail
  # A server's interpreter runs the program as the main module.
  program = "import sys\nprint(7 if sys.modules['__main__'].sys is sys else 8)"
  assert remote.judge(program, SUM, time_limit=20.0).score == 1.0


def test_unreachable_server_gives_no_score():
  judge = Judge(backend='remote', url='http://127.0.0.1:9')
  outcome = judge.judge(ADD, SUM)
  assert outcome.status is Status.INFRASTRUCTURE
  assert math.isnan(outcome.score)
  assert 'http://127.0.0.1:9/run_code did not answer' in outcome.detail


def test_an_unsandboxed_judge_scores_programs_and_ends_them():
  judge = Judge(backend='unsandboxed')
  assert judge.backend == 'unsandboxed'
  assert judge.judge(ADD, SUM).status is Status.SCORED
  before = leftovers()
  endless = judge.judge('while True: pass', SUM, time_limit=0.5)
  assert endless.status is Status.TIMEOUT
  assert leftovers_once_ended(before) == before


def test_unsandboxed_programs_leave_no_processes_behind(tmp_path):
  judge = Judge(backend='unsandboxed')
  program = """
    import os, time
    for _ in range(3):
      if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
          open(f'FOLDER/{os.getpid()}', 'w').close()
          time.sleep(3600)
        os._exit(0)
    for _ in range(3): os.wait()
    time.sleep(0.2)
    """
  program = textwrap.dedent(program).replace('FOLDER', str(tmp_path))
  for ending in ('', 'while True: pass', 'os._exit(1)'):
    tests = [{'stdin': '', 'stdout': 'number'}] * 2
    outcome = judge.judge(
      program + ending, tests, time_limit=1.0, pass_rate=True
    )
    assert outcome.score == 0.0
  pids = {int(file.name) for file in tmp_path.iterdir()}
  assert len(pids) >= 3
  deadline = time.monotonic() + 5.0
  while _running(pids) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not _running(pids)


def _running(pids: set[int]) -> list[int]:
  """Returns those processes that run, if their ids have not been reused."""
  running = []
  for pid in pids:
    with contextlib.suppress(OSError):
      if pathlib.Path(f'/proc/{pid}/cmdline').read_bytes():
        running.append(pid)
  return running
