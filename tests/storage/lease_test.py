# SPDX-License-Identifier: Apache-2.0
"""Leases of run directories in an emulated bucket."""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from covrl.config import ConfigError
from covrl.exit_codes import Exit
from covrl.run import lock
from covrl.run.directory import RunDirectory


def test_refuses_a_live_lease_and_takes_an_expired_one(bucket, monkeypatch):
  monkeypatch.setattr(lock, '_RENEWAL_INTERVAL', 0.1)
  monkeypatch.setattr(lock, '_EXPIRY', 1.0)
  directory = RunDirectory('gs://bucket/run')
  with directory.locked():
    second_lease = RunDirectory('gs://bucket/run').locked()
    with pytest.raises(ConfigError, match='is in use by another process'):
      second_lease.__enter__()
    assert bucket.names() == ['run/.lock']
  assert not bucket.names()
  # Its process was killed.
  bucket.put('run/.lock', b'{"process": "another", "beat": 7}')
  began = time.monotonic()
  with directory.locked():
    assert time.monotonic() - began > 1.0
    assert 'another' not in bucket.text('run/.lock')


def test_only_one_process_acquires_a_lease(bucket, monkeypatch):
  monkeypatch.setattr(lock, '_RENEWAL_INTERVAL', 0.1)
  acquired, refused = [], []

  def run():
    try:
      with RunDirectory('gs://bucket/run').locked():
        acquired.append(1)
        time.sleep(2.0)
    except ConfigError:
      refused.append(1)

  threads = [threading.Thread(target=run) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (len(acquired), len(refused)) == (1, 3)


@contextlib.contextmanager
def run_with_lease(body, **settings):
  """Starts a process that holds the lease and then executes the line `body`."""
  script = (
    'import time\n'
    'from covrl.run import lock\n'
    'from covrl import storage\n'
    + ''.join(f'lock.{name} = {value}\n' for name, value in settings.items())
    + 'with lock.acquire(storage.as_path("gs://bucket/run")) as lease:\n'
    '  print("in", flush=True)\n'
    f'  {body}\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', script],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  try:
    assert process.stdout is not None
    assert process.stdout.readline() == 'in\n'
    yield process
  finally:
    process.kill()


def test_exits_when_the_lease_is_lost(bucket):
  with run_with_lease('time.sleep(600)', _RENEWAL_INTERVAL=0.2) as process:
    # A lease whose object is gone is free.
    process_name = json.loads(bucket.text('run/.lock'))['process']
    with bucket.lock:
      del bucket.objects['run/.lock']
    deadline = time.monotonic() + 60
    while 'run/.lock' not in bucket.names() and time.monotonic() < deadline:
      time.sleep(0.05)
    assert json.loads(bucket.text('run/.lock'))['process'] == process_name
    bucket.put('run/.lock', b'{"process": "another", "beat": 0}')
    _, stderr = process.communicate(timeout=300)
  assert process.returncode == Exit.REFUSED == 2
  assert stderr.startswith('covrl: another run has taken gs://bucket/run')
  assert stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('body', 'interval'),
  [
    pytest.param('time.sleep(600)', 2.0, id='at the next renewal'),
    pytest.param(
      'while True: lease.check(); time.sleep(0.05)', 600.0, id='at a write'
    ),
  ],
)
def test_exits_when_another_run_may_have_used_the_directory_meanwhile(
  bucket, body, interval
):
  """The process is suspended while another run takes the lease and releases it."""
  settings = {'_RENEWAL_INTERVAL': interval, '_EXPIRY': 5.0}
  with run_with_lease(body, **settings) as process:
    process.send_signal(signal.SIGSTOP)
    with bucket.lock:
      del bucket.objects['run/.lock']
    bucket.put('run/metrics/000000.jsonl', b'of another run')
    time.sleep(5.5)
    assert bucket.names() == ['run/metrics/000000.jsonl']
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=300)
  assert process.returncode == Exit.REFUSED
  assert stderr == (
    'covrl: another run may have used gs://bucket/run: this one did not renew its'
    ' lease for 5 s\n'
  )
  assert bucket.names() == ['run/metrics/000000.jsonl']


def test_a_suspended_run_goes_on_where_no_other_has_taken_its_lease(bucket):
  body = 'for _ in range(4): lease.check(); time.sleep(0.5)'
  with run_with_lease(body, _RENEWAL_INTERVAL=600.0, _EXPIRY=1.0) as process:
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr
  assert not bucket.names()
