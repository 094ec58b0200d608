# SPDX-License-Identifier: Apache-2.0
"""The warm start is stopped, killed and resumed bit for bit."""

import dataclasses
import os
import shutil
import signal
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train import runs, toy
from train.process import metric_lines, start, train
from train.runs import SMALL, without_clock

from covrl.config import ConfigError
from covrl.data import PromptFormat
from covrl.data.problems import source_fingerprint
from covrl.exit_codes import Exit
from covrl.models import Policy
from covrl.parallel import sharding
from covrl.run import preemption
from covrl.run.checkpoint import Checkpoint
from covrl.run.consistency import versions
from covrl.run.directory import RunDirectory
from covrl.run.metrics_writer import MetricsWriter
from covrl.run.preemption import Stopped, StopSignal
from covrl.run.progress import Progress
from covrl.train import sft
from covrl.train.setup.inputs import policy_fingerprints
from covrl.train.setup.resume import saved_metrics
from covrl.train.setup.shared_warm_start import shared_warm_start

STEPS = 7
CONFIG = toy.get_config()
CONFIG.warm_start.steps = STEPS
CONFIG.logging.warm_start_every = 2
TASK = toy.make_task(CONFIG)
POLICY = Policy(toy.make_model(CONFIG, TASK.tokenizer.vocab_size))
TX = toy.make_warm_start_tx(CONFIG)
MESH = sharding.make_mesh({'data': 1}, jax.devices()[:1])


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  """All warm starts of this file share one compiled update."""
  original_make, compiled = sft.make_sft_step, {}

  def shared_step(policy, tx):
    if tx not in compiled:
      compiled[tx] = original_make(policy, tx)
    return compiled[tx]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sft, 'make_sft_step', shared_step)
    yield


class Killed(Exception):
  """Stands for a kill of the process."""


def run(
  workdir,
  before_step=lambda step: None,
  checkpoint_every=0,
  tx=TX,
  warn=lambda text: None,
):
  """Starts or resumes a warm start; `before_step` is called with each step before it."""
  CONFIG.checkpoint.warm_start_every = checkpoint_every
  directory = RunDirectory(workdir)
  store = sft.warm_start_store(directory)
  saved = store.newest_undamaged()
  writer = MetricsWriter(
    directory.metrics, CONFIG.logging, name='', saved=saved_metrics(saved)
  )
  original_next = sft.SupervisedStream.__next__

  def observed_next(stream):
    before_step(stream.get_state()['draw'] + 1)
    return original_next(stream)

  stop_signal = StopSignal()
  with (
    pytest.MonkeyPatch.context() as patch,
    stop_signal.handle_signals(),
    Progress(enabled=False) as progress,
  ):
    patch.setattr(sft.SupervisedStream, '__next__', observed_next)
    try:
      params = sft.warm_start(
        POLICY,
        lambda: POLICY.init(jax.random.key(0), MESH),
        TASK,
        tx,
        CONFIG,
        MESH,
        writer,
        progress,
        warn,
        store,
        saved,
        stop_signal,
        {'inputs': {'problems': 'known'}, **directory.records},
      )
    finally:
      writer.close()
      while preemption._lasting_handlers:
        preemption._lasting_handlers.pop().close()
  metrics = [without_clock(line) for line in metric_lines(workdir)]
  return [
    np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)
  ], metrics


def latest_checkpoint(workdir) -> Checkpoint:
  saved = sft.warm_start_store(RunDirectory(workdir)).latest()
  assert saved is not None
  return saved


@pytest.fixture(scope='module')
def uninterrupted_run(tmp_path_factory):
  return run(tmp_path_factory.mktemp('whole'))


def test_a_signal_saves_the_warm_start_which_resumes_at_that_step(
  tmp_path, uninterrupted_run
):
  def before_step(step):
    if step == stopped_at:
      os.kill(os.getpid(), signal.SIGINT)

  for stopped_at in (4, 6):
    with pytest.raises(Stopped):
      run(tmp_path, before_step)
    saved = latest_checkpoint(tmp_path)
    assert saved.position == stopped_at - 1
    assert saved.metadata['inputs'] == {'problems': 'known'}
    assert saved.metadata['workdir']['path'] == str(tmp_path)
    assert not sft.is_warm_start_finished(saved, CONFIG)
  began: list[int] = []
  assert run(tmp_path, began.append) == uninterrupted_run
  assert began == [6, 7]
  assert sft.is_warm_start_finished(latest_checkpoint(tmp_path), CONFIG)
  # Only the parameters are kept.
  latest_checkpoint(tmp_path).restore(POLICY.abstract_params(MESH))
  # The run resumes from them, perhaps elsewhere.
  assert latest_checkpoint(tmp_path).metadata['versions'] == versions()


def test_a_killed_warm_start_goes_on_at_its_last_checkpoint(
  tmp_path, uninterrupted_run
):
  def before_step(step):
    if step == 6:
      raise Killed

  with pytest.raises(Killed):
    run(tmp_path, before_step, checkpoint_every=2)
  assert latest_checkpoint(tmp_path).position == 4
  began: list[int] = []
  assert run(tmp_path, began.append, checkpoint_every=2) == uninterrupted_run
  assert began == [5, 6, 7]


def test_skipped_updates_are_counted_and_reported_once(tmp_path):
  failures: list[bool] = []

  def update(updates, state, params=None, **extra):
    # Depends on the batch, since a skipped update changes no state.
    fails = jnp.floor(extra['value'] * 1e4) % 2 == 0
    jax.debug.callback(lambda flag: failures.append(bool(flag)), fails)
    return jax.tree.map(
      lambda u: u + jnp.where(fails, jnp.nan, 0), updates
    ), state

  failing = optax.GradientTransformationExtraArgs(lambda params: (), update)
  warnings = []
  _, metrics = run(tmp_path, tx=optax.chain(failing, TX), warn=warnings.append)
  jax.effects_barrier()
  assert len(failures) == STEPS
  assert 0 < sum(failures) < STEPS
  steps = [line['step'] for line in metrics]
  counts = [line['skipped_updates'] for line in metrics]
  assert counts == [sum(failures[:step]) for step in steps]
  (warning,) = warnings
  step, count = next((s, c) for s, c in zip(steps, counts, strict=True) if c)
  assert warning.startswith(
    f'{count:.0f} of the first {step} updates of the warm start were skipped,'
  )


def test_a_signal_before_the_first_step_saves_nothing(tmp_path):
  with pytest.raises(Stopped):
    run(tmp_path, lambda step: os.kill(os.getpid(), signal.SIGTERM))
  assert not RunDirectory(tmp_path).has_checkpoint()


def test_an_unfinished_warm_start_is_not_shared(tmp_path):
  def before_step(step):
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Stopped):
    run(tmp_path, before_step)
  saved: dict[str, Any] = {
    'name': 'toy',
    'config': dataclasses.asdict(CONFIG),
    'identity': '',
  }
  recipe: Any = types.SimpleNamespace(
    as_json=lambda: saved, sources={}, identity=''
  )
  RunDirectory(tmp_path).write_recipe(recipe)
  config = toy.get_config()
  config.warm_start.steps = STEPS
  config.warm_start.from_run = str(tmp_path)
  # Draws and filters of groups do not matter to a warm start.
  config.rollout.max_draws, config.rollout.max_accuracy = 3, 0.5
  with pytest.raises(
    ConfigError, match='a run with a finished warm start, got'
  ):
    shared_warm_start(config, TASK, POLICY)
  config.rollout.max_response_length = 5
  with pytest.raises(
    ConfigError, match=r'has rollout\.max_response_length=4 and not 5'
  ):
    shared_warm_start(config, TASK, POLICY)
  # A field that was renamed since is not reported as one with another value.
  fields = saved['config']
  fields['task'] = fields.pop('countdown') | {'held_out': 1}
  RunDirectory(tmp_path).write_recipe(recipe)
  with pytest.raises(
    ConfigError, match=r'version of covrl, with task and without countdown$'
  ):
    shared_warm_start(config, TASK, POLICY)


@pytest.mark.parametrize(
  'name',
  [
    'tokenizer',
    'solved examples',
    'configuration of the model',
    'prompt format',
  ],
)
def test_a_warm_start_of_another_model_or_examples_is_not_shared(
  tmp_path, name
):
  saved = {'name': 'toy', 'config': dataclasses.asdict(CONFIG), 'identity': ''}
  recipe: Any = types.SimpleNamespace(
    as_json=lambda: saved, sources={}, identity=''
  )
  RunDirectory(tmp_path).write_recipe(recipe)
  task = dataclasses.replace(TASK, prompt_format=PromptFormat())
  inputs = policy_fingerprints(CONFIG, task, POLICY, None)
  inputs['solved examples'] = source_fingerprint(TASK.train)
  config = toy.get_config()
  config.warm_start.steps = STEPS
  config.warm_start.from_run = str(tmp_path)

  def share(inputs):
    store = sft.warm_start_store(RunDirectory(tmp_path))
    store.save(STEPS, {'w': np.zeros(2)}, {'inputs': inputs})
    return shared_warm_start(config, task, POLICY)

  with pytest.raises(ConfigError, match=f'a run with the same {name}, '):
    share(inputs | {name: 'another'})
  shutil.rmtree(tmp_path / 'warm_start')
  assert share(inputs) is not None
  # A warm start that was copied from a run of another seed.
  shutil.rmtree(tmp_path / 'warm_start')
  with pytest.raises(ConfigError, match='got one of another recipe'):
    share(inputs | {'recipe': 'another'})
  # Inputs without a fingerprint are not compared.
  shutil.rmtree(tmp_path / 'warm_start')
  assert share(inputs | {name: ''}) is not None


# Three processes compile; on a busy machine that takes several minutes.
@pytest.mark.timeout(2700)
@pytest.mark.slow
@pytest.mark.parametrize('signal_number', [signal.SIGTERM, signal.SIGINT])
def test_a_real_warm_start_is_stopped_and_resumed(
  tmp_path, tmp_path_factory, signal_number
):
  settings = SMALL | {'warm_start__steps': 400, 'train__iterations': 1}
  settings |= {'logging__warm_start_every': 1}
  process = start('toy_kl_cov', tmp_path / 'run', **settings)
  deadline = time.monotonic() + 900
  while len(metric_lines(tmp_path / 'run')) < 40:
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.005)
  for _ in range(2):
    process.send_signal(signal_number)
    time.sleep(0.25)
  _, stderr = process.communicate(timeout=900)
  assert process.returncode == Exit.RESTART, stderr
  assert 'stopped: the run is saved' in stderr
  reached = latest_checkpoint(tmp_path / 'run').position
  assert 40 <= reached < 400
  train('toy_kl_cov', tmp_path / 'run', **settings)
  whole = runs.finished_run(tmp_path_factory, 'toy_kl_cov', **settings)
  runs.assert_same_metrics(tmp_path / 'run', whole)
