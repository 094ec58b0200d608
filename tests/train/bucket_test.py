# SPDX-License-Identifier: Apache-2.0
"""A run in a storage bucket equals the same run on a local disk."""

import json
import signal
import subprocess
import time

import bucket
import pytest
from train import process, runs
from train.runs import SMALL, without_clock

from covrl.cli import main
from covrl.exit_codes import Exit
from covrl.run.directory import RunDirectory

WORKDIR = 'gs://bucket/run'


def lines(content):
  """Returns the metric lines of all parts."""
  parts = content.names('run/metrics/')
  text = ''.join(content.text(part) for part in parts)
  return [json.loads(line) for line in text.splitlines()]


def command(workdir=WORKDIR, /, **settings):
  """Command that trains, in the bucket by default."""
  return process.arguments('toy_kl_cov', workdir, **{**SMALL, **settings})


def test_a_stopped_run_in_a_bucket_is_resumed_there_and_as_a_copy(
  tmp_path_factory, monkeypatch
):
  with bucket.serve_bucket() as (content, environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    settings = {'logging__tensorboard': True}
    run_environment = {**process.ENVIRONMENT, **environment}
    first = subprocess.Popen(
      [*command(**settings), '--profile_steps=0:0'],
      env=run_environment,
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
    _, stderr = first.communicate(timeout=600)
    assert first.returncode == Exit.RESTART, stderr
    assert 'run/.lock' not in content.objects
    assert any(n.endswith('.xplane.pb') for n in content.names('run/profile/'))
    copy = tmp_path_factory.mktemp('copy')
    for name in content.names('run/'):
      file = copy / name.removeprefix('run/')
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(content.objects[name][0])
    # The same command resumes the run, also a copy of it on a disk.
    for workdir in (WORKDIR, copy):
      resumed = subprocess.run(
        command(workdir, **settings),
        env=run_environment,
        check=True,
        timeout=900,
        capture_output=True,
        text=True,
      )
      assert 'warning' not in resumed.stderr
    main(['report', WORKDIR])
    assert 'toy_kl_cov' in content.text('run/report.html')
    assert RunDirectory(WORKDIR).recipe().name == 'toy_kl_cov:kl_cov'
    assert content.names('run/tb/train/')
    assert content.names('run/rollouts/')
    assert content.names('run/evaluation/')
    actual_lines = lines(content)
  expected = runs.finished_run(tmp_path_factory, 'toy_kl_cov', **SMALL)
  expected_lines = process.metric_lines(expected)
  for actual in (actual_lines, process.metric_lines(copy)):
    assert [without_clock(x) for x in actual] == [
      without_clock(x) for x in expected_lines
    ]
