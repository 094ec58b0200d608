# SPDX-License-Identifier: Apache-2.0
"""Whole runs under faults: they end with one error message and resume bit for bit."""

import functools
import json
import pathlib
import shutil
import signal
import subprocess

import numpy as np
import pytest
from train import process, runs
from train.process import metric_lines
from train.processes_test import (
  checkpoint_arrays,
  start,
  wait_for_end,
  wait_for_step,
  with_file_size_limit,
)
from train.runs import SMALL, without_clock

from covrl.exit_codes import Exit
from covrl.run.checkpoint import CheckpointStore

pytestmark = pytest.mark.slow


def run(workdir, *options, disk_is_full=False):
  """Runs to the end; returns status and standard error.

  Args:
    workdir: the run directory.
    *options: further arguments of the command.
    disk_is_full: whether the disk fills up meanwhile.
  """
  command = [*process.arguments('toy_kl_cov', workdir, **SMALL), *options]
  completed = subprocess.run(
    with_file_size_limit(command) if disk_is_full else command,
    env=process.ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  return completed.returncode, completed.stderr


def error_messages(text):
  """Returns the error messages on standard error, and checks for tracebacks."""
  assert 'Traceback' not in text
  return [line for line in text.splitlines() if line.startswith('covrl:')]


def position(workdir):
  """Updates before the newest checkpoint, which must be whole."""
  saved = CheckpointStore(workdir / 'checkpoints', keep=1).latest()
  assert saved is not None
  assert saved.find_damage() is None
  return saved.position


def assert_same_arrays(workdir, expected_workdir):
  (position, leaves), (expected_position, expected_leaves) = (
    checkpoint_arrays(workdir),
    checkpoint_arrays(expected_workdir),
  )
  assert position == expected_position
  assert leaves.keys() == expected_leaves.keys()
  for name, leaf in expected_leaves.items():
    assert np.asarray(leaves[name]).tobytes() == np.asarray(leaf).tobytes()


def flip_a_bit(workdir, folder='*'):
  """Damages the largest file of the newest checkpoint; returns its directory."""
  saved = CheckpointStore(workdir / 'checkpoints', keep=1).latest()
  assert saved is not None
  newest = pathlib.Path(saved.path)
  data = max(newest.rglob(f'{folder}/d/*'), key=lambda f: f.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  return newest


def test_a_run_resumes_after_a_full_disk_and_damaged_files(
  tmp_path, tmp_path_factory
):
  uninterrupted = runs.finished_run(tmp_path_factory, 'toy_kl_cov', **SMALL)
  workdir = tmp_path / 'run'
  status, stderr = run(workdir, disk_is_full=True)
  assert (status, len(error_messages(stderr))) == (Exit.STORAGE, 1), stderr
  assert 'cannot be written: file too large' in stderr

  processes = [
    subprocess.Popen(
      process.arguments('toy_kl_cov', workdir, **SMALL),
      env=process.ENVIRONMENT,
      stderr=subprocess.PIPE,
      text=True,
    )
  ]
  wait_for_step(workdir, processes, 2)
  processes[0].kill()
  wait_for_end(processes)
  position_before = position(workdir)
  status, stderr = run(workdir, disk_is_full=True)
  assert (status, len(error_messages(stderr))) == (Exit.STORAGE, 1), stderr
  assert position(workdir) == position_before
  assert f'the checkpoint of update {position_before} is whole' in stderr

  newest = flip_a_bit(workdir)
  metrics = workdir / 'metrics.jsonl'
  metrics.write_bytes(metrics.read_bytes()[:-100])
  status, stderr = run(workdir, '--resume=strict')
  assert status == Exit.REFUSED
  (message,) = error_messages(stderr)
  assert f'{newest} is damaged' in message
  (workdir / 'config.json').unlink()
  status, stderr = run(workdir)
  assert status == 0, stderr
  assert f'warning: {workdir / "config.json"} was removed' in stderr
  assert f'warning: the checkpoint {newest} is damaged' in stderr
  assert (newest.parent / f'{newest.name}.damaged_1').is_dir()
  assert f'{newest} is damaged' in (workdir / 'report.html').read_text()
  runs.assert_same_metrics(workdir, uninterrupted)
  assert_same_arrays(workdir, uninterrupted)

  for path in (workdir / 'checkpoints').iterdir():
    shutil.rmtree(path)
  size = metrics.stat().st_size
  status, stderr = run(workdir)
  assert status == Exit.REFUSED
  (message,) = error_messages(stderr)
  assert 'must have a checkpoint beside' in message
  assert metrics.stat().st_size == size


def test_a_run_keeps_what_is_left_of_its_metrics(tmp_path, tmp_path_factory):
  uninterrupted = runs.finished_run(tmp_path_factory, 'toy_kl_cov', **SMALL)
  workdir = tmp_path / 'run'
  shutil.copytree(uninterrupted, workdir)
  shutil.rmtree(max((workdir / 'checkpoints').iterdir()))
  metrics = workdir / 'metrics.jsonl'
  text = metrics.read_bytes()
  metrics.write_bytes(text[: len(text) // 2].ljust(len(text), b'\0'))
  status, stderr = run(workdir, '--config.logging.tensorboard=true')
  assert status == 0, stderr
  assert 'warning: ' in stderr
  assert 'contains NUL bytes' in stderr
  assert (workdir / 'metrics.damaged_1.jsonl').stat().st_size == len(text)
  assert_same_arrays(workdir, uninterrupted)
  expected = [without_clock(line) for line in metric_lines(uninterrupted)]
  actual = [without_clock(line) for line in metric_lines(workdir)]
  assert 0 < len(actual) < len(expected)
  assert all(line in expected for line in actual)


@pytest.mark.parametrize('damage', ['truncated', 'noise', 'not_a_directory'])
def test_a_damaged_cache_of_programs_costs_only_time(
  damage, tmp_path, tmp_path_factory
):
  """Programs that cannot be read are compiled again, with a warning."""
  uninterrupted = runs.finished_run(tmp_path_factory, 'toy_kl_cov', **SMALL)
  cache = tmp_path / 'cache'

  def train(workdir):
    return subprocess.run(
      process.arguments('toy_kl_cov', workdir, **SMALL),
      env=process.ENVIRONMENT
      | {
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      },
      capture_output=True,
      text=True,
      timeout=800,
    )

  if damage == 'not_a_directory':
    cache.touch()
  else:
    assert train(tmp_path / 'before').returncode == 0
    for file in cache.glob('*-cache'):
      data = file.read_bytes()[:1000]
      file.write_bytes(data if damage == 'truncated' else data[::-1])
  workdir = tmp_path / 'run'
  completed = train(workdir)
  assert completed.returncode == 0, completed.stderr
  if damage == 'not_a_directory':
    (message,) = error_messages(completed.stderr)
    assert message == (
      f'covrl: compiled programs are not kept: {cache} cannot be written: file'
      ' exists'
    )
  else:
    assert 'persistent compilation cache' in completed.stderr
    assert error_messages(completed.stderr) == []
  runs.assert_same_metrics(workdir, uninterrupted)


# Every process of the four runs compiles its programs, since those with
# collectives are not kept; four processes have fewer and smaller ones.
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('count', [2, 4])
def test_processes_resume_after_the_fault_of_one(tmp_path, count):
  """Kills one, fills the disk of one, damages the shard of one."""
  small = {'recipe': 'toy_no_chain', 'warm_start__steps': 0}
  start_all = functools.partial(
    start, processes=count, logging__samples=0, **(small if count > 2 else {})
  )
  expected = tmp_path / 'expected'
  codes, errors = wait_for_end(start_all(expected))
  assert codes == [0] * count, errors
  workdir, victim = tmp_path / 'run', count - 1
  processes = start_all(workdir, heartbeat=20)
  wait_for_step(workdir, processes, 2)
  processes[victim].kill()
  codes, errors = wait_for_end(processes)
  assert codes == [Exit.PEER_LOST] * victim + [-signal.SIGKILL], errors
  assert all(len(error_messages(text)) == 1 for text in errors[:victim]), errors

  before = position(workdir)
  processes = start_all(workdir, heartbeat=20, full_disk_processes=(victim,))
  codes, errors = wait_for_end(processes)
  assert codes == [Exit.PEER_LOST] * victim + [Exit.STORAGE], errors
  assert all(len(error_messages(text)) == 1 for text in errors), errors
  assert position(workdir) == before

  newest = flip_a_bit(workdir, f'ocdbt.process_{victim}')
  codes, errors = wait_for_end(start_all(workdir))
  assert codes == [0] * count, errors
  assert f'warning: the checkpoint {newest} is damaged' in errors[0]
  notices = (workdir / 'notices.jsonl').read_text().splitlines()
  assert [json.loads(line)['text'] for line in notices] != []
  runs.assert_same_metrics(workdir, expected)
  assert_same_arrays(workdir, expected)
