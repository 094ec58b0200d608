# SPDX-License-Identifier: Apache-2.0
"""Processes of one run must agree; the error names the one that differs."""

import dataclasses

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


def test_processes_on_other_processors_are_accepted(
  processes, recipe, monkeypatch
):
  for name in ('PJRT_NPROC', 'NPROC'):
    monkeypatch.delenv(name, raising=False)
  for threads in ('2', '4', '8'):
    monkeypatch.setenv('NPROC', threads)
    processes.run(make_check(recipe))
