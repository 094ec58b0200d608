# SPDX-License-Identifier: Apache-2.0
"""When to stop and where; who watches; what is traced."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import typing

import pytest
from train.process import ENVIRONMENT, arguments, lines, train

from covrl.exit_codes import Exit
from covrl.run import maintenance, preemption
from covrl.run.preemption import Stopped, StopSignal
from covrl.run.profiler import Profiler
from covrl.run.watchdog import Watchdog
from covrl.train import CheckpointStore

SLOW = {
  'warm_start__steps': 4,
  'train__iterations': 3,
  'evaluate__every': 100,
  'evaluate__problems': 2,
  'evaluate__samples': 1,
  'checkpoint__every': 100,
  'checkpoint__every_updates': 0,
  'logging__samples_every': 100,
  'logging__entropy_change_every': 0,
}


class Board:
  """What processes tell one another."""

  def __init__(self):
    self.answers = {}

  def key_value_dir_get(self, prefix):
    return [pair for pair in self.answers.items() if pair[0].startswith(prefix)]

  def key_value_set(self, key, value):
    self.answers[key] = value


@pytest.fixture
def board(monkeypatch):
  """Makes this process number 0 of 2."""
  board = Board()
  monkeypatch.setattr(preemption, '_client', lambda: board)
  monkeypatch.setattr(preemption.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(preemption.jax, 'process_index', lambda: 0)
  monkeypatch.setattr(preemption, '_INTERVAL', 0.0)
  return board


def test_one_process_stops_where_it_is():
  stop = StopSignal()
  stop.at(3)
  stop.poll()
  stop.before_update()
  stop.ask()
  # An update that has begun is finished.
  stop.poll()
  stop.at(4)
  with pytest.raises(Stopped):
    stop.poll()
  with pytest.raises(Stopped):
    stop.before_update()


def test_processes_stop_at_the_place_of_the_foremost(board):
  stop = StopSignal()
  stop.at(3)
  board.answers['covrl/stop/1'] = '4'
  # The other one has begun the update after this place: it needs this one.
  stop.poll()
  assert board.answers['covrl/stop/0'] == '3'
  stop.before_update()
  stop.at(4)
  with pytest.raises(Stopped):
    stop.before_update()


def test_a_rollout_is_given_up_when_all_have_answered(board):
  stop = StopSignal()
  stop.at(3)
  stop.ask()
  stop.poll()
  board.answers['covrl/stop/1'] = '3'
  with pytest.raises(Stopped):
    stop.poll()


def test_answers_are_not_waited_for_without_end(board):
  stop = StopSignal(patience=0.05)
  stop.ask()
  with pytest.raises(RuntimeError, match='must answer'):
    stop.before_update()


def test_sigterm_is_a_wish_while_listening():
  before = signal.getsignal(signal.SIGTERM)
  try:
    stop = StopSignal()
    with stop.listening():
      stop.poll()
    assert signal.getsignal(signal.SIGTERM) == before
    with stop.listening():
      for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
      with pytest.raises(Stopped):
        stop.poll()
    # While it ends, another one does no harm.
    os.kill(os.getpid(), signal.SIGTERM)
  finally:
    signal.signal(signal.SIGTERM, before)


class Metadata(http.server.BaseHTTPRequestHandler):
  """Google's metadata server, as far as it announces things."""

  said: typing.ClassVar = {'maintenance-event': 'NONE', 'preempted': 'FALSE'}

  def do_GET(self):
    assert self.headers['Metadata-Flavor'] == 'Google'
    self.send_response(200)
    self.end_headers()
    self.wfile.write(self.said[self.path.rpartition('/')[2]].encode())

  def log_message(self, format, *arguments):
    pass


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE'),
    ('preempted', 'TRUE'),
  ],
)
def test_notices_of_the_cloud(monkeypatch, name, value):
  monkeypatch.setattr(Metadata, 'said', dict(Metadata.said))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Metadata) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv('GCE_METADATA_HOST', f'127.0.0.1:{server.server_port}')
    told = threading.Event()
    with maintenance.watched(told.set, interval=0.01):
      assert not told.wait(0.2)
      Metadata.said[name] = value
      assert told.wait(10)
    server.shutdown()
    thread.join()
  assert not maintenance.is_notice(name)


def test_nothing_moves():
  script = (
    'import threading, time\n'
    'from covrl.run.watchdog import Watchdog\n'
    'def sleeper():\n'
    '  time.sleep(600)\n'
    'threading.Thread(target=sleeper, daemon=True).start()\n'
    'with Watchdog(0.4) as dog:\n'
    '  for _ in range(8):\n'
    '    time.sleep(0.1)\n'
    '    dog.beat()\n'
    '  print("moved", flush=True)\n'
    '  time.sleep(600)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
    env=ENVIRONMENT,
  )
  assert done.returncode == Exit.STALLED
  assert done.stdout == 'moved\n'
  assert 'nothing moved for' in done.stderr
  assert 'in sleeper' in done.stderr
  assert 'in <module>' in done.stderr


def test_bad_input():
  with pytest.raises(ValueError, match='--stall_after must be'):
    Watchdog(-1)
  for steps in ('3', '5:3', 'a:b'):
    with pytest.raises(ValueError, match='--profile_steps must be'):
      Profiler(steps, 'x')


def test_told_to_stop_in_a_rollout(tmp_path):
  """It is given up, and drawn again; nothing else is different."""
  whole, workdir = tmp_path / 'whole', tmp_path / 'stopped'
  train('toy_slow', whole, **SLOW)
  command = [*arguments('toy_slow', workdir, **SLOW), '--profile_steps=0:0']
  process = subprocess.Popen(
    command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 900
  # After the last update of the first iteration it samples and scores.
  while not any(line['step'] >= 4 for line in lines(workdir, 'train')):
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.005)
  for _ in range(2):
    process.send_signal(signal.SIGTERM)
  _, error = process.communicate(timeout=600)
  assert process.returncode == Exit.RESTART
  assert 'told to stop' in error
  saved = CheckpointStore(workdir / 'checkpoints', keep=1).latest()
  assert saved is not None
  assert saved.position == 4
  assert list((workdir / 'profile').rglob('*.xplane.pb'))
  train('toy_slow', workdir, **SLOW)
  ours, theirs = lines(workdir), lines(whole)
  assert len(ours) == len(theirs)
  for line, other in zip(ours, theirs, strict=True):
    for name, value in other.items():
      if not name.startswith(('seconds', 'tokens_per', 'time/')):
        assert line[name] == value, name
