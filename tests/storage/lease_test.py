# SPDX-License-Identifier: Apache-2.0
"""Leases of run directories in an emulated bucket."""

import json
import pathlib
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


def test_exits_when_the_lease_is_lost(bucket):
  script = (
    'import time\n'
    'from covrl.run import lock\n'
    'from covrl import storage\n'
    'lock._RENEWAL_INTERVAL = 0.2\n'
    'with lock.acquire(storage.as_path("gs://bucket/run")):\n'
    '  print("in", flush=True)\n'
    '  time.sleep(600)\n'
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
  finally:
    process.kill()
  assert process.returncode == Exit.REFUSED == 2
  assert stderr.startswith('covrl: another run has taken gs://bucket/run')
  assert stderr.count('\n') == 1
