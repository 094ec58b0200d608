# SPDX-License-Identifier: Apache-2.0
"""A run whose directory is in a bucket is the run that it is on a disk."""

import json
import signal
import subprocess
import time

import bucket
import pytest
from train import process
from train.processes_test import CLOCK, SMALL

from covrl.cli import main
from covrl.exit_codes import Exit
from covrl.run.directory import RunDirectory

WORKDIR = 'gs://bucket/run'


def lines(content):
  """The metric lines, from all parts."""
  parts = content.names('run/metrics/')
  text = ''.join(content.text(part) for part in parts)
  return [json.loads(line) for line in text.splitlines()]


def command(**settings):
  return process.arguments('toy_kl_cov', WORKDIR, **{**SMALL, **settings})


def test_a_run_in_a_bucket_is_stopped_and_goes_on(tmp_path, monkeypatch):
  with bucket.served() as (content, environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    settings = {'logging__tensorboard': True}
    own = {**process.ENVIRONMENT, **environment}
    first = subprocess.Popen(
      [*command(**settings), '--profile_steps=0:0'],
      env=own,
      stderr=subprocess.PIPE,
      text=True,
    )
    deadline = time.monotonic() + 900
    while not any('00000001/manifest' in n for n in content.names('run/')):
      late = time.monotonic() > deadline
      if late or first.poll() is not None:
        first.kill()
        pytest.fail(f'no checkpoint, late: {late}: {first.communicate()}')
      time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=600)
    assert first.returncode == Exit.RESTART, said
    assert 'run/.lock' not in content.objects
    assert any(n.endswith('.xplane.pb') for n in content.names('run/profile/'))
    # The same command goes on.
    subprocess.run(
      command(**settings), env=own, check=True, timeout=900, capture_output=True
    )
    main(['report', WORKDIR])
    assert 'toy_kl_cov' in content.text('run/report.html')
    assert RunDirectory(WORKDIR).recipe().name == 'toy_kl_cov'
    assert content.names('run/tb/train/')
    assert content.names('run/rollouts/')
    assert content.names('run/evaluation/')
    ours = lines(content)
  theirs = process.train('toy_kl_cov', tmp_path / 'run', **SMALL)
  assert len(ours) == len(theirs)
  for line, other in zip(ours, theirs, strict=True):
    for name, value in other.items():
      if not name.startswith(CLOCK):
        assert line[name] == value, name
