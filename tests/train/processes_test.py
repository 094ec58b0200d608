# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes: same results as one; signals, kills and hangs."""

import os
import pathlib
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from train import runs
from train.process import ENVIRONMENT, arguments, metric_lines, train
from train.runs import CLOCK, SMALL

from covrl.exit_codes import Exit
from covrl.train import CheckpointStore


def with_file_size_limit(command, blocks=80):
  """Returns a command whose files are limited to a size below a checkpoint's.

  Args:
    command: the command.
    blocks: the size in blocks of 512 bytes.
  """
  return ['sh', '-c', f'ulimit -f {blocks}; exec "$0" "$@"', *command]


def start(
  workdir,
  processes,
  recipe='toy_kl_cov',
  settings=(),
  heartbeat=60,
  full_disk_processes=(),
  variables=(),
  **common_settings,
):
  """Starts a run of several processes.

  Args:
    workdir: the run directory.
    processes: number of processes.
    recipe: name of a recipe in tests/train/recipes.
    settings: settings of single processes, by index.
    heartbeat: seconds after which a process that does not respond is lost.
    full_disk_processes: indices of the processes that cannot write large files,
      as on a full disk.
    variables: variables of the environment of single processes, by index.
    **common_settings: settings of all processes.
  """
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  by_process = dict(settings)
  commands = [
    [
      *arguments(
        recipe, workdir, **{**SMALL, **common_settings, **by_process.get(i, {})}
      ),
      f'--coordinator=127.0.0.1:{port}',
      f'--num_processes={processes}',
      f'--process_id={i}',
      f'--heartbeat={heartbeat}',
    ]
    for i in range(processes)
  ]
  return [
    subprocess.Popen(
      # One of four processes writes some 60 KB, in files whose sizes vary.
      with_file_size_limit(command, 40)
      if i in full_disk_processes
      else command,
      env=ENVIRONMENT | dict(variables).get(i, {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i, command in enumerate(commands)
  ]


def start_endless(workdir):
  """Starts two processes that train for a long time, with few programs."""
  return start(
    workdir,
    2,
    recipe='toy_plain',
    heartbeat=15,
    warm_start__steps=0,
    logging__samples=0,
    train__iterations=500,
  )


def wait_for_end(processes):
  """Returns exit statuses and standard errors."""
  try:
    errors = [process.communicate(timeout=900)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], errors


def wait_for_step(workdir, processes, step):
  """Waits for an update to be logged."""
  deadline = time.monotonic() + 900
  while not any(
    line['step'] >= step for line in metric_lines(workdir, 'train')
  ):
    is_late = time.monotonic() > deadline
    if is_late or any(process.poll() is not None for process in processes):
      for process in processes:
        process.terminate()
      pytest.fail(f'no step {step}, late: {is_late}: {wait_for_end(processes)}')
    time.sleep(0.02)


def checkpoint_arrays(workdir):
  """Returns position and arrays of the latest checkpoint."""
  saved = CheckpointStore(workdir / 'checkpoints', keep=1).latest()
  assert saved is not None
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with ocp.StandardCheckpointer() as checkpointer:
    metadata = dict(checkpointer.metadata(saved.path / 'arrays').item_metadata)
    like = {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
      for name, leaf in metadata.items()
    }
    return saved.position, checkpointer.restore(saved.path / 'arrays', like)


def assert_same_run(workdir, expected_workdir):
  """Asserts equal selections, and numbers equal up to rounding of sums."""
  logged, expected = metric_lines(workdir), metric_lines(expected_workdir)
  assert [(x['phase'], x['step']) for x in logged] == [
    (x['phase'], x['step']) for x in expected
  ]
  for line, expected_line in zip(logged, expected, strict=True):
    assert line.keys() == expected_line.keys()
    for name, value in expected_line.items():
      if isinstance(value, float) and not name.startswith(CLOCK):
        assert line[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
    for name in ('selected', 'reward', 'tokens'):
      assert line.get(name) == expected_line.get(name)
  assert any(line.get('selected', 0) > 0 for line in logged)
  position, leaves = checkpoint_arrays(workdir)
  expected_position, expected_leaves = checkpoint_arrays(expected_workdir)
  assert position == expected_position
  assert leaves.keys() == expected_leaves.keys()
  for name, leaf in expected_leaves.items():
    np.testing.assert_allclose(
      np.asarray(leaves[name], np.float64),
      np.asarray(leaf, np.float64),
      rtol=2e-4,
      atol=2e-5,
      err_msg=name,
    )


@pytest.fixture(scope='session')
def single_process_run(tmp_path_factory):
  """Returns the directory of the same run by one process."""
  return runs.finished_run(tmp_path_factory, 'toy_kl_cov', **SMALL)


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_train_like_one(single_process_run, tmp_path, count):
  workdir = tmp_path / 'together'
  codes, errors = wait_for_end(start(workdir, count))
  assert codes == [0] * count, errors
  assert_same_run(workdir, single_process_run)


def test_sigterm_stops_all_processes_and_one_process_resumes(
  single_process_run, tmp_path
):
  workdir = tmp_path / 'stopped'
  processes = start(workdir, 2, recipe='toy_slow', logging__samples=0)
  # After the last update of an iteration, the next rollout begins.
  wait_for_step(workdir, processes, 2)
  # Any process may receive the signal, also repeatedly.
  processes[1].send_signal(signal.SIGTERM)
  processes[1].send_signal(signal.SIGTERM)
  codes, errors = wait_for_end(processes)
  assert codes == [Exit.RESTART] * 2, errors
  position, _ = checkpoint_arrays(workdir)
  assert 2 <= position <= 3
  assert all(x['step'] <= position for x in metric_lines(workdir, 'train'))
  train('toy_slow', workdir, **SMALL, logging__samples=0)
  assert_same_run(workdir, single_process_run)


@pytest.mark.slow
def test_a_closed_terminal_of_one_process_stops_all(tmp_path):
  workdir = tmp_path / 'stopped'
  # The test's own process may ignore the signal, and its children would, too.
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  try:
    processes = start_endless(workdir)
  finally:
    signal.signal(signal.SIGHUP, before)
  wait_for_step(workdir, processes, 2)
  processes[1].send_signal(signal.SIGHUP)
  codes, errors = wait_for_end(processes)
  assert codes == [Exit.RESTART] * 2, errors
  position, _ = checkpoint_arrays(workdir)
  assert max(x['step'] for x in metric_lines(workdir, 'train')) == position >= 2


@pytest.mark.parametrize('victim', [0, 1])
def test_the_loss_of_a_process_ends_the_others(tmp_path, victim):
  workdir = tmp_path / 'killed'
  processes = start_endless(workdir)
  wait_for_step(workdir, processes, 2)
  processes[victim].kill()
  killed = time.monotonic()
  codes, errors = wait_for_end(processes)
  # The heartbeat, plus the time that a busy machine takes to end a process.
  assert time.monotonic() - killed < 120
  other = 1 - victim
  assert codes[other] == Exit.PEER_LOST, errors
  message = [line for line in errors[other].splitlines() if 'covrl:' in line]
  assert len(message) == 1
  assert 'another process of the run is lost' in message[0]


def test_a_hanging_process_is_lost_within_the_heartbeat(tmp_path):
  workdir = tmp_path / 'hung'
  processes = start_endless(workdir)
  wait_for_step(workdir, processes, 2)
  children = pathlib.Path(f'/proc/{processes[1].pid}/task').glob('*/children')
  for child in ' '.join(file.read_text() for file in children).split():
    os.kill(int(child), signal.SIGSTOP)
  began = time.monotonic()
  try:
    _, stderr = processes[0].communicate(timeout=300)
  finally:
    # Its child ends with it.
    processes[1].kill()
    wait_for_end(processes[1:])
  assert time.monotonic() - began < 120
  assert processes[0].returncode == Exit.PEER_LOST, stderr
  message = [line for line in stderr.splitlines() if 'covrl:' in line]
  assert len(message) == 1
  assert 'another process of the run is lost' in message[0]


@pytest.mark.parametrize(
  ('settings', 'common_settings', 'message'),
  [
    (
      {1: {'train__learning_rate': 0.5}},
      {},
      'got another train.learning_rate on process 1 than on process 0',
    ),
    pytest.param(
      {},
      {'rollout__prompts_per_iteration': 3, 'train__sequences_per_update': 12},
      'rollout.prompts_per_iteration must be a multiple of the 2 processes, '
      'got 3',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_refuses_different_or_unevenly_divided_processes(
  tmp_path, settings, common_settings, message
):
  workdir = tmp_path / 'refused'
  codes, errors = wait_for_end(
    start(workdir, 2, settings=settings, **common_settings)
  )
  assert codes == [Exit.REFUSED] * 2, errors
  for text in errors:
    assert message in text
  assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    (
      'problems',
      'same inputs, got another fingerprint of held-out problems on',
    ),
    ('loss', 'same programs, got another update on'),
    (
      'rewards',
      'same inputs, got another fingerprint of rewards of the recipe on',
    ),
  ],
)
def test_refuses_processes_whose_recipes_depend_on_the_host(
  tmp_path, changed, message
):
  variables = {1: {'TOY_CHANGED': changed}}
  processes = start(
    tmp_path / 'run', 2, recipe='toy_changed', variables=variables
  )
  codes, errors = wait_for_end(processes)
  assert codes == [Exit.REFUSED] * 2, errors
  for text in errors:
    assert f'{message} process 1 than on process 0' in text
