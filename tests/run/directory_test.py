# SPDX-License-Identifier: Apache-2.0
"""Run directories: traces of training, locks, damaged and changed files."""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from covrl.config import (
  Config,
  ConfigError,
  from_dict,
  load,
  unknown_fields,
)
from covrl.run.checkpoint import CheckpointError, CheckpointStore
from covrl.run.directory import RECIPE, RunDirectory
from covrl.storage import StorageError


@pytest.mark.parametrize(
  ('name', 'trace'),
  [
    ('checkpoints/00000012/arrays', 'checkpoints/00000012'),
    ('rollouts/iteration_000000.json', 'rollouts/iteration_000000.json'),
    ('evaluation/iteration_000002.jsonl', 'evaluation/iteration_000002.jsonl'),
    ('tb/train/events.out.tfevents.1.0', 'tb/train/events'),
    ('metrics.jsonl', 'metrics of training in metrics.jsonl'),
  ],
)
def test_a_run_that_has_trained_does_not_start_again(directory, name, trace):
  directory.refuse_restart()
  file = pathlib.Path(directory.path / name)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text('{"step": 1, "iteration": 0, "phase": "train"}\n')
  with pytest.raises(CheckpointError) as caught:
    directory.refuse_restart()
  assert f'{directory.path} must have a checkpoint beside {trace}' in str(
    caught.value
  )
  assert 'does not start again from the beginning by itself' in str(
    caught.value
  )


@pytest.mark.parametrize(
  'name',
  [
    'checkpoints/00000000/arrays',
    'evaluation/iteration_000000.jsonl',
    'tb/warm_start/events.out.tfevents.1.0',
    'metrics.jsonl',
  ],
)
def test_a_run_killed_before_its_first_checkpoint_starts_again(directory, name):
  file = pathlib.Path(directory.path / name)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text('{"step": 1, "iteration": 0, "phase": "warm_start"}\n')
  directory.refuse_restart()


def test_a_file_left_by_a_killed_write_does_not_block_a_directory(
  tmp_path, recipe
):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / '.config.json.tmp').write_text('{"na')
  RunDirectory(workdir).check(recipe)
  (workdir / 'thesis.tmp').write_text('precious')
  with pytest.raises(ConfigError, match='got other files in'):
    RunDirectory(workdir).check(recipe)


def test_another_recipe_takes_over_no_file_of_a_run_without_progress(
  directory, recipe
):
  names = ('notices.jsonl', 'report.html', 'task.json', 'wandb_id.txt')
  for each, expected in (
    (recipe, True),
    (dataclasses.replace(recipe, name='recipe:other'), False),
  ):
    for name in names:
      pathlib.Path(directory.path / name).write_text('')
    directory.write_recipe(each)
    for name in names:
      assert (directory.path / name).exists() == expected


@pytest.mark.parametrize('name', ['checkpoints', 'warm_start', 'rollouts'])
def test_refuses_a_file_with_the_name_of_a_directory(directory, recipe, name):
  pathlib.Path(directory.path / name).write_text('')
  with pytest.raises(ConfigError, match=f'{name} must be a directory'):
    directory.check(recipe)


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl'])
def test_refuses_a_pipe_with_the_name_of_a_file(directory, recipe, name):
  file = pathlib.Path(directory.path / name)
  file.unlink(missing_ok=True)
  os.mkfifo(file)
  with pytest.raises(ConfigError, match=f'{name} must be a file'):
    directory.check(recipe)


def test_notices_are_recorded_once(directory):
  for text in ('one', 'two', 'one'):
    directory.add_notice(text)
  lines = (directory.path / 'notices.jsonl').read_text().splitlines()
  assert [json.loads(line)['text'] for line in lines] == ['one', 'two']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda path: path.rename(path.with_name('b')), 'was moved to .*/b while'),
    (shutil.rmtree, 'was removed or replaced while'),
    (
      lambda path: (path.rename(path.with_name('b')), path.mkdir()),
      'was moved to .*/b while',
    ),
  ],
)
def test_a_moved_or_replaced_directory_is_not_written(
  tmp_path, recipe, change, message
):
  directory = RunDirectory(tmp_path / 'run')
  store = CheckpointStore(directory.checkpoints, 1, directory.check_lock)
  with directory.locked():
    directory.write_recipe(recipe)
    change(tmp_path / 'run')
    for write in (
      lambda: directory.write_json('task.json', {}),
      lambda: directory.add_notice('a'),
      lambda: store.save(1, {'a': np.zeros(1)}, {}),
    ):
      with pytest.raises(StorageError, match=message):
        write()
  assert [x for x in (tmp_path / 'run').rglob('*') if x.is_file()] == []


def test_a_run_by_a_link_stops_when_the_link_names_another_directory(tmp_path):
  link = tmp_path / 'latest'
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
  link.symlink_to('a')
  directory = RunDirectory(link)
  with directory.locked():
    with pytest.raises(ConfigError, match='is in use'):
      RunDirectory(tmp_path / 'a').locked().__enter__()
    link.unlink()
    link.symlink_to('b')
    with pytest.raises(StorageError, match=r'moved to .*/a while'):
      directory.write_json('task.json', {})


def test_a_removed_lock_is_acquired_again(tmp_path):
  first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
  with first.locked():
    (tmp_path / '.lock').unlink()
    first.check_lock()
    with pytest.raises(ConfigError, match='is in use'):
      second.locked().__enter__()
    (tmp_path / '.lock').unlink()
    with second.locked():
      with pytest.raises(ConfigError, match='is in use'):
        first.write_json('task.json', {})
      second.write_json('task.json', {})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda saved: [], "must be an object with 'name'"),
    (lambda saved: None, "must be an object with 'name'"),
    (lambda saved: saved | {'name': 3}, "must be an object with 'name' (str)"),
    (lambda saved: saved | {'config': None}, "with 'config' (dict)"),
    (lambda saved: saved | {'identity': None}, "with 'identity' (str)"),
    (
      lambda saved: saved | {'config': {'train': []}},
      'train must have a value',
    ),
    (
      lambda saved: saved | {'config': {'train': {'iterations': 'x'}}},
      "train.iterations must have a value of type int, got 'x'",
    ),
    (
      lambda saved: saved | {'config': {'train': {'iterations': True}}},
      'train.iterations must have a value of type int',
    ),
  ],
)
def test_a_damaged_configuration_is_refused_with_its_file_and_field(
  directory, recipe, change, message
):
  file = pathlib.Path(directory.path / 'config.json')
  file.write_text(json.dumps(change(json.loads(file.read_text()))))
  for use in (directory.read_config, lambda: directory.check(recipe)):
    with pytest.raises(ConfigError) as caught:
      use()
    assert str(caught.value).startswith(f'{file} is damaged: ')
    assert message in str(caught.value)


def edit(content):
  """Changes a field that must stay the same when a run is resumed."""
  saved = json.loads(content)
  saved['config']['seed'] += 1
  return json.dumps(saved).encode()


# Changes of a file's content, `None` for its removal, and how each is reported.
CHANGES = [
  (lambda content: None, 'was removed'),
  (lambda content: b'', 'is damaged'),
  (lambda content: content[:100], 'is damaged'),
  (edit, 'was changed (seed is 1 there and 0 here)'),
  (
    lambda content: json.dumps(json.loads(content) | {'identity': ''}).encode(),
    'was changed (the config file has changed since)',
  ),
]


def apply_change(file, change):
  """Applies `change` to a file's content; returns the content before and after."""
  before = file.read_bytes()
  after = change(before)
  file.unlink()
  if after is not None:
    file.write_bytes(after)
  return before, after


@pytest.mark.parametrize(('change', 'message'), CHANGES)
def test_a_configuration_that_was_changed_since_a_checkpoint_is_restored(
  directory, recipe, change, message
):
  """The checkpoint has the identity of its recipe."""
  store = CheckpointStore(directory.checkpoints, keep=1)
  inputs = {RECIPE: recipe.identity}
  store.save(3, {'x': np.zeros(2)}, {'inputs': inputs, 'iteration': 3})
  file = pathlib.Path(directory.path / 'config.json')
  before, after = apply_change(file, change)
  other = dataclasses.replace(recipe, name='recipe:other')
  with pytest.raises(ConfigError):
    RunDirectory(directory.path).check(other)

  resumed, warnings = RunDirectory(directory.path), []
  resumed.check(recipe)
  resumed.write_recipe(recipe, warnings.append)
  assert file.read_bytes() == before
  (text,) = warnings
  assert text.startswith(f'{file} {message}; it is written again'), text
  copies = [path.read_bytes() for path in file.parent.glob('config.changed_*')]
  assert copies == ([] if after is None else [after])
  assert (directory.checkpoints / '00000003').is_dir()
  RunDirectory(directory.path).write_recipe(recipe, warnings.append)
  assert len(warnings) == 1


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda content: None, 'was removed; it is written again'),
    (
      lambda content: b'# Edited.',
      'was changed; it is written again, its old content is kept as'
      ' recipe_recipe.changed_1.py',
    ),
  ],
)
def test_a_recipe_that_was_changed_since_a_checkpoint_is_restored(
  directory, recipe, change, message
):
  store = CheckpointStore(directory.checkpoints, keep=1)
  recipe = dataclasses.replace(recipe, sources={'recipe.py': '# Text.'})
  directory.write_recipe(recipe)
  inputs = {RECIPE: recipe.identity}
  store.save(3, {'x': np.zeros(2)}, {'inputs': inputs, 'iteration': 3})
  file = pathlib.Path(directory.path / 'recipe' / 'recipe.py')
  apply_change(file, change)
  resumed, warnings = RunDirectory(directory.path), []
  resumed.write_recipe(recipe, warnings.append)
  assert warnings == [f'{file} {message}']
  assert file.read_text() == '# Text.'
  copies = file.parent.parent.glob('recipe_recipe.changed_*')
  assert [copy.read_text() for copy in copies] == ['# Edited.'] * (
    'changed' in message
  )
  RunDirectory(directory.path).write_recipe(recipe, warnings.append)
  assert len(warnings) == 1


@pytest.mark.parametrize(('change', 'message'), CHANGES[:2])
@pytest.mark.parametrize('name', ['config.json', 'recipe/recipe.py'])
def test_files_that_are_changed_during_a_run_are_restored(
  directory, recipe, name, change, message
):
  recipe = dataclasses.replace(recipe, sources={'recipe.py': '# Text.'})
  warnings = []
  directory.write_recipe(recipe, warnings.append)
  directory.check_files()
  assert warnings == []
  file = pathlib.Path(directory.path / name)
  before, _ = apply_change(file, change)
  directory.check_files()
  directory.check_files()
  assert file.read_bytes() == before
  assert len(warnings) == 1
  assert str(file) in warnings[0]
  assert 'it is written again' in warnings[0]


def test_a_run_of_another_version_is_refused_with_the_fields_that_differ(
  directory, recipe
):
  file = pathlib.Path(directory.path / 'config.json')
  saved = json.loads(file.read_text()) | {'identity': 'other'}
  train = saved['config']['train']
  # A renamed field is not reported as one with another value.
  train['low'] = train.pop('clip_low') + 0.5
  saved['config']['task'] = saved['config'].pop('countdown')
  file.write_text(json.dumps(saved))
  (directory.path / 'rollouts').mkdir()
  (directory.path / 'rollouts' / 'iteration_000000.json').write_text('')
  with pytest.raises(ConfigError) as refused:
    directory.check(recipe)
  assert str(refused.value) == (
    f"{directory.path} holds another configuration's run (of another version of"
    ' covrl, with train.low, task and without countdown, train.clip_low); use'
    ' another --workdir'
  )


@pytest.mark.parametrize('renamed', [True, False])
def test_a_recipe_of_another_version_is_refused_in_one_sentence(
  tmp_path, renamed
):
  recipe = load('countdown:grpo')
  directory = RunDirectory(tmp_path)
  old = recipe.sources['countdown.py'].replace(
    'config.countdown.max_value', 'config.task.max_value'
  )
  directory.write_recipe(
    dataclasses.replace(recipe, sources={**recipe.sources, 'countdown.py': old})
  )
  if renamed:
    saved = json.loads((tmp_path / 'config.json').read_text())
    saved['config']['task'] = saved['config'].pop('countdown')
    (tmp_path / 'config.json').write_text(json.dumps(saved))
  # A mistake in a recipe of this version keeps its traceback.
  error, message = (
    (ConfigError, 'saved by another one, with task and without countdown$')
    if renamed
    else (AttributeError, "no attribute 'task'")
  )
  with pytest.raises(error, match=message):
    directory.recipe()


def test_fields_of_another_version_are_listed():
  saved = dataclasses.asdict(Config())
  saved |= {'later': 1, 'train': saved['train'] | {'later': {}}}
  assert sorted(unknown_fields(saved)) == ['later', 'train.later']
  assert from_dict(saved) == Config()


@pytest.mark.parametrize('name', ['a[1]', 'a*', 'a?', 'a\\b'])
def test_refuses_names_that_are_patterns(tmp_path, name):
  """A checkpoint in such a directory could be written and not read."""
  with (
    pytest.raises(ConfigError, match=r'--workdir must be without \* \? \['),
    RunDirectory(tmp_path / name / 'run').locked(),
  ):
    pytest.fail('locked')
  assert list(tmp_path.iterdir()) == []


def test_refuses_names_that_are_not_unicode(tmp_path):
  """Libraries written in C++ do not take them."""
  name = os.fsdecode(b'run \xff')
  with (
    pytest.raises(ConfigError, match='--workdir must be Unicode, got'),
    RunDirectory(tmp_path / name).locked(),
  ):
    pytest.fail('locked')
  assert list(tmp_path.iterdir()) == []
