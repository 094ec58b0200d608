# SPDX-License-Identifier: Apache-2.0
"""Help, version, the list of recipes, and errors of usage."""

import subprocess
import sys

import pytest

from covrl.cli import main
from covrl.config import Config, flatten


def stdout_of(capsys, *arguments):
  """Runs a command that exits with status 0; returns its standard output."""
  with pytest.raises(SystemExit) as ended:
    main(arguments)
  assert ended.value.code == 0
  return capsys.readouterr().out


@pytest.mark.parametrize(
  ('command', 'words'),
  [
    ([], ['train', 'evaluate', 'sample', 'report', 'covrl train --config=']),
    (['train'], ['--config', '--workdir', '--config.seed=1', 'resumed']),
    (['evaluate'], ['held-out', '--samples', '--temperature', '--problems']),
    (['sample'], ['prompt', '--count', '--temperature', '--top_p', '--seed']),
    (['report'], ['compares', '--output', 'by seed']),
  ],
)
def test_help_describes_commands_and_options(capsys, command, words):
  text = stdout_of(capsys, *command, '--help')
  for word in words:
    assert word in text


@pytest.mark.parametrize('command', ['train', 'plan', 'compile'])
def test_help_lists_every_config_field(capsys, command):
  text = stdout_of(capsys, command, '--help')
  for field in flatten(Config()):
    assert field in text


def test_help_shows_the_values_of_the_given_recipe(capsys):
  default_help = stdout_of(capsys, 'train', '--help')
  recipe_help = stdout_of(
    capsys, 'train', '--config=countdown:kl_cov', '--help'
  )
  assert 'those of countdown:kl_cov' in recipe_help
  assert 'those without a recipe' in default_help
  heading = 'config fields:'
  assert recipe_help.partition(heading)[2] != default_help.partition(heading)[2]
  plan_help = stdout_of(capsys, 'plan', '-h', '--config', 'countdown:kl_cov')
  assert plan_help.partition(heading)[2] == recipe_help.partition(heading)[2]


def test_first_command_of_the_help_names_a_shipped_recipe(capsys):
  text = stdout_of(capsys, '--help')
  command = next(
    line for line in text.splitlines() if line.startswith('  covrl')
  )
  main(['recipes'])
  recipes = capsys.readouterr().out.splitlines()
  spec = command.partition('--config=')[2].split()[0]
  assert spec in [line.split()[0] for line in recipes]
  # Each with a description.
  assert all(len(line.split()) > 2 for line in recipes)


def test_version_is_printed(capsys):
  assert stdout_of(capsys, '--version').startswith('covrl 0.')


def test_help_does_not_import_jax():
  code = (
    'import sys\n'
    'from covrl.cli import main\n'
    'try:\n'
    '  main(["--help"])\n'
    'finally:\n'
    '  assert "jax" not in sys.modules\n'
    '  assert "rich" not in sys.modules\n'
  )
  completed = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert completed.returncode == 0, completed.stderr


@pytest.mark.parametrize(
  'arguments', [[], ['trian'], ['train'], ['evaluate', 'x', '--config.seed=1']]
)
def test_wrong_usage_prints_usage_and_exits_with_2(capsys, arguments):
  with pytest.raises(SystemExit) as ended:
    main(arguments)
  assert ended.value.code == 2
  error = capsys.readouterr().err
  assert 'usage: covrl' in error
  assert error.splitlines()[-1].startswith('covrl: ')


@pytest.mark.parametrize(
  ('arguments', 'option'),
  [
    (['evaluate', 'runs/a', '--sample=3'], '--samples'),
    (['train', '--config=x', '--workdir=y', '--stal_after=3'], '--stall_after'),
    (['compile', '--config=x', '--topology=y', '--jsno'], '--json'),
  ],
)
def test_unknown_options_name_the_nearest(capsys, arguments, option):
  with pytest.raises(SystemExit) as ended:
    main(arguments)
  assert ended.value.code == 2
  assert f'did you mean {option}?' in capsys.readouterr().err


def test_options_may_be_spelt_with_hyphens(capsys):
  for option in ('--suite-directory=x', '--suite_directory=x'):
    with pytest.raises(SystemExit):
      main(['evaluate', 'no/where/at/all', '--suite=amc', option])
    assert 'unknown argument' not in capsys.readouterr().err
