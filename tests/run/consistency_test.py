# SPDX-License-Identifier: Apache-2.0
"""Processes of one run must agree; the error names the one that differs."""

import dataclasses
import importlib.metadata
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train import process, toy

from covrl.config import Config, ConfigError, load
from covrl.data.sources import SubsetSource
from covrl.parallel import distributed
from covrl.run import consistency
from covrl.run.consistency import (
  check_inputs_of_processes,
  check_problems,
  check_processes,
  check_programs,
  check_versions,
  versions,
)


@pytest.fixture(scope='module')
def recipe():
  return load(str(process.RECIPES / 'toy_kl_cov.py'))


class Processes:
  """Simulates three processes one after the other in one process."""

  def __init__(self, monkeypatch):
    self.gathered = []
    monkeypatch.setattr(distributed, 'process_count', lambda: 3)
    monkeypatch.setattr(distributed, 'gather_rows', self.gather)

  def gather(self, values):
    self.gathered[-1].append(values)
    call = len(self.gathered[-1]) - 1
    rows = [
      values_of_process[call]
      for values_of_process in self.gathered
      if len(values_of_process) > call
    ]
    while len(rows) < 3:
      rows.append(values)
    return np.concatenate(rows)

  def run(self, check):
    self.gathered.append([])
    check()


@pytest.fixture
def processes(monkeypatch):
  return Processes(monkeypatch)


def make_check(recipe, workdir='runs/a'):
  """A check of one process, for a recipe whose sizes are multiples of three."""
  # Eight prompts do not divide among three processes.
  config = dataclasses.replace(
    recipe.config,
    rollout=dataclasses.replace(recipe.config.rollout, prompts_per_iteration=9),
    warm_start=dataclasses.replace(recipe.config.warm_start, batch_size=30),
  )
  recipe = dataclasses.replace(recipe, config=config)
  return lambda: check_processes(recipe, workdir)


def test_accepts_equal_processes(processes, recipe):
  for _ in range(3):
    processes.run(make_check(recipe))


def test_refuses_processes_with_different_config_files(processes, recipe):
  processes.run(make_check(recipe))
  other_sources = {**recipe.sources, 'toy_kl_cov.py': 'other'}
  with pytest.raises(
    ConfigError, match='same config file, got another config file on process 1'
  ):
    processes.run(
      make_check(dataclasses.replace(recipe, sources=other_sources))
    )


def test_refuses_processes_with_different_versions(
  processes, recipe, monkeypatch
):
  processes.run(make_check(recipe))
  processes.run(make_check(recipe))
  monkeypatch.setattr(
    consistency.importlib.metadata, 'version', lambda name: '0.0'
  )
  with pytest.raises(
    ConfigError,
    match='same versions and settings, got another covrl on process 2',
  ):
    processes.run(make_check(recipe))


def test_refuses_processes_with_different_directories(processes, recipe):
  processes.run(make_check(recipe))
  with pytest.raises(
    ConfigError, match='same --workdir, got another --workdir on process 1'
  ):
    processes.run(make_check(recipe, 'runs/b'))


def test_refuses_processes_with_different_fields(processes, recipe):
  processes.run(make_check(recipe))
  config = dataclasses.replace(recipe.config, seed=7)
  with pytest.raises(
    ConfigError, match='got another seed on process 1 than on process 0'
  ):
    processes.run(make_check(dataclasses.replace(recipe, config=config)))


TRAIN = 'problems to train on'


def test_refuses_processes_with_different_problems(processes, recipe):
  source = toy.make_task(recipe.config).train
  indices = np.arange(3)
  processes.run(
    lambda: check_problems(TRAIN, SubsetSource(source, indices, 'a'))
  )
  with pytest.raises(
    ConfigError, match='same problems to train on, got another set on process 1'
  ):
    processes.run(
      lambda: check_problems(TRAIN, SubsetSource(source, indices, 'b'))
    )


def test_refuses_processes_with_different_problems_without_fingerprint(
  processes, recipe
):
  task = toy.make_task(recipe.config)

  class Source:
    names = task.train.names

    def __init__(self, step):
      self.step = step

    def __len__(self):
      return 50

    def __getitem__(self, index):
      return task.train[index * self.step]

  processes.run(lambda: check_problems('solved examples', Source(1)))
  with pytest.raises(
    ConfigError, match='same solved examples, got another set on process 1'
  ):
    processes.run(lambda: check_problems('solved examples', Source(2)))


def test_refuses_processes_with_different_inputs(processes):
  inputs = {'tokenizer': 'a', 'held-out problems': 'b', 'code of mine': ''}
  processes.run(lambda: check_inputs_of_processes(inputs))
  reverse = dict(reversed(inputs.items()))
  processes.run(lambda: check_inputs_of_processes(reverse))
  with pytest.raises(
    ConfigError,
    match='same inputs, got another fingerprint of held-out problems on process 2',
  ):
    processes.run(
      lambda: check_inputs_of_processes(inputs | {'held-out problems': 'c'})
    )


def test_refuses_processes_without_an_input_that_others_have(processes):
  processes.run(lambda: check_inputs_of_processes({'tokenizer': 'a'}))
  with pytest.raises(
    ConfigError, match='got another set of inputs on process 1'
  ):
    processes.run(lambda: check_inputs_of_processes({}))


def test_refuses_processes_with_different_programs(processes):
  """As of a recipe that reads a variable of the environment."""

  def check(function):
    traced = jax.jit(function).trace(jnp.zeros(()))
    return lambda: check_programs({'update': traced})

  processes.run(check(lambda x: 2 * x))
  processes.run(check(lambda x: 2 * x))
  with pytest.raises(
    ConfigError, match='same programs, got another update on process 2'
  ):
    processes.run(check(lambda x: 3 * x))


def test_programs_that_call_python_are_not_compared(processes):
  """Their texts may name addresses of one process."""

  def check(text):
    def function(x):
      jax.debug.print(text, x)
      return x

    traced = jax.jit(function).trace(jnp.zeros(()))
    return lambda: check_programs({'update': traced})

  for text in ('a {}', 'b {}'):
    processes.run(check(text))


def test_refuses_processes_with_other_flags(processes, recipe, monkeypatch):
  processes.run(make_check(recipe))
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=true')
  with pytest.raises(
    ConfigError, match='got another xla_flags on process 1 than on process 0'
  ):
    processes.run(make_check(recipe))


@pytest.mark.parametrize(
  ('count', 'message'),
  [
    (
      3,
      'rollout.prompts_per_iteration must be a multiple of the 3 processes, '
      'got 8; nearest possible: rollout.prompts_per_iteration = 6 or 9',
    ),
    (16, 'rollout.prompts_per_iteration must be a multiple of the 16'),
  ],
)
def test_refuses_batches_that_do_not_divide(recipe, count, message):
  with pytest.raises(ConfigError, match=message):
    consistency.check_process_count(recipe.config, count)
  consistency.check_process_count(recipe.config, 8)


def test_refuses_carried_groups_with_several_processes():
  config = Config()
  config.rollout.carried_groups = 4
  consistency.check_process_count(config, 1)
  with pytest.raises(
    ConfigError, match=r'must be 0 with several .*got 4 with 2'
  ):
    consistency.check_process_count(config, 2)


def test_a_checkpoint_of_other_versions_is_reported():
  warnings = []
  current = versions()
  for notes in (None, {}, {'versions': {}}, {'versions': current}):
    check_versions(notes, warnings.append)
  assert warnings == []
  saved = current | {'jax': '0.1', 'flax': '0.2', 'later': '1'}
  check_versions({'versions': saved}, warnings.append)
  (text,) = warnings
  assert (
    f'jax 0.1 (now {current["jax"]}), flax 0.2 (now {current["flax"]}):' in text
  )
  assert 'may differ from an uninterrupted one' in text


def test_a_checkpoint_of_other_settings_of_jax_is_reported():
  warnings = []
  current = versions()
  saved = current | {'jax_default_prng_impl': 'rbg'}
  check_versions({'versions': saved}, warnings.append)
  (text,) = warnings
  assert 'written with jax_default_prng_impl rbg (now threefry2x32)' in text


def test_a_checkpoint_of_other_devices_or_flags_is_reported(monkeypatch):
  warnings = []
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=a')
  current = versions()
  assert current['devices'] == '8 × cpu'
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=b')
  check_versions({'versions': current}, warnings.append)
  assert warnings == []
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=true')
  check_versions(
    {'versions': current | {'devices': '1 × cpu'}}, warnings.append
  )
  (text,) = warnings
  assert text.startswith(
    'the checkpoint was written with devices 1 × cpu (now 8 × cpu), xla_flags'
    ' none (now --xla_cpu_enable_fast_math=true): the resumed run may differ'
  )


def test_a_checkpoint_of_other_compilers_of_an_accelerator_is_reported(
  monkeypatch,
):
  client = types.SimpleNamespace(platform_version='PJRT C API\nTFRT TPU v4')
  device = types.SimpleNamespace(
    platform='tpu', device_kind='TPU v4', client=client
  )
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  warnings, current = [], versions()
  assert current['platform'] == 'PJRT C API TFRT TPU v4'
  assert current['libtpu'] == importlib.metadata.version('libtpu')
  saved = current | {'platform': 'TFRT TPU v3', 'libtpu': '0.0.1'}
  check_versions({'versions': saved}, warnings.append)
  (text,) = warnings
  assert text.startswith(
    'the checkpoint was written with platform TFRT TPU v3 (now PJRT C API TFRT TPU'
    f' v4), libtpu 0.0.1 (now {current["libtpu"]}): the resumed run may differ'
  )


def test_a_checkpoint_of_another_number_of_processes_is_reported():
  """Sums over the same devices have another order, and other last bits."""
  warnings = []
  current = versions()
  saved = current | {'processes': '2'}
  check_versions({'versions': saved}, warnings.append)
  (text,) = warnings
  assert text.startswith('the checkpoint was written with processes 2 (now 1):')
  # Earlier checkpoints have no number.
  del saved['processes']
  check_versions({'versions': saved}, warnings.append)
  assert len(warnings) == 1


@pytest.mark.parametrize(
  ('name', 'current', 'saved'),
  [
    ('JAX_RANDOM_SEED_OFFSET', '0', '3'),
    ('JAX_HIGH_DYNAMIC_RANGE_GUMBEL', 'False', 'True'),
    ('JAX_OPTIMIZATION_LEVEL', 'UNKNOWN', 'O1'),
  ],
)
def test_settings_of_jax_from_the_environment_are_reported(
  name, current, saved
):
  """With another `JAX_RANDOM_SEED_OFFSET` a resumed run draws other numbers."""
  setting, warnings = name.lower(), []
  current_versions = versions()
  assert current_versions[setting] == current
  check_versions(
    {'versions': current_versions | {setting: saved}}, warnings.append
  )
  (text,) = warnings
  assert f'written with {setting} {saved} (now {current})' in text


def clear_threads(monkeypatch):
  for name in ('PJRT_NPROC', 'NPROC'):
    monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize('variable', ['PJRT_NPROC', 'NPROC'])
def test_a_checkpoint_of_other_threads_of_a_processor_is_reported(
  variable, monkeypatch
):
  """XLA splits sums among threads, whose number changes their rounding."""
  warnings = []
  clear_threads(monkeypatch)
  current = versions()
  assert current['cpu'].endswith(' threads')
  monkeypatch.setenv(variable, '77')
  check_versions({'versions': current}, warnings.append)
  (text,) = warnings
  assert f'written with cpu {current["cpu"]} (now ' in text
  assert ', 77 threads)' in text


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='needs a choice of cores'
)
def test_fewer_cores_are_fewer_threads(monkeypatch):
  clear_threads(monkeypatch)
  cores = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(cores)})
    assert versions()['cpu'].endswith(', 1 threads')
  finally:
    os.sched_setaffinity(0, cores)


def test_processes_on_other_processors_are_accepted(
  processes, recipe, monkeypatch
):
  clear_threads(monkeypatch)
  for threads in ('2', '4', '8'):
    monkeypatch.setenv('NPROC', threads)
    processes.run(make_check(recipe))
