# SPDX-License-Identifier: Apache-2.0
"""The training loop with signals, faults and jumps of the clock."""

import errno
import os
import random
import signal
import time

import numpy as np
import pytest
from etils import epath
from train.process import metric_lines
from train.small_loop import outcome, run

from covrl import config
from covrl.cli.errors import report_error
from covrl.evaluation.evaluator import EvaluationError
from covrl.exit_codes import Exit
from covrl.run import preemption
from covrl.run.checkpoint import Checkpoint
from covrl.run.directory import RunDirectory
from covrl.storage import StorageError
from covrl.train import Stopped
from covrl.train.setup.resume import extension_warning


@pytest.fixture(autouse=True)
def remove_handlers():
  """Removes the signal handlers that a stopped run keeps."""
  yield
  while preemption._lasting_handlers:
    preemption._lasting_handlers.pop().close()


@pytest.fixture(scope='module')
def uninterrupted_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  run(workdir)
  position, params, metrics = outcome(workdir)
  assert (position['iteration'], position['evaluated']) == (3, 3)
  assert [line['phase'] for line in metrics] == [
    *('eval', 'train', 'train', 'train', 'train'),
    *('eval', 'train', 'train', 'eval'),
  ]
  return position, params, metrics


def send_signals_at(stage, occurrence, *signals):
  """Returns a function that sends signals when a stage begins the `occurrence`-th time."""
  count = 0

  def on_stage(name):
    nonlocal count
    count += name == stage
    if name == stage and count == occurrence:
      for signal_number in signals:
        os.kill(os.getpid(), signal_number)

  return on_stage


@pytest.mark.parametrize(
  ('stage', 'occurrence', 'updates'),
  [
    ('sampling', 2, 2),
    ('scoring', 2, 2),
    ('update', 3, 3),
    ('evaluation', 2, 4),
    ('save', 2, 4),
    ('report', 2, 4),
  ],
)
def test_ctrl_c_saves_the_run_at_every_stage(
  tmp_path, uninterrupted_run, stage, occurrence, updates, capsys
):
  """A second signal, whatever it is, changes nothing."""
  on_stage = send_signals_at(stage, occurrence, signal.SIGINT, signal.SIGTERM)
  with pytest.raises(Stopped) as stopped:
    run(tmp_path / 'run', on_stage)
  assert stopped.value.exit_status == Exit.RESTART == 42
  stderr = capsys.readouterr().err
  assert stderr.count('stopped: the run is saved; start it again\n') == 1
  position, _, _ = outcome(tmp_path / 'run')
  assert 2 * position['iteration'] + position['update'] == updates
  run(tmp_path / 'run')
  assert outcome(tmp_path / 'run') == uninterrupted_run


@pytest.mark.parametrize('stage', ['set-up', 'compiling'])
@pytest.mark.parametrize(
  ('signal_number', 'status'),
  [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)],
)
def test_a_run_without_a_checkpoint_does_not_end_with_the_restart_status(
  tmp_path, stage, signal_number, status, capsys
):
  with pytest.raises(Stopped) as stopped:
    run(tmp_path / 'run', send_signals_at(stage, 1, signal_number))
  assert stopped.value.exit_status == status == 128 + signal_number
  assert 'before the first checkpoint: nothing is saved' in (
    capsys.readouterr().err
  )
  # The directory can be used with another configuration.
  run(tmp_path / 'run', train__learning_rate=0.5, train__iterations=1)
  assert outcome(tmp_path / 'run')[0]['iteration'] == 1
  with pytest.raises(config.ConfigError, match=r'train\.learning_rate is 0\.5'):
    run(tmp_path / 'run')


def test_signals_during_the_last_report_change_nothing(
  tmp_path, uninterrupted_run
):
  on_stage = send_signals_at('report', 4, signal.SIGINT)
  run(tmp_path / 'run', on_stage)
  assert outcome(tmp_path / 'run') == uninterrupted_run


def test_a_clock_that_jumps_between_updates_changes_nothing(
  tmp_path, uninterrupted_run, monkeypatch
):
  """Back by a day, then ahead by a year."""
  offset, original_time = 0.0, time.time

  def on_stage(stage):
    nonlocal offset, updates
    updates += stage == 'update'
    offset = {0: 0.0, 1: 0.0, 2: -86400.0}.get(updates, 3.15e7)

  updates = 0
  monkeypatch.setattr(time, 'time', lambda: original_time() + offset)
  run(tmp_path / 'run', on_stage, logging__tensorboard=True)
  assert outcome(tmp_path / 'run') == uninterrupted_run
  logged = metric_lines(tmp_path / 'run', 'train')
  assert all(0 <= line['seconds'] < 3600 for line in logged)
  assert all(line['tokens_per_second'] > 0 for line in logged)


class RecipeError(Exception):
  """An error of a user's code."""


def test_an_evaluation_that_fails_loses_no_update(tmp_path, uninterrupted_run):
  def on_stage(stage):
    nonlocal count
    count += stage == 'evaluation'
    if stage == 'evaluation' and count == 2:
      raise RecipeError

  count = 0
  with pytest.raises(RecipeError):
    run(tmp_path / 'run', on_stage)
  position, _, metrics = outcome(tmp_path / 'run')
  assert position['iteration'] == 2
  assert metrics[-1]['step'] == 4
  count = 2
  run(tmp_path / 'run', on_stage)
  assert outcome(tmp_path / 'run') == uninterrupted_run


def test_the_last_evaluation_is_repeated_where_it_failed(
  tmp_path, uninterrupted_run, capsys
):
  def on_stage(stage):
    nonlocal count
    count += stage == 'evaluation'
    if stage == 'evaluation' and count == 3:
      raise RecipeError

  count = 0
  with pytest.raises(RecipeError):
    run(tmp_path / 'run', on_stage)
  run(tmp_path / 'run')
  assert outcome(tmp_path / 'run') == uninterrupted_run
  assert 'is finished' not in capsys.readouterr().err
  run(tmp_path / 'run')
  assert 'is finished' in capsys.readouterr().err


@pytest.mark.parametrize('evaluate_every', [1, 3])
def test_a_run_that_is_shortened_below_its_checkpoint_states_both(
  tmp_path, capsys, evaluate_every
):
  settings = {'evaluate__every': evaluate_every}
  workdir = tmp_path / 'run'
  with pytest.raises(Stopped):
    run(workdir, send_signals_at('update', 5, signal.SIGINT), **settings)
  saved = outcome(workdir)
  assert (saved[0]['iteration'], saved[0]['update']) == (2, 1)
  for iterations in (2, 1):
    capsys.readouterr()
    run(workdir, train__iterations=iterations, **settings)
    assert (
      f'has trained more than train.iterations={iterations}: its checkpoint has 2'
      ' iterations and 1 of the 2 updates of the next; raise train.iterations to'
      ' go on' in capsys.readouterr().err
    )
    assert outcome(workdir) == saved
    fields = RunDirectory(workdir).read_config()['config']
    assert fields['train']['iterations'] == iterations
  for iterations, sentence in (
    (3, 'finished; see'),
    (3, 'is finished: 3 of 3 iterations'),
    (1, 'train.iterations=1: its checkpoint has 3 iterations; raise'),
  ):
    run(workdir, train__iterations=iterations, **settings)
    assert sentence in capsys.readouterr().err
  assert outcome(workdir)[0]['iteration'] == 3


def test_a_run_that_is_extended_keeps_its_schedules(tmp_path, capsys):
  schedule = {'train__schedule_iterations': 1}
  run(tmp_path / 'run', train__iterations=1, **schedule)
  assert 'schedules' not in capsys.readouterr().err
  run(tmp_path / 'run', train__iterations=2, **schedule)
  sentence = 'schedules run over 1 of 2 iterations'
  assert sentence in capsys.readouterr().err
  assert sentence in (tmp_path / 'run' / 'notices.jsonl').read_text()
  with pytest.raises(
    config.ConfigError, match='schedule_iterations is 1 there'
  ):
    run(tmp_path / 'run', train__schedule_iterations=2)


def test_a_run_that_samples_ahead_and_is_extended_is_reported(tmp_path, capsys):
  run(tmp_path / 'run', train__iterations=1, rollout__pipeline=1)
  assert 'sampled ahead' not in capsys.readouterr().err
  run(tmp_path / 'run', train__iterations=2, rollout__pipeline=1)
  sentence = (
    'no responses were sampled ahead for iteration 1 (rollout.pipeline)'
  )
  assert sentence in capsys.readouterr().err
  assert sentence in (tmp_path / 'run' / 'notices.jsonl').read_text()


@pytest.mark.parametrize(
  ('pipeline', 'iteration', 'update', 'sampled', 'is_reported'),
  [
    (1, 2, 0, [], True),
    # The last iteration was not finished.
    (1, 1, 1, [], True),
    (1, 2, 0, ['ahead'], False),
    # Before the first rollout, in the last iteration of now, and after it.
    (1, 0, 0, [], False),
    (1, 3, 1, [], False),
    (1, 4, 0, [], False),
    (0, 2, 0, [], False),
  ],
)
def test_only_a_run_that_ended_before_has_nothing_sampled_ahead(
  pipeline, iteration, update, sampled, is_reported
):
  settings = config.Config()
  settings.train.iterations, settings.rollout.pipeline = 4, pipeline
  metadata = {'position': {'iteration': iteration, 'update': update}}
  saved = Checkpoint(
    path=epath.Path('run'), position=1, metadata=metadata, files={}
  )
  saved.metadata['sampled'] = sampled
  note = extension_warning(settings, saved)
  assert ('differs from an uninterrupted one of 4' in note) == is_reported
  assert bool(note) == is_reported
  assert not extension_warning(settings, None)


def test_a_run_that_is_extended_with_other_diagnostics_is_reported(
  tmp_path, capsys
):
  sentence = 'logging.diagnostics_every 1 (now 2): the resumed run may differ'
  for iterations, interval, is_reported in (
    (1, 1, False),
    (2, 1, False),
    (3, 2, True),
  ):
    run(
      tmp_path / 'run',
      train__iterations=iterations,
      logging__diagnostics_every=interval,
    )
    assert (sentence in capsys.readouterr().err) == is_reported
  assert sentence in (tmp_path / 'run' / 'notices.jsonl').read_text()


def test_evaluations_without_a_result_do_not_end_a_run(tmp_path, capsys):
  def on_stage(stage):
    if stage == 'evaluation':
      raise EvaluationError('at most 5% of the responses …')

  run(tmp_path / 'run', on_stage)
  assert (
    capsys.readouterr().err.count('has no result: at most 5% of the responses')
    == 3
  )
  position, _, metrics = outcome(tmp_path / 'run')
  assert (position['iteration'], position['evaluated']) == (3, 3)
  assert {line['phase'] for line in metrics} == {'train'}
  notices = (tmp_path / 'run' / 'notices.jsonl').read_text()
  assert 'the evaluation before iteration 2 has no result' in notices


def test_the_evaluation_after_a_checkpoint_replaces_only_its_metadata(tmp_path):
  """The arrays of the only checkpoint are never written twice."""
  saves = []
  run(tmp_path / 'run', lambda stage: saves.append(stage == 'save'))
  # Before iteration 0 and both evaluations after it.
  assert sum(saves) == 3


def test_a_finished_run_whose_last_report_failed_writes_it_when_started_again(
  tmp_path,
):
  def fail_at_the_end(stage):
    if stage == 'report' and len(metric_lines(tmp_path / 'run', 'eval')) == 3:
      raise StorageError('report.html cannot be written: no space left')

  with pytest.raises(StorageError, match='no space left'):
    run(tmp_path / 'run', fail_at_the_end)
  before = outcome(tmp_path / 'run')
  assert before[0]['evaluated'] == 3
  stages = []
  run(tmp_path / 'run', stages.append)
  assert stages == ['report']
  assert outcome(tmp_path / 'run')[0] == before[0]


def test_changed_metrics_of_a_finished_run_are_reported(tmp_path, capsys):
  run(tmp_path / 'run', lambda stage: None)
  run(tmp_path / 'run', lambda stage: None)
  assert 'metrics.jsonl' not in capsys.readouterr().err
  file = tmp_path / 'run' / 'metrics.jsonl'
  file.write_bytes(file.read_bytes().replace(b'0', b'1', 1))
  run(tmp_path / 'run', lambda stage: None)
  assert f'{file} is not what was saved' in capsys.readouterr().err


def test_evaluations_that_are_removed_during_a_run_are_reported(tmp_path):
  """At its end, and when it is started again."""
  file = tmp_path / 'run' / 'evaluation' / 'iteration_000000.jsonl'
  run(
    tmp_path / 'run',
    lambda stage: stage == 'update' and file.unlink(missing_ok=True),
  )
  notices = tmp_path / 'run' / 'notices.jsonl'
  assert f'evaluation/{file.name} is missing' in notices.read_text()
  notices.unlink()
  run(tmp_path / 'run')
  assert f'evaluation/{file.name} is missing' in notices.read_text()


@pytest.mark.parametrize(
  'name', ['config.json', 'metrics.jsonl', 'notices.jsonl']
)
def test_a_file_that_cannot_be_read_ends_a_resumed_run_in_one_sentence(
  tmp_path, monkeypatch, capsys, name
):
  """The system's errors of reading an open file have no name."""
  run(tmp_path, train__iterations=1)
  (tmp_path / 'notices.jsonl').write_text('{"text": "a"}\n')
  original_read = type(epath.Path()).read_bytes

  def failing_read(file):
    if file.name == name:
      raise OSError(errno.EIO, os.strerror(errno.EIO))
    return original_read(file)

  with monkeypatch.context() as patch:
    patch.setattr(type(epath.Path()), 'read_bytes', failing_read)
    with pytest.raises(OSError) as caught:
      run(tmp_path, train__iterations=2)
    assert report_error(caught.value) == Exit.STORAGE
  message = capsys.readouterr().err.splitlines()[-1]
  assert message.endswith(f'{name} cannot be read: input/output error')
  run(tmp_path, train__iterations=2)


def test_a_run_in_a_relative_directory_outlasts_another_working_directory(
  tmp_path, monkeypatch, uninterrupted_run
):
  """Functions of a recipe may change it."""
  (tmp_path / 'other').mkdir()
  monkeypatch.chdir(tmp_path)
  run('run', lambda stage: os.chdir(tmp_path / 'other'))
  assert outcome(tmp_path / 'run') == uninterrupted_run
  assert list((tmp_path / 'other').iterdir()) == []


def test_functions_of_a_recipe_draw_the_same_numbers_when_a_run_is_resumed(
  tmp_path,
):
  draws = []

  def draw(stage):
    if stage in ('set-up', 'compiling'):
      draws.append((stage, random.random(), np.random.uniform()))
    random.seed()
    np.random.seed()

  for iterations in (1, 2):
    run(tmp_path, draw, train__iterations=iterations)
  assert draws[:2] == draws[2:]
