# SPDX-License-Identifier: Apache-2.0
"""Empty, contradictory and misplaced arguments of every command."""

import subprocess
import sys

import pytest

from covrl.cli import main
from covrl.cli.policies import is_run
from covrl.exit_codes import Exit

KL_COV = '--config=countdown:kl_cov'


def run_failing(capsys, *arguments):
  """Runs a command that fails; returns its exit status and its last line."""
  with pytest.raises(SystemExit) as caught:
    main([str(argument) for argument in arguments])
  captured = capsys.readouterr()
  assert captured.out == ''
  return caught.value.code, captured.err.splitlines()[-1]


@pytest.mark.parametrize(
  ('command', 'name'),
  [
    (['plan', '--config='], '--config'),
    (['plan', KL_COV, '--topology='], '--topology'),
    (['plan', KL_COV, '--topology=v5e-8', '--compiled='], '--compiled'),
    (['compile', KL_COV, '--topology', ''], '--topology'),
    (['compile', KL_COV, '--topology=v5e-8', '--programs='], '--programs'),
    (['train', KL_COV, '--workdir='], '--workdir'),
    (['train', KL_COV, '--workdir=x', '--coordinator='], '--coordinator'),
    (['evaluate', ''], 'path'),
    (['evaluate', 'x', '--suite='], '--suite'),
    (['evaluate', 'x', '--output='], '--output'),
    (['sample', '', 'hello'], 'path'),
    (['convert', '', 'target'], 'path'),
    (['convert', 'source', ''], 'path'),
    (['report', ''], 'path'),
    (['report', 'x', '--output='], '--output'),
    (['theory', '--claim='], '--claim'),
    (['theory', '--workdir='], '--workdir'),
  ],
)
def test_empty_arguments_are_refused(capsys, command, name):
  status, error = run_failing(capsys, *command)
  assert status == Exit.REFUSED
  assert error.startswith(
    f"covrl: {name} must not be empty, got ''; see covrl "
  )


@pytest.mark.parametrize(
  ('command', 'name'),
  [
    (['train', KL_COV, '--workdir= '], '--workdir'),
    (['convert', 'source', '\t\n'], 'path'),
  ],
)
def test_blank_arguments_are_refused(capsys, command, name):
  status, error = run_failing(capsys, *command)
  assert status == Exit.REFUSED
  assert error.startswith(f"covrl: {name} must not be empty, got '")


def test_a_run_is_evaluated_with_its_own_recipe(capsys, tmp_path):
  status, error = run_failing(
    capsys, 'evaluate', str(tmp_path), '--config=countdown:grpo'
  )
  assert status == Exit.REFUSED
  assert error.endswith(
    "--config must be given with a pretrained model, got 'countdown:grpo' alone"
  )


def test_a_value_of_thousands_of_digits_is_cut(capsys):
  digits = '9' * 5000
  status, error = run_failing(
    capsys, 'train', KL_COV, '--workdir=x', f'--config.seed={digits}'
  )
  assert status == Exit.REFUSED
  assert '--config.seed must be an integer, got' in error
  assert len(error) < 300


@pytest.mark.parametrize('option', ['--num_slices=2', '--compiled=x.json'])
def test_plan_needs_a_topology_for_options_of_a_topology(capsys, option):
  assert run_failing(capsys, 'plan', KL_COV, option) == (
    Exit.REFUSED,
    'covrl: --topology must be given with --compiled or --num_slices, got none',
  )


def test_plan_reads_the_compiled_file_before_it_prints(capsys, tmp_path):
  arguments = ('plan', KL_COV, '--topology=v5e-8', f'--compiled={tmp_path}')
  status, error = run_failing(capsys, *arguments)
  assert status == Exit.REFUSED
  assert 'must be the output of `covrl compile --json`' in error


def test_heartbeat_is_checked_with_one_process_too(capsys, tmp_path):
  status, error = run_failing(
    capsys, 'train', KL_COV, f'--workdir={tmp_path / "run"}', '--heartbeat=0'
  )
  assert status == Exit.REFUSED
  assert error == 'covrl: --heartbeat must be at least 2 s, got 0'
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('below', ['', 'folder'])
def test_theory_needs_a_directory_before_it_checks_claims(
  capsys, tmp_path, below
):
  file = tmp_path / 'file'
  file.touch()
  status, error = run_failing(capsys, 'theory', f'--workdir={file / below}')
  assert status == Exit.STORAGE
  assert f'{file / below} cannot be written: ' in error


def test_theory_replaces_no_report_of_a_run(capsys, tmp_path):
  report = tmp_path / 'report.html'
  report.write_text('of a run')
  (tmp_path / 'metrics.jsonl').touch()
  status, error = run_failing(capsys, 'theory', f'--workdir={tmp_path}')
  assert status == Exit.REFUSED
  assert '--workdir must not hold a run, whose report.html would be' in error
  assert report.read_text() == 'of a run'


def test_a_run_may_have_the_name_of_a_file_of_weights(tmp_path):
  run = tmp_path / 'run.gguf'
  assert not is_run(str(run))
  (run / 'recipe').mkdir(parents=True)
  assert is_run(str(run))


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    (None, "got 'own.py', which is a directory"),
    (b'\xff\xfe', 'own.py must be valid Python, got '),
    (
      b'def f(:',
      'own.py must be valid Python, got invalid syntax (own.py, line 1)',
    ),
    (b'x = 1', 'got own.py without one'),
  ],
)
def test_refuses_recipe_files_that_are_not_python(
  capsys, tmp_path, monkeypatch, content, reason
):
  monkeypatch.chdir(tmp_path)
  file = tmp_path / 'own.py'
  file.mkdir() if content is None else file.write_bytes(content)
  status, error = run_failing(capsys, 'plan', '--config=own.py')
  assert status == Exit.REFUSED
  assert reason in error


@pytest.mark.parametrize('name', ['xyzzy', '_tx', 'dataclasses', '__doc__'])
def test_an_unknown_recipe_unlike_any_other_is_refused_with_a_list(
  capsys, name
):
  """Other names of the module are unknown, too."""
  status, error = run_failing(capsys, 'plan', f'--config=countdown:{name}')
  assert status == Exit.REFUSED
  assert '--config must name a recipe in ' in error
  assert f"countdown.py, got '{name}'; there are " in error
  assert '; there are grpo, grpo_no_clip, kl_cov, ' in error


def test_commands_do_not_depend_on_docstrings(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from covrl.recipes import countdown\ndef recipe(): return countdown.grpo()\n'
  )
  completed = subprocess.run(
    [
      *(sys.executable, '-OO', '-m', 'covrl.cli', 'train', '--workdir=unused'),
      *(f'--config={file}:recipe', '--config.train.iterations=-1'),
    ],
    capture_output=True,
    text=True,
  )
  assert completed.returncode == Exit.REFUSED
  assert 'train.iterations must be at least' in completed.stderr


@pytest.mark.parametrize(
  'arguments', [['1 + 1', '--count=2'], ['--count=2', '1 + 1']]
)
def test_a_prompt_may_stand_before_and_after_options(
  capsys, arguments, tmp_path
):
  status, error = run_failing(capsys, 'sample', tmp_path / 'none', *arguments)
  assert status == Exit.REFUSED
  assert error.startswith(f'covrl: {tmp_path / "none"}')


def test_evaluating_a_model_needs_problems(capsys, tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  status, error = run_failing(capsys, 'evaluate', tmp_path)
  assert status == Exit.REFUSED
  assert error.startswith(
    'covrl: --suite or --config must be given with a pretrained model, got'
  )


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    (
      ['sample', 'x', 'hello', '--count=0'],
      '--count must be at least 1, got 0',
    ),
    (
      ['sample', 'x', 'hello', '--count=1000000000'],
      '--count must be at most 65536, got 1000000000',
    ),
    (
      ['sample', 'x', 'hello', '--max_length=100000000'],
      '--max_length must be at most 1048576, got 100000000',
    ),
    (
      ['evaluate', 'x', '--samples=1000000000'],
      '--samples must be at most 65536, got 1000000000',
    ),
  ],
)
def test_numbers_without_bounds_are_refused_before_loading(
  capsys, arguments, sentence
):
  assert run_failing(capsys, *arguments) == (Exit.REFUSED, f'covrl: {sentence}')
