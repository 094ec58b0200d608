# SPDX-License-Identifier: Apache-2.0
"""The training loop on a policy of two numbers, for tests of signals and faults.

Models, sampling and scoring are replaced; checkpoints, metrics, the directory and
the handling of signals are the real ones.
"""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.process import RECIPES, metric_lines
from train.runs import without_clock

from covrl import config
from covrl.data import (
  ListSource,
  Problem,
  StreamState,
  Suite,
  train_sentencepiece,
)
from covrl.evaluation.results import Evaluation, SuiteResult
from covrl.models import tiny
from covrl.parallel import distributed
from covrl.run.checkpoint import CheckpointStore
from covrl.tasks.task import Task
from covrl.train import loop, train
from covrl.train.collect.collector import CollectorState
from covrl.train.setup.code import code_fingerprints

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


def wait():
  """Waits once, as for a device or a worker."""
  distributed.wait_until(iter([False, True]).__next__)


PARAMS = {'w': jnp.zeros(2)}
# Fingerprints of the recipe's functions.
FUNCTION_FINGERPRINTS = {
  'loss of the recipe': 'jax a',
  'tx of the recipe': 'jax b',
}


def abstract_array(array):
  """Describes an array, with its sharding."""
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


class Programs:
  """Replaces the compiled programs: an update adds its rows to the parameters."""

  networks = types.SimpleNamespace(models={})

  def __init__(self, on_stage):
    self.on_stage = on_stage

  def init_state(self, params):
    return State(params, jnp.zeros((), jnp.int32))

  def abstract_state(self):
    return jax.tree.map(abstract_array, self.init_state(PARAMS))

  def params(self, state):
    return state.trainable

  def copy(self, tree):
    return tree

  def assign_credit(self, state, rollout):
    return state, rollout

  def update(self, state, rows, is_first, key):
    del is_first, key
    self.on_stage('update')
    metrics = {'entropy': 0.5, 'tokens': 3.0, 'loss': 0.1, 'skipped': 0.0}
    metrics |= {'gradient_norm': 1.0, 'rows': float(rows.sum())}
    old = state.trainable['w']
    updated = State({'w': 0.9 * old + rows.sum(0)}, state.step + 1)
    return updated, jax.tree.map(jnp.asarray, metrics)


class Collector:
  """Replaces the rollout collector: 32 random rows per iteration."""

  def __init__(self, on_stage):
    self.on_stage = on_stage
    prompts: StreamState = {'draw': 0, 'seed': 0, 'problems': ''}
    self.state = CollectorState(prompts, None, None)

  def collect(self, iteration, state):
    del iteration, state
    draw = self.state.prompts['draw']
    prompts: Any = self.state.prompts | {'draw': draw + 1}
    self.restore(prompts, None, None)
    self.on_stage('sampling')
    wait()
    self.on_stage('scoring')
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
  """Replaces the evaluator: every response is correct."""

  def __init__(self, on_stage):
    self.on_stage = on_stage

  def evaluate(self, params, on_progress):
    del params
    on_progress(0, 4)
    self.on_stage('evaluation')
    wait()
    result = SuiteResult(
      suite=Suite(name='', problems=PROBLEMS),
      greedy=np.ones(4),
      correct=np.zeros((4, 0)),
      responses=[['1']] * 4,
    )
    return Evaluation(results=(result,), entropy=0.5)


def run(workdir, on_stage=lambda stage: None, **overrides):
  """Trains; calls `on_stage` with the name of each stage that begins."""
  settings = SETTINGS | {k.replace('__', '.'): v for k, v in overrides.items()}
  recipe = config.load(
    f'{RECIPES / "toy_kl_cov.py"}',
    [f'--config.{name}={value}' for name, value in settings.items()],
  )

  def build(recipe, saved, note):
    del saved, note
    on_stage('set-up')
    params = types.SimpleNamespace(init=lambda key, mesh: PARAMS)
    return types.SimpleNamespace(
      mesh=None,
      task=TASK,
      policy=types.SimpleNamespace(config=tiny(16), base=params),
      programs=Programs(on_stage),
      collector=Collector(on_stage),
      scoring=types.SimpleNamespace(close=lambda: None),
      evaluator=Evaluator(on_stage),
      shared_warm_start=None,
      code_fingerprints=code_fingerprints(recipe, TASK),
      function_fingerprints=FUNCTION_FINGERPRINTS,
      init_key=None,
      train_key=None,
      compile=lambda state: on_stage('compiling'),
    )

  save = CheckpointStore.save

  def observed_save(*args, **kwargs):
    on_stage('save')
    save(*args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'build', build)
    patch.setattr(CheckpointStore, 'save', observed_save)
    train(recipe, str(workdir), write_report=lambda path: on_stage('report'))


def outcome(workdir):
  """Returns the last checkpoint's position and parameters, and the metrics."""
  saved = CheckpointStore(workdir / 'checkpoints', keep=1).latest()
  assert saved is not None
  (params,) = jax.tree.leaves(
    saved.restore_subtree(
      'state.trainable', jax.tree.map(abstract_array, PARAMS)
    )
  )
  metrics = [without_clock(line) for line in metric_lines(workdir)]
  return saved.metadata['position'], np.asarray(params).tolist(), metrics
