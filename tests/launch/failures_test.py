# SPDX-License-Identifier: Apache-2.0
"""Launchers under missing quota, preemption and failing hosts."""

import argparse
import io
import os
import signal
import subprocess
import threading
import time

import pytest

from launch import local
from launch.__main__ import main
from launch.job import Job, LaunchError
from launch.shell import Shell

ALL_CALLS = 10**6  # more than any test makes
TPU = ['tpu', '--name=kl-cov', '--type=v6e-16', '--project=p', '--zone=z']
TRAIN_ARGUMENTS = ['--', '--config=c.py', '--workdir=gs://b/r']
FINISHED = {
  'match': 'bash kl-cov.host.sh',
  'out': 'covrl-exit=0\n' * 4,
  'times': ALL_CALLS,
}
ACTIVE = {'match': 'describe', 'out': 'ACTIVE\n', 'times': ALL_CALLS}
ABSENT = {'match': 'describe', 'status': 1, 'err': 'NOT_FOUND: no such thing'}


def launch(arguments, train_arguments=TRAIN_ARGUMENTS):
  """Launches without real sleeps; returns status, output and seconds slept."""
  output, sleeps = io.StringIO(), []
  shell = Shell(output=output, sleep=sleeps.append)
  status = main([*arguments, *train_arguments], shell)
  return status, output.getvalue(), sum(sleeps)


def test_creates_uses_and_deletes_a_slice(fakes):
  fakes.set_answers(ABSENT, ACTIVE, FINISHED)
  status, _, _ = launch(TPU)
  assert status == 0
  verbs = [call[4] for call in fakes.calls('queued-resources')]
  assert verbs == ['describe', 'create', 'describe', 'delete']
  assert len(fakes.calls('scp')) == 1
  (copied,) = fakes.calls('scp')
  assert copied[5].endswith('kl-cov.tar.gz')
  assert len(fakes.calls('ssh')) == 2


def test_retries_while_quota_is_exhausted(fakes):
  quota = {'match': 'create', 'status': 1, 'err': 'Quota limit exceeded'}
  fakes.set_answers(
    {**ABSENT, 'times': 3}, {**quota, 'times': 2}, ACTIVE, FINISHED
  )
  status, output, slept = launch(TPU)
  assert status == 0
  assert len(fakes.calls('create')) == 3
  assert 'not available yet' in output
  assert slept >= 60


def test_gives_up_waiting_for_a_slice(fakes):
  waiting = {
    'match': 'describe',
    'out': 'WAITING_FOR_RESOURCES',
    'times': ALL_CALLS,
  }
  fakes.set_answers(waiting)
  status, _, slept = launch([*TPU, '--max-wait=0.1'])
  assert status == 42
  assert slept == 360


@pytest.mark.parametrize('rest', ['', ' need a quota project'])
def test_reports_other_refusals_at_once(fakes, capsys, rest):
  error = f'ERROR: PERMISSION_DENIED:\n you{rest}'
  fakes.set_answers(ABSENT, {'match': 'create', 'status': 1, 'err': error})
  status, _, slept = launch(TPU)
  assert (status, slept) == (1, 0)
  error = capsys.readouterr().err
  assert 'PERMISSION_DENIED: you' in error
  assert error.count('\n') == 1


def test_recreates_a_preempted_slice(fakes):
  fakes.set_answers(
    {'match': 'describe', 'out': 'ACTIVE\n'},
    {'match': 'bash kl-cov.host.sh', 'status': 255, 'err': 'Connection closed'},
    {'match': 'describe', 'out': 'SUSPENDED\n'},
    ACTIVE,
    FINISHED,
  )
  status, output, _ = launch(TPU)
  assert status == 0
  assert 'is SUSPENDED: requesting another' in output
  verbs = [call[4] for call in fakes.calls('queued-resources')]
  assert verbs == [
    *('describe', 'describe', 'delete', 'create', 'describe', 'delete')
  ]
  # The second slice needs a copy, too.
  assert len(fakes.calls('scp')) == 2


def test_restarts_all_workers_on_the_same_slice_if_one_fails(fakes):
  fakes.set_answers(
    ACTIVE,
    {
      'match': 'bash kl-cov.host.sh',
      'out': 'covrl-exit=43\n' * 3,
      'err': 'ssh: connect: timed out',
      'status': 255,
    },
    FINISHED,
  )
  status, output, _ = launch(TPU)
  assert status == 0
  assert 'restart 1 of 100' in output
  assert not fakes.calls('create')
  assert len(fakes.calls('scp')) == 1


def test_a_host_that_reports_no_status_has_not_finished(fakes):
  fakes.set_answers(
    ACTIVE,
    {'match': 'bash kl-cov.host.sh', 'out': 'covrl-exit=0\n' * 3},
    FINISHED,
  )
  status, output, _ = launch(TPU)
  assert status == 0
  assert 'restart 1 of 100' in output


def test_does_not_restart_after_an_error_of_the_program(fakes):
  output = 'covrl-exit=43\ncovrl-exit=43\ncovrl-exit=43\ncovrl-exit=2\n'
  fakes.set_answers(
    ACTIVE, {'match': 'bash kl-cov.host.sh', 'out': output, 'status': 1}
  )
  status, output, _ = launch(TPU)
  assert status == 2
  assert 'are kept' in output
  assert not fakes.calls('delete')


def test_stops_after_the_last_restart(fakes):
  fakes.set_answers(
    ACTIVE,
    {
      'match': 'bash kl-cov.host.sh',
      'out': 'covrl-exit=42\n' * 4,
      'status': 1,
      'times': 9,
    },
  )
  status, _, _ = launch([*TPU, '--restarts=2'])
  assert status == 42
  runs = [call for call in fakes.calls('ssh') if 'host.sh' in call[-1]]
  assert len(runs) == 3


def test_trains_on_two_slices_as_one_run(fakes):
  fakes.set_answers(ACTIVE, FINISHED)
  status, _, _ = launch([*TPU, '--num-slices=2'])
  assert status == 0
  nodes = {call[5] for call in fakes.calls('ssh')}
  assert nodes == {'kl-cov-0', 'kl-cov-1'}


def test_reports_a_failed_installation(fakes, capsys):
  fakes.set_answers(
    ACTIVE, {'match': '--command=bash kl-cov.set-up.sh', 'status': 1}
  )
  status, _, _ = launch(TPU)
  assert status == 1
  assert 'cannot be installed' in capsys.readouterr().err


def test_submits_to_kubernetes_and_slurm(fakes):
  gke = ['gke', '--name=kl-cov', '--type=v5p-64', '--image=i']
  assert launch(gke)[0] == 0
  (call,) = fakes.calls('apply')
  assert call[2].endswith('kl-cov.yaml')
  slurm = ['slurm', '--name=kl-cov', '--nodes=1', '--gpus-per-node=1']
  fakes.set_answers({'match': 'sbatch', 'out': 'Submitted batch job 7\n'})
  status, output, _ = launch(slurm)
  assert (status, output) == (0, 'Submitted batch job 7\n')


@pytest.mark.parametrize(
  ('program', 'arguments'),
  [
    ('kubectl', ['gke', '--name=a', '--type=v5p-64', '--image=i']),
    ('sbatch', ['slurm', '--name=a', '--nodes=1', '--gpus-per-node=1']),
  ],
)
def test_reports_a_failed_submission(fakes, capsys, program, arguments):
  fakes.set_answers(
    {'match': program, 'status': 1, 'err': 'exceeded quota: tpu'}
  )
  assert launch(arguments)[0] == 1
  assert 'exceeded quota: tpu' in capsys.readouterr().err


def test_names_a_missing_program(monkeypatch, tmp_path, capsys):
  monkeypatch.setenv('PATH', str(tmp_path))
  slurm = ['slurm', '--name=a', '--nodes=1', '--gpus-per-node=1']
  assert launch(slurm)[0] == 2
  assert 'sbatch must be installed, got none' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('code', 'count', 'requeued', 'status'),
  [
    (0, 0, False, 0),
    (42, 0, True, 0),
    (43, 5, True, 0),
    (143, 0, True, 0),
    (1, 0, False, 1),
    (2, 0, False, 2),
    (42, 100, False, 42),
  ],
)
def test_slurm_requeues_on_the_exit_codes_for_restarting(
  fakes, tmp_path, code, count, requeued, status
):
  fakes.set_answers({'match': 'srun', 'status': code})
  output = io.StringIO()
  slurm = ['slurm', '--name=a', '--nodes=1', '--gpus-per-node=1', '--dry-run']
  assert (
    main([*slurm, *TRAIN_ARGUMENTS], Shell(dry_run=True, output=output)) == 0
  )
  script = tmp_path / 'job.sh'
  script.write_text(output.getvalue().rpartition('\n\nsbatch')[0])
  completed = subprocess.run(
    ['bash', str(script)],
    env={**os.environ, 'SLURM_JOB_ID': '7', 'SLURM_RESTART_COUNT': str(count)},
    check=False,
    timeout=60,
  )
  assert completed.returncode == status
  assert bool(fakes.calls('requeue')) == requeued
  (call,) = fakes.calls('srun')
  assert call[-2:] == ['--config=c.py', '--workdir=gs://b/r']


@pytest.mark.parametrize(
  ('script', 'restarts', 'status', 'runs'),
  [
    ('exit 0', 3, 0, 1),
    ('exit 2', 3, 2, 1),
    ('exit 42', 2, 42, 3),
    ('[[ $1 = *id=0 ]] && exit 1; exit 43', 3, 1, 1),
    ('[[ $1 = *id=0 ]] && kill -9 $$; exit 43', 1, 42, 2),
    # A process that does not end is killed after some time.
    ('[[ $1 = *id=0 ]] && exit 42; exec sleep 600', 0, 42, 1),
  ],
)
def test_local_processes_restart_by_exit_status(
  monkeypatch, tmp_path, script, restarts, status, runs
):
  count = tmp_path / 'runs'

  def commands(job, options):
    with count.open('a') as file:
      file.write('.')
    return [
      ['bash', '-c', script, 'bash', f'--process_id={process}']
      for process in range(options.processes)
    ]

  monkeypatch.setattr(local, '_commands', commands)
  job = Job(
    name='a', arguments=('--config=c', '--workdir=r'), restarts=restarts
  )
  options = argparse.Namespace(processes=2, port=None, grace=1.0)
  shell = Shell(output=io.StringIO())
  assert local.run(job, options, shell) == status
  assert len(count.read_text()) == runs


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_a_signal_to_the_launcher_stops_the_run_without_a_restart(
  monkeypatch, tmp_path, number
):
  """As Ctrl-C, or a service manager; the processes end with the restart status."""
  script = f"""
    trap 'exit 42' TERM
    echo run >> {tmp_path}/runs
    while sleep 0.05; do :; done
  """
  monkeypatch.setattr(
    local, '_commands', lambda job, options: [['bash', '-c', script]] * 2
  )

  def send_once_both_run():
    file = tmp_path / 'runs'
    while not file.exists() or len(file.read_text().splitlines()) < 2:
      time.sleep(0.05)
    os.kill(os.getpid(), number)

  job = Job(name='a', arguments=('--config=c', '--workdir=r'), restarts=3)
  options = argparse.Namespace(processes=2, port=None, grace=10.0)
  handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  thread = threading.Thread(target=send_once_both_run)
  thread.start()
  output = io.StringIO()
  assert local.run(job, options, Shell(output=output)) == 42
  thread.join()
  assert output.getvalue() == ''
  assert (tmp_path / 'runs').read_text() == 'run\n' * 2
  assert handlers == (
    signal.getsignal(signal.SIGTERM),
    signal.getsignal(signal.SIGINT),
  )


def test_the_last_of_several_workdirs_is_used():
  arguments = ('--config=c', '--workdir=gs://b/r', '--workdir', 'r')
  with pytest.raises(LaunchError, match=r"in a bucket .* got 'r'"):
    Job(name='a', arguments=arguments).check_shared(2)
