# SPDX-License-Identifier: Apache-2.0
"""Commands on run directories: new, in use, of other runs, damaged."""

import json
import os
import shutil

import jax.numpy as jnp
import pytest
from cli.conftest import RECIPE

from covrl.cli import main
from covrl.config import ConfigError
from covrl.exit_codes import Exit
from covrl.run.checkpoint import CheckpointError, CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.train import Stopped, loop
from covrl.train.setup.restore import open_run


def set_up(workdir, *overrides):
  """Runs `covrl train` up to its warm start."""

  def stop(*args, **kwargs):
    raise Stopped

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'start_or_resume', stop)
    with pytest.raises(SystemExit) as ended:
      main(['train', f'--config={RECIPE}', f'--workdir={workdir}', *overrides])
  assert ended.value.code in (Exit.RESTART, Exit.TERMINATED)


@pytest.fixture(scope='module')
def untrained_run(tmp_path_factory):
  """A run directory that was set up, shared by the tests of this file."""
  workdir = tmp_path_factory.mktemp('original') / 'run'
  set_up(workdir)
  return workdir


@pytest.fixture
def new_run(untrained_run, tmp_path):
  """A run directory that was set up and has not trained yet."""
  return shutil.copytree(untrained_run, tmp_path / 'run')


def test_refuses_the_directory_of_another_run_and_names_the_difference(
  new_run, refuse_training, changed_recipe
):
  CheckpointStore(new_run / 'warm_start', keep=1).save(
    30, {'x': jnp.zeros(3)}, {'metrics': {}}
  )
  # `refuse_training` uses the directory of `new_run`.
  assert refuse_training('--config.train.learning_rate=0.5') == (
    f"{new_run} holds another configuration's run (train.learning_rate is 0.0003 "
    'there and 0.5 here); use another --workdir'
  )
  assert refuse_training(recipe=changed_recipe('')) == (
    f"{new_run} holds another configuration's run (of toy_kl_cov:kl_cov, and not "
    'of changed:kl_cov); use another --workdir'
  )
  edited_recipe = changed_recipe('# Edited.\n').rename(
    new_run.parent / RECIPE.name
  )
  # Fields that may change are not named as the difference.
  assert '(the config file has changed since)' in refuse_training(
    '--config.train.iterations=9', recipe=edited_recipe
  )


def test_directory_of_a_run_without_progress_may_be_replaced(new_run):
  for name in ('notices.jsonl', 'recipe/other.py'):
    (new_run / name).write_text('{}')
  # A checkpoint that a power cut has left incomplete.
  (new_run / 'warm_start' / '00000010').mkdir(parents=True)
  set_up(new_run, '--config.train.learning_rate=0.5')
  assert RunDirectory(new_run).recipe().config.train.learning_rate == 0.5
  files = {file.name for file in new_run.rglob('*') if file.is_file()}
  assert not files & {'notices.jsonl', 'other.py'}
  # A directory with notices only can be used by any run.
  with_notices_only = new_run.parent / 'empty'
  RunDirectory(with_notices_only).add_notice('no fingerprint')
  set_up(with_notices_only)


def test_number_of_iterations_may_be_raised(new_run):
  set_up(new_run, '--config.train.iterations=9')
  restored_recipe = RunDirectory(new_run).recipe()
  assert restored_recipe.config.train.iterations == 9
  assert restored_recipe.sources == {RECIPE.name: RECIPE.read_text()}


def test_directory_without_its_recipe_is_completed(new_run):
  shutil.rmtree(new_run / 'recipe')
  set_up(new_run)
  assert (new_run / 'recipe' / RECIPE.name).is_file()


def test_refuses_a_directory_in_use(new_run, refuse_training):
  with RunDirectory(new_run).locked():
    assert refuse_training() == (
      f'{new_run} is in use by another process; use another --workdir'
    )


def test_a_directory_with_other_files_is_refused_and_unchanged(
  refuse, tmp_path
):
  (tmp_path / 'thesis.tex').write_text('precious')
  arguments = ('train', f'--config={RECIPE}')
  assert refuse(*arguments, f'--workdir={tmp_path}') == (
    f'--workdir must be a run directory or empty, got other files in {tmp_path}'
  )
  file = tmp_path / 'thesis.tex'
  assert refuse(*arguments, f'--workdir={file}') == (
    f'--workdir must be a directory, got {file}'
  )
  assert file.read_text() == 'precious'


@pytest.mark.parametrize(
  'arguments', [['sample', '4 7 2 :'], ['evaluate'], ['report']]
)
def test_commands_refuse_a_directory_that_does_not_exist(
  refuse, tmp_path, arguments
):
  command, *options = arguments
  assert str(tmp_path / 'none') in refuse(command, tmp_path / 'none', *options)


@pytest.mark.parametrize('arguments', [['sample', '4 7 2 :'], ['evaluate']])
def test_refuses_missing_and_damaged_checkpoints(new_run, refuse, arguments):
  name, *options = arguments
  assert refuse(name, new_run, *options) == (
    f'{new_run} must have a finished checkpoint, got none'
  )
  CheckpointStore(new_run / 'checkpoints', keep=1).save(
    4, {'state': {'trainable': {'x': jnp.zeros(3)}}}, {}
  )
  assert 'is of another program' in refuse(name, new_run, *options)
  data = next((new_run / 'checkpoints' / '00000004' / 'arrays').rglob('d/*'))
  data.write_bytes(data.read_bytes()[:-1])
  assert 'is damaged' in refuse(name, new_run, *options)
  (new_run / 'checkpoints' / '00000004' / 'manifest.json').write_text('{')
  assert 'manifest.json cannot be read' in refuse(name, new_run, *options)
  (new_run / 'config.json').write_text('{')
  assert refuse(name, new_run, *options) == (
    f'{new_run / "config.json"} is damaged: it is not valid JSON'
  )


def test_warns_of_settings_without_effect_or_with_bias(tmp_path, capsys):
  set_up(tmp_path / 'quiet')
  assert 'warning: ' not in capsys.readouterr().err
  set_up(
    tmp_path / 'warned',
    '--config.train.sequences_per_update=32',
    '--config.entropy.fraction=0.001',
    '--config.rollout.top_p=0.9',
  )
  printed = capsys.readouterr().err.splitlines()
  warnings = [line for line in printed if line.startswith('warning: ')]
  assert len(warnings) == 3
  for words in (
    'with one update per iteration (train.sequences_per_update = 32)',
    'entropy.fraction = 0.001 selects no token of an update, which has at '
    'most 128 response tokens',
    'importance weights are biased',
  ):
    assert any(words in warning for warning in warnings)


@pytest.mark.skipif(os.geteuid() != 0, reason='only root may give files away')
@pytest.mark.parametrize('name', ['.', 'config.json', 'recipe', RECIPE.name])
@pytest.mark.parametrize('arguments', [['sample', '4 7 2 :'], ['evaluate']])
def test_recipes_of_other_users_are_not_executed(
  new_run, refuse, arguments, name
):
  path = new_run / ('recipe' if name == RECIPE.name else '') / name
  os.chown(path, 12345, -1)
  command, *options = arguments
  assert refuse(command, new_run, *options).endswith(
    f'{path} belongs to another user (user id 12345); pass --trust to execute it'
    ' nevertheless'
  )
  # The next reason to refuse it.
  assert 'must have a finished checkpoint, got none' in refuse(
    command, new_run, *options, '--trust'
  )


def test_recipes_that_every_user_can_write_are_not_executed(new_run, refuse):
  (new_run / 'recipe').chmod(0o777)
  assert refuse('sample', new_run, '4 7 2 :').endswith(
    f'{new_run / "recipe"} can be written by every user; pass --trust to execute'
    ' it nevertheless'
  )


def test_a_pipe_in_place_of_a_recipe_is_refused(new_run, refuse):
  """Reading it would wait for a writer."""
  file = new_run / 'recipe' / RECIPE.name
  file.unlink()
  os.mkfifo(file)
  for option in ([], ['--trust']):
    assert refuse('sample', new_run, '4 7 2 :', *option) == (
      f'{file} must be a file, got something else'
    )


def test_execution_of_a_recipe_is_reported(new_run, capfd):
  with pytest.raises(CheckpointError), open_run(str(new_run)):
    raise AssertionError
  message = f'executed the recipe in {new_run / "recipe"} ({RECIPE.name})'
  assert message in capfd.readouterr().err


def test_a_run_that_is_opened_with_other_code_is_reported(new_run, capfd):
  """As after an edit of a score function, which changes an evaluation."""
  CheckpointStore(new_run / 'checkpoints', keep=1).save(
    4,
    {'state': {'trainable': {'x': jnp.zeros(3)}}},
    {'inputs': {'code of covrl': 'another'}},
  )
  with (
    pytest.raises(CheckpointError, match='is of another program'),
    open_run(str(new_run)),
  ):
    raise AssertionError
  assert (
    'covrl: warning: code of covrl has changed since the checkpoint was written:'
    ' results may differ from those of the run\n'
  ) in capfd.readouterr().err


def test_a_run_whose_configuration_was_edited_is_reported(new_run, capfd):
  file = new_run / 'config.json'
  saved = json.loads(file.read_text())
  CheckpointStore(new_run / 'checkpoints', keep=1).save(
    4,
    {'state': {'trainable': {'x': jnp.zeros(3)}}},
    {'inputs': {'recipe': saved['identity']}},
  )
  for length in (saved['config']['rollout']['max_response_length'], 2):
    saved['config']['rollout']['max_response_length'] = length
    file.write_text(json.dumps(saved))
    with (
      pytest.raises(CheckpointError, match='is of another program'),
      open_run(str(new_run)),
    ):
      raise AssertionError
    is_edited = length == 2
    text = 'has been edited since the checkpoint was written: results are not'
    assert (text in capfd.readouterr().err) is is_edited


def test_a_run_with_the_checkpoint_of_another_is_not_opened(new_run):
  """As after a copy of the checkpoints of a run with another seed."""
  CheckpointStore(new_run / 'checkpoints', keep=1).save(
    4,
    {'state': {'trainable': {'x': jnp.zeros(3)}}},
    {'inputs': {'recipe': 'another'}},
  )
  with (
    pytest.raises(
      ConfigError, match='got one of another recipe, configuration'
    ),
    open_run(str(new_run)),
  ):
    raise AssertionError
