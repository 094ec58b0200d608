# SPDX-License-Identifier: Apache-2.0
"""The training loop with faults, on a policy of one number.

Models, sampling and scoring are replaced; checkpoints, metrics, the directory and
the handling of signals are the real ones.
"""

import dataclasses
import os
import signal
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.process import RECIPES, lines
from train.runs import without_clock

from covrl import config
from covrl.data import (
  ListSource,
  Problem,
  StreamState,
  Suite,
  train_sentencepiece,
)
from covrl.evaluation.evaluator import EvaluationError
from covrl.evaluation.results import Evaluation, SuiteResult
from covrl.exit_codes import Exit
from covrl.parallel import distributed
from covrl.run import preemption
from covrl.run.checkpoint import CheckpointStore
from covrl.tasks.task import Task
from covrl.train import Stopped, loop, train
from covrl.train.rollout_collector import CollectorState

SETTINGS = {
  'train.iterations': 3,
  'train.sequences_per_update': 16,
  'evaluate.every': 2,
  'warm_start.steps': 0,
  'checkpoint.every': 10,
  'checkpoint.every_updates': 0,
  'logging.samples': 0,
  'logging.entropy_change_every': 0,
}
PROBLEMS = [
  Problem(prompt=f'{n} :', reference=n, source='toy', solution=str(n))
  for n in range(4)
]
TASK = Task(
  tokenizer=train_sentencepiece([*map(str, range(4)), ':']),
  train=ListSource(PROBLEMS),
  solved=None,
  held_out=PROBLEMS,
  rewards=[],
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """A training state; `frozen` is empty."""

  trainable: Any
  step: Any
  frozen: Any = dataclasses.field(default_factory=dict)


@pytest.fixture(autouse=True)
def handlers():
  """Removes the signal handlers that a stopped run keeps."""
  yield
  while preemption._lasting_handlers:
    preemption._lasting_handlers.pop().close()


def wait():
  """Waits once, as for a device or a worker."""
  distributed.wait_until(iter([False, True]).__next__)


PARAMS = {'w': jnp.zeros(2)}


def on_device(array):
  """Describes an array, with its sharding."""
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


class Programs:
  """Adds each update's rows to the parameters."""

  def __init__(self, at):
    self.at = at

  def init_state(self, params):
    return State(params, jnp.zeros((), jnp.int32))

  def abstract_state(self):
    return jax.tree.map(on_device, self.init_state(PARAMS))

  def params(self, state):
    return state.trainable

  def copy(self, tree):
    return tree

  def assign_credit(self, state, rollout):
    return state, rollout

  def update(self, state, rows, is_first, key):
    del is_first, key
    self.at('update')
    metrics = {'entropy': 0.5, 'tokens': 3.0, 'loss': 0.1, 'skipped': 0.0}
    metrics |= {'gradient_norm': 1.0, 'rows': float(rows.sum())}
    old = state.trainable['w']
    changed = State({'w': 0.9 * old + rows.sum(0)}, state.step + 1)
    return changed, jax.tree.map(jnp.asarray, metrics)


class Collector:
  """Draws 32 random rows per iteration."""

  def __init__(self, at):
    self.at = at
    prompts: StreamState = {'draw': 0, 'seed': 0, 'problems': ''}
    self.state = CollectorState(prompts, None, None)

  def collect(self, iteration, state):
    del iteration, state
    draw = self.state.prompts['draw']
    prompts: Any = self.state.prompts | {'draw': draw + 1}
    self.restore(prompts, None, None)
    self.at('sampling')
    wait()
    self.at('scoring')
    wait()
    return self._batch(np.random.default_rng(draw).normal(size=(32, 2)))

  def restore(self, prompts, ahead, carried):
    self.state = CollectorState(prompts, ahead, carried)

  def padding_batch(self):
    return self._batch(np.zeros((32, 2)))

  def close(self):
    """Does nothing."""

  def _batch(self, rows):
    return loop.RolloutBatch(
      batch=rows.astype(np.float32),
      order=np.arange(32),
      rewards=np.zeros(32, np.float32),
      groups=np.arange(32),
      policy_step=np.zeros((32, 2), np.int32),
      metrics={},
    )


class Evaluator:
  """Scores every response as correct."""

  def __init__(self, at):
    self.at = at

  def evaluate(self, params, on_progress):
    del params
    on_progress(0, 4)
    self.at('evaluation')
    wait()
    result = SuiteResult(
      suite=Suite(name='', problems=PROBLEMS),
      greedy=np.ones(4),
      correct=np.zeros((4, 0)),
      responses=[['1']] * 4,
    )
    return Evaluation(results=(result,), entropy=0.5)


def run(workdir, at=lambda stage: None, **overrides):
  """Trains; `at` is called with the name of each stage that begins."""
  settings = SETTINGS | {k.replace('__', '.'): v for k, v in overrides.items()}
  recipe = config.load(
    f'{RECIPES / "toy_kl_cov.py"}',
    [f'--config.{name}={value}' for name, value in settings.items()],
  )

  def build(recipe, saved, note):
    del recipe, saved, note
    at('set-up')
    params = types.SimpleNamespace(init=lambda key, mesh: PARAMS)
    return types.SimpleNamespace(
      mesh=None,
      task=TASK,
      policy=types.SimpleNamespace(
        config=types.SimpleNamespace(lora=None), base=params
      ),
      programs=Programs(at),
      collector=Collector(at),
      scoring=types.SimpleNamespace(close=lambda: None),
      evaluator=Evaluator(at),
      shared_warm_start=None,
      init_key=None,
      train_key=None,
      compile=lambda state: at('compiling'),
    )

  save = CheckpointStore.save

  def observed_save(*args, **kwargs):
    at('save')
    save(*args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'build', build)
    patch.setattr(CheckpointStore, 'save', observed_save)
    train(recipe, str(workdir), write_report=lambda path: at('report'))


def outcome(workdir):
  """Returns the last checkpoint's position and parameters, and the metrics."""
  saved = CheckpointStore(workdir / 'checkpoints', keep=1).latest()
  assert saved is not None
  (params,) = jax.tree.leaves(
    saved.restore_subtree('state.trainable', jax.tree.map(on_device, PARAMS))
  )
  metrics = [without_clock(line) for line in lines(workdir)]
  return saved.notes['position'], np.asarray(params).tolist(), metrics


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  run(workdir)
  position, params, metrics = outcome(workdir)
  assert (position['iteration'], position['evaluated']) == (3, 3)
  assert [line['phase'] for line in metrics] == [
    *('eval', 'train', 'train', 'train', 'train'),
    *('eval', 'train', 'train', 'eval'),
  ]
  return position, params, metrics


def sends_at(stage, number, *signals):
  """Returns a function that sends signals when a stage begins once more."""
  count = 0

  def at(name):
    nonlocal count
    count += name == stage
    if name == stage and count == number:
      for each in signals:
        os.kill(os.getpid(), each)

  return at


@pytest.mark.parametrize(
  ('stage', 'number', 'updates'),
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
  tmp_path, uninterrupted, stage, number, updates, capsys
):
  """A second signal, whatever it is, changes nothing."""
  at = sends_at(stage, number, signal.SIGINT, signal.SIGTERM)
  with pytest.raises(Stopped) as stopped:
    run(tmp_path / 'run', at)
  assert stopped.value.exit_status == Exit.RESTART == 42
  stderr = capsys.readouterr().err
  assert stderr.count('stopped: the run is saved; start it again\n') == 1
  position, _, _ = outcome(tmp_path / 'run')
  assert 2 * position['iteration'] + position['update'] == updates
  run(tmp_path / 'run')
  assert outcome(tmp_path / 'run') == uninterrupted


@pytest.mark.parametrize('stage', ['set-up', 'compiling'])
@pytest.mark.parametrize(
  ('number', 'status'),
  [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)],
)
def test_a_run_without_a_checkpoint_does_not_ask_to_be_restarted(
  tmp_path, stage, number, status, capsys
):
  with pytest.raises(Stopped) as stopped:
    run(tmp_path / 'run', sends_at(stage, 1, number))
  assert stopped.value.exit_status == status == 128 + number
  assert 'before the first checkpoint: nothing is saved' in (
    capsys.readouterr().err
  )
  # The directory can be used with another configuration.
  run(tmp_path / 'run', train__learning_rate=0.5, train__iterations=1)
  assert outcome(tmp_path / 'run')[0]['iteration'] == 1
  with pytest.raises(config.ConfigError, match=r'train\.learning_rate is 0\.5'):
    run(tmp_path / 'run')


def test_signals_during_the_last_report_change_nothing(tmp_path, uninterrupted):
  at = sends_at('report', 4, signal.SIGINT)
  run(tmp_path / 'run', at)
  assert outcome(tmp_path / 'run') == uninterrupted


def test_a_clock_that_jumps_between_updates_changes_nothing(
  tmp_path, uninterrupted, monkeypatch
):
  """Back by a day, then ahead by a year."""
  offset, real = 0.0, time.time

  def at(stage):
    nonlocal offset, updates
    updates += stage == 'update'
    offset = {0: 0.0, 1: 0.0, 2: -86400.0}.get(updates, 3.15e7)

  updates = 0
  monkeypatch.setattr(time, 'time', lambda: real() + offset)
  run(tmp_path / 'run', at, logging__tensorboard=True)
  assert outcome(tmp_path / 'run') == uninterrupted
  logged = lines(tmp_path / 'run', 'train')
  assert all(0 <= line['seconds'] < 3600 for line in logged)
  assert all(line['tokens_per_second'] > 0 for line in logged)


class Broken(Exception):
  """An error of a user's code."""


def test_an_evaluation_that_fails_loses_no_update(tmp_path, uninterrupted):
  def at(stage):
    nonlocal count
    count += stage == 'evaluation'
    if stage == 'evaluation' and count == 2:
      raise Broken

  count = 0
  with pytest.raises(Broken):
    run(tmp_path / 'run', at)
  position, _, metrics = outcome(tmp_path / 'run')
  assert position['iteration'] == 2
  assert metrics[-1]['step'] == 4
  count = 2
  run(tmp_path / 'run', at)
  assert outcome(tmp_path / 'run') == uninterrupted


def test_the_last_evaluation_is_repeated_where_it_failed(
  tmp_path, uninterrupted, capsys
):
  def at(stage):
    nonlocal count
    count += stage == 'evaluation'
    if stage == 'evaluation' and count == 3:
      raise Broken

  count = 0
  with pytest.raises(Broken):
    run(tmp_path / 'run', at)
  run(tmp_path / 'run')
  assert outcome(tmp_path / 'run') == uninterrupted
  assert 'is finished' not in capsys.readouterr().err
  run(tmp_path / 'run')
  assert 'is finished' in capsys.readouterr().err


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


def test_unscored_responses_never_end_a_run(tmp_path, capsys):
  def at(stage):
    if stage == 'evaluation':
      raise EvaluationError('at most 5% of the responses …')

  run(tmp_path / 'run', at)
  assert (
    capsys.readouterr().err.count('has no result: at most 5% of the responses')
    == 3
  )
  position, _, metrics = outcome(tmp_path / 'run')
  assert (position['iteration'], position['evaluated']) == (3, 3)
  assert {line['phase'] for line in metrics} == {'train'}
  notices = (tmp_path / 'run' / 'notices.jsonl').read_text()
  assert 'the evaluation before iteration 2 has no result' in notices


def test_checkpoints_take_the_notes_of_the_evaluation(tmp_path):
  """The arrays of the only checkpoint are never written twice."""
  saves = []
  run(tmp_path / 'run', lambda stage: saves.append(stage == 'save'))
  # Before iteration 0 and both evaluations after it.
  assert sum(saves) == 3
