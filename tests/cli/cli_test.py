# SPDX-License-Identifier: Apache-2.0
"""Bad input ends with one sentence and status 2, and nothing is lost."""

import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest

from covrl.cli import main
from covrl.run.checkpoint import CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.train import loop

TESTS = pathlib.Path(__file__).parents[1]
RECIPE = TESTS / 'train' / 'recipes' / 'toy_kl_cov.py'


@pytest.fixture(autouse=True)
def _compilations_stay_where_tests_keep_them(monkeypatch):
  kept = TESTS.parent / '.jax_cache'
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(kept))


@pytest.fixture
def command(capsys):
  """Runs a command that fails, and gives the sentence it ends with."""

  def run(*arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
      main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('covrl: ')
    assert error.endswith('\n')
    assert error.count('\n') == 1
    return error.removeprefix('covrl: ').rstrip('\n')

  return run


@pytest.fixture
def train(command, tmp_path):
  """Refused training; the directory must stay as it was, and free."""
  workdir = tmp_path / 'run'

  def run(*overrides, recipe=RECIPE):
    before = contents(workdir)
    error = command(
      'train', f'--config={recipe}', f'--workdir={workdir}', *overrides
    )
    assert contents(workdir) == before
    return error

  return run


@pytest.fixture
def changed(tmp_path):
  """The toy recipe with other factories in place of its own."""

  def write(text):
    file = tmp_path / 'changed.py'
    file.write_text(f'{RECIPE.read_text()}\n\n{textwrap.dedent(text)}')
    return file

  return write


def contents(directory):
  return {
    file.relative_to(directory): file.read_bytes()
    for file in directory.rglob('*')
    if file.is_file() and file.name != '.lock'
  }


def test_an_unknown_field_names_the_nearest(train):
  assert train('--config.train.iteratons=3') == (
    "there is no config field 'train.iteratons'; did you mean train.iterations?"
  )


def test_a_mistyped_value(train):
  assert '--config.train.iterations=many' in train(
    '--config.train.iterations', 'many'
  )


def test_an_argument_that_is_no_override(train):
  assert train('--seed=1') == (
    "overrides must look like --config.FIELD=VALUE, got '--seed=1'"
  )


@pytest.mark.parametrize(
  ('override', 'reason'),
  [
    (
      'train.sequences_per_update=7',
      'must be a multiple of train.sequences_per_update, got 32 and 7',
    ),
    (
      'train.micro_batches=3',
      'must be a multiple of train.micro_batches, got 8 and 3',
    ),
    ('mesh.data=3', 'a mesh must multiply to the 8 devices there are'),
    (
      'train.sequences_per_update=4',
      'must be a multiple of mesh.data × mesh.fsdp × mesh.expert, got 4 and 8',
    ),
    ('train.weights=mean', "mode must be one of ('token-mean', "),
    ('train.low=2', 'low must lie in [0, 1], got 2'),
    ('entropy.fraction=0.2', 'fraction must lie in (0, 0.05], got 0.2'),
    ('entropy.selection_source=new', 'selection_source must be one of'),
    ('rollout.max_prompt_length=3', 'A prompt may have 3 tokens, got 5'),
    ('warm_start.from_run=/nowhere', '/nowhere is no run directory'),
  ],
)
def test_a_configuration_that_cannot_run(train, override, reason):
  assert reason in train(f'--config.{override}')


def test_an_empty_source(train, changed):
  error = train(
    recipe=changed("""
      import dataclasses
      from covrl.data import ListSource

      def make_task(config):
        return dataclasses.replace(toy.make_task(config), train=ListSource([]))
    """)
  )
  assert error == (
    'training needs problems, the task has none; data.train names the files of'
    ' a task of text'
  )


@pytest.mark.parametrize('field', ['train', 'held_out'])
def test_a_prompt_that_is_too_long(train, changed, field):
  error = train(
    recipe=changed(f"""
      import dataclasses
      from covrl.data import ListSource, Problem

      def make_task(config):
        long = [Problem(prompt='1 2 3 4 5 6 :', reference=[1], source='long')]
        long = ListSource(long) if {field!r} == 'train' else long
        return dataclasses.replace(toy.make_task(config), {field}=long)
    """)
  )
  # The begin token counts.
  assert error == (
    "A prompt may have 6 tokens, got 8 in problem 0 of source 'long'."
  )


def test_a_tokenizer_of_another_policy(train, changed):
  error = train(
    recipe=changed("""
      def make_model(config, vocab_size):
        return toy.make_model(config, vocab_size + 1)
    """)
  )
  assert "The tokenizer must have the policy's 16 tokens, got one of 15" in (
    error
  )


def test_a_warm_start_without_examples(train, changed):
  error = train(
    recipe=changed("""
      import dataclasses

      def make_task(config):
        return dataclasses.replace(toy.make_task(config), solved=None)
    """)
  )
  assert error == (
    'warm_start.steps must be 0 for a task without solved examples, got 30'
  )


def test_a_recipe_that_is_none(train, changed, tmp_path):
  assert 'must name a Python file' in train(recipe=tmp_path / 'none.py')
  error = train(recipe=changed('del make_loss\n'))
  assert 'a config file must define make_loss(), ' in error


def test_others_errors_keep_their_traceback(tmp_path, changed):
  recipe = changed("""
    def make_task(config):
      raise ValueError('a mistake of the recipe')
  """)
  with pytest.raises(ValueError, match='a mistake of the recipe'):
    main(['train', f'--config={recipe}', f'--workdir={tmp_path / "run"}'])


def set_up(workdir, *overrides):
  """Everything that comes before the first step."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.Run, 'train', lambda self: None)
    main(['train', f'--config={RECIPE}', f'--workdir={workdir}', *overrides])


@pytest.fixture(scope='module')
def once(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('begun') / 'run'
  set_up(workdir)
  return workdir


@pytest.fixture
def begun(once, tmp_path):
  """A run directory that was set up and has not trained yet."""
  return shutil.copytree(once, tmp_path / 'run')


def test_a_directory_of_another_run(begun, train, changed):
  # `train` uses the directory of `begun`.
  assert train('--config.train.learning_rate=0.5') == (
    f"{begun} holds another configuration's run (train.learning_rate is 0.0003 "
    'there and 0.5 here); use another --workdir'
  )
  assert train(recipe=changed('')) == (
    f"{begun} holds another configuration's run (of toy_kl_cov.py, and not of "
    'changed.py); use another --workdir'
  )
  same = changed('# Edited.\n').rename(begun.parent / RECIPE.name)
  # Fields that may change are not what differs.
  assert '(the config file has changed since)' in train(
    '--config.train.iterations=9', recipe=same
  )


def test_a_run_may_go_on_for_longer(begun):
  set_up(begun, '--config.train.iterations=9')
  described = RunDirectory(begun).recipe()
  assert described.config.train.iterations == 9
  assert described.sources == {RECIPE.name: RECIPE.read_text()}


def test_a_kill_while_claiming_does_no_harm(begun):
  shutil.rmtree(begun / 'recipe')
  set_up(begun)
  assert (begun / 'recipe' / RECIPE.name).is_file()


def test_a_directory_in_use(begun, train):
  with RunDirectory(begun).locked():
    assert train() == (
      f'{begun} is in use by another process; use another --workdir'
    )


def test_a_directory_that_is_none_of_ours(command, tmp_path):
  (tmp_path / 'thesis.tex').write_text('precious')
  arguments = ('train', f'--config={RECIPE}')
  assert command(*arguments, f'--workdir={tmp_path}') == (
    f'--workdir must be a run directory or empty, {tmp_path} holds other files'
  )
  file = tmp_path / 'thesis.tex'
  assert command(*arguments, f'--workdir={file}') == (
    f'--workdir must be a directory, {file} is none'
  )
  assert file.read_text() == 'precious'


@pytest.mark.parametrize(
  'arguments', [['sample', '4 7 2 :'], ['evaluate'], ['report']]
)
def test_commands_on_what_is_no_run(command, tmp_path, arguments):
  name, *rest = arguments
  assert str(tmp_path / 'none') in command(name, tmp_path / 'none', *rest)


@pytest.mark.parametrize('arguments', [['sample', '4 7 2 :'], ['evaluate']])
def test_a_missing_or_damaged_checkpoint(begun, command, arguments):
  name, *rest = arguments
  assert command(name, begun, *rest) == (
    f'{begun} has no finished checkpoint yet'
  )
  CheckpointStore(begun / 'checkpoints', keep=1).save(
    4, {'state': {'trainable': {'x': jnp.zeros(3)}}}, {}
  )
  assert 'is of another program' in command(name, begun, *rest)
  data = next((begun / 'checkpoints' / '00000004' / 'arrays').rglob('d/*'))
  data.write_bytes(data.read_bytes()[:-1])
  assert 'is damaged' in command(name, begun, *rest)
  (begun / 'checkpoints' / '00000004' / 'manifest.json').write_text('{')
  assert 'manifest.json cannot be read' in command(name, begun, *rest)
  (begun / 'config.json').write_text('{')
  assert command(name, begun, *rest) == (
    f'{begun / "config.json"} is damaged: it is no JSON'
  )


def test_warnings(tmp_path, capsys):
  set_up(tmp_path / 'quiet')
  assert 'warning: ' not in capsys.readouterr().out
  set_up(
    tmp_path / 'warned',
    '--config.train.sequences_per_update=32',
    '--config.entropy.fraction=0.001',
    '--config.rollout.top_p=0.9',
  )
  printed = capsys.readouterr().out.splitlines()
  warnings = [line for line in printed if line.startswith('warning: ')]
  assert len(warnings) == 3
  for words in (
    'with one update per iteration (train.sequences_per_update = 32)',
    'entropy.fraction = 0.001 selects no token of an update, which has at '
    'most 128 response tokens',
    'importance weights are biased',
  ):
    assert any(words in warning for warning in warnings)


@pytest.mark.parametrize(
  ('command', 'words'),
  [
    ([], ['train', 'evaluate', 'sample', 'report', 'covrl train --config=']),
    (['train'], ['--config', '--workdir', '--config.seed=1', 'resumed']),
    (['evaluate'], ['held-out', '--samples', '--temperature', '--problems']),
    (['sample'], ['prompt', '--count', '--temperature', '--top_p', '--seed']),
    (['report'], ['compares', '--output', 'paired by seed']),
  ],
)
def test_help_explains(capsys, command, words):
  with pytest.raises(SystemExit) as ended:
    main([*command, '--help'])
  assert ended.value.code == 0
  printed = capsys.readouterr().out
  for word in words:
    assert word in printed


@pytest.mark.parametrize(
  'arguments', [[], ['trian'], ['train'], ['evaluate', 'x', '--config.seed=1']]
)
def test_misuse_says_how_it_is_used(capsys, arguments):
  with pytest.raises(SystemExit) as ended:
    main(arguments)
  assert ended.value.code == 2
  assert 'usage: covrl' in capsys.readouterr().err


def test_the_installed_command_prints_one_sentence(tmp_path):
  done = subprocess.run(
    [
      pathlib.Path(sys.executable).with_name('covrl'),
      'train',
      f'--config={RECIPE}',
      f'--workdir={tmp_path / "run"}',
      '--config.train.iteratons=3',
    ],
    env={**os.environ, 'PYTHONPATH': str(TESTS)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr == (
    "covrl: there is no config field 'train.iteratons'; did you mean "
    'train.iterations?\n'
  )
