# SPDX-License-Identifier: Apache-2.0
"""Functions of a recipe that return something else on resume are reported."""

import dataclasses
import functools
import math
import subprocess
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train import process, small_loop, toy

import covrl
from covrl.config import load
from covrl.models import Policy, tiny
from covrl.rewards import Overlong, Reward
from covrl.run.checkpoint import CheckpointStore
from covrl.train.algorithm import Algorithm
from covrl.train.setup import function_fingerprints as fingerprints_module
from covrl.train.setup.build import build
from covrl.train.setup.function_fingerprints import (
  check_functions,
  function_fingerprints,
)
from covrl.types import TokenBatch, TokenMoments

NAMES = (
  *('loss', 'token_tx', 'tx', 'advantages', 'networks', 'estimator'),
  'rewards',
)


def rows():
  """Rows of an iteration of the toy task."""
  floats: Any = np.zeros((32, 10), np.float32)
  integers: Any = np.zeros((32, 10), np.int32)
  bools: Any = np.zeros((32, 10), bool)
  return TokenBatch(
    tokens=integers,
    targets=integers,
    positions=integers,
    segment_ids=integers,
    loss_mask=bools,
    weights=floats,
    advantages=floats,
    old_logprobs=floats,
    old_entropy=floats,
    old_moments=TokenMoments(
      square=floats, square_log=floats, square_log_square=floats
    ),
    sampler_logprobs=floats,
    sequence_ids=integers,
    ref_logprobs=floats,
  )


def fingerprints(recipe, *rewards, code=None, warm_start_tx=None):
  policy = Policy(tiny(16))
  return function_fingerprints(
    Algorithm.from_recipe(recipe),
    warm_start_tx,
    rewards or (Reward(name='a', score='module:score'),),
    rows(),
    policy.split(policy.abstract_params())[0],
    code or {},
  )


def changed_names(before, after):
  assert before.keys() == after.keys()
  return [
    name.removesuffix(' of the recipe')
    for name in before
    if before[name] != after[name]
  ]


@pytest.fixture(scope='module')
def original():
  return fingerprints(toy.recipe())


def test_functions_that_depend_on_fields_only_are_the_same_at_each_start(
  original,
):
  assert [*original] == [f'{name} of the recipe' for name in NAMES]
  assert all(original.values())
  jax.jit(lambda x: x + 1)(1.0)
  assert fingerprints(toy.recipe()) == original
  # Fields that a resume may change.
  changes = {
    'train.iterations': 9,
    'train.max_skipped_updates': 2,
    'checkpoint.every': 3,
    'logging.diagnostics_every': 0,
    'logging.entropy_change_every': 0,
    'rewards.max_failures': 0.5,
  }
  overrides = [f'--config.{n}={value}' for n, value in changes.items()]
  file = str(process.RECIPES / 'toy_kl_cov.py')
  assert fingerprints(load(file, overrides)) == original


@pytest.mark.parametrize(
  ('name', 'function'),
  [
    ('loss', lambda c: functools.partial(covrl.clipped_surrogate, low=0.1)),
    ('token_tx', lambda c: covrl.entropy_bonus(coefficient=0.002)),
    ('tx', lambda c: optax.adam(0.0123)),
    ('tx', lambda c: optax.adam(optax.linear_schedule(3e-3, 0, 123))),
    # An array of a closure, not a number of the program.
    ('tx', lambda c: optax.scale_by_schedule(lambda n: jnp.arange(9.0)[n])),
    ('advantages', lambda c: lambda rewards, groups: 0.7 * rewards),
  ],
)
def test_a_function_with_other_numbers_has_another_fingerprint(
  original, name, function
):
  changed = fingerprints(toy.recipe(**{name: function}))
  assert changed_names(original, changed) == [name]
  assert changed[f'{name} of the recipe']


def recipe_fingerprints(recipe, *overrides):
  return fingerprints(load(str(process.RECIPES / recipe), list(overrides)))


@functools.cache
def unchanged_fingerprints(recipe):
  """Returns the fingerprints of a recipe file, the same at two starts."""
  first, second = (recipe_fingerprints(recipe) for _ in range(2))
  assert first == second
  assert all(first.values())
  return first


@pytest.mark.parametrize(
  ('recipe', 'name', 'change'),
  [
    ('toy_ppo.py:ppo', 'networks', 'critic.learning_rate=0.5'),
    ('toy_ppo.py:ppo', 'networks', 'critic.clip=0.1'),
    ('toy_ppo.py:ppo', 'estimator', 'critic.trace_decay=0.5'),
    ('toy_prime.py:prime', 'networks', 'prime.learning_rate=0.5'),
  ],
)
def test_a_network_with_other_numbers_has_another_fingerprint(
  recipe, name, change
):
  after = recipe_fingerprints(recipe, f'--config.{change}')
  assert changed_names(unchanged_fingerprints(recipe), after) == [name]


def test_rewards_with_other_options_have_another_fingerprint(monkeypatch):
  monkeypatch.setattr(
    fingerprints_module, '_lowered', lambda *arguments: 'program'
  )
  score = functools.partial(str.count, 'a')
  parts = (
    Reward(name='a', score=score, sources=('x', 'y')),
    Overlong(max_length=8, buffer=2),
  )
  recipe = toy.recipe()
  before = fingerprints(recipe, *parts)
  example = dataclasses.replace(parts[0], example=('a', 'b'))
  assert fingerprints(recipe, example, parts[1]) == before
  for change in (
    {'weight': 0.5},
    {'score': functools.partial(math.pow, np.float32(2))},
    {'name': 'b'},
    {'sources': ('x',)},
    {'score': functools.partial(str.count, 'b')},
    {'score': str.find},
    {'timeout': 1.0},
  ):
    changed = dataclasses.replace(parts[0], **change)
    after = fingerprints(recipe, changed, parts[1])
    assert changed_names(before, after) == ['rewards']
  after = fingerprints(recipe, parts[0], Overlong(max_length=8, buffer=3))
  assert changed_names(before, after) == ['rewards']


def test_options_in_a_set_have_one_order(monkeypatch):
  monkeypatch.setattr(
    fingerprints_module, '_lowered', lambda *arguments: 'program'
  )

  class Part:
    """A reward of a recipe's own, with a state that starts differ in."""

    def __init__(self, names):
      self.lock, self._calls = threading.Lock(), {id(self): 1}
      self.names, self.weights = names, dict.fromkeys(names, 1.0)

  names = [f'name {n}' for n in range(40)]
  first, second = (
    fingerprints(toy.recipe(), Part(frozenset(x)))
    for x in (names, reversed(names))
  )
  assert first == second


def test_functions_that_call_python_are_not_compared(original):
  def loss(stats, **context):
    value, aux = covrl.clipped_surrogate(stats, **context)
    return value + jax.pure_callback(lambda: np.float32(0), value), aux

  def untraceable(rewards, groups):
    return np.asarray(rewards)

  changed = fingerprints(
    toy.recipe(loss=lambda c: loss, advantages=lambda c: untraceable)
  )
  assert changed_names(original, changed) == ['loss', 'advantages']
  assert changed['loss of the recipe'] == ''
  assert changed['advantages of the recipe'] == ''


def test_a_run_that_is_resumed_with_other_functions_is_reported(
  tmp_path, original
):
  store, warnings = CheckpointStore(tmp_path / 'checkpoints', keep=1), []
  unknown = {'advantages of the recipe': ''}
  store.save(0, {'x': np.ones(3)}, {'inputs': original | unknown})
  saved = store.latest()
  for unreported, checkpoint in (
    (original, None),
    (original, saved),
    (original | {'warm_start_tx of the recipe': 'a b'}, saved),
    # Another version of covrl or jax, which is reported as such.
    (fingerprints(toy.recipe(), code={'code of covrl': 'x'}), saved),
  ):
    check_functions(unreported, checkpoint, warnings.append)
  assert warnings == []
  loss = functools.partial(covrl.clipped_surrogate, low=0.1)
  other = fingerprints(toy.recipe(loss=lambda config: loss))
  check_functions(other, saved, warnings.append)
  assert warnings == [
    'loss of the recipe has changed since the checkpoint was written, and the'
    " recipe's files and the fields that a resume may not change have not; it"
    ' reads another field, or something else such as an environment variable: the'
    ' resumed run may differ from an uninterrupted one'
  ]


def test_other_scores_on_resume_are_reported(tmp_path):
  recipe = load(str(process.RECIPES / 'toy_plain.py'))
  run = build(recipe, None, lambda text: None)
  run.scoring.close()
  run.collector.close()
  (name,) = (n for n in run.function_fingerprints if n.startswith('scores of'))
  before = run.function_fingerprints[name]
  store, warnings = CheckpointStore(tmp_path / 'checkpoints', keep=1), []
  store.save(0, {'x': np.ones(3)}, {'inputs': {name: before}})
  for scores in (before, 'scores others'):
    assert warnings == []
    check_functions({name: scores}, store.latest(), warnings.append)
  assert warnings[0].startswith(f'{name} has changed since the checkpoint')


@pytest.mark.parametrize('is_resumed', [False, True])
def test_functions_that_cannot_be_compared_on_resume_are_reported(
  tmp_path, original, is_resumed
):
  store, warnings = CheckpointStore(tmp_path / 'checkpoints', keep=1), []
  store.save(0, {'x': np.ones(3)}, {'inputs': original})
  unknown = original | {'loss of the recipe': '', 'tx of the recipe': ''}
  check_functions(
    unknown, store.latest() if is_resumed else None, warnings.append
  )
  assert warnings == [
    'loss of the recipe, tx of the recipe cannot be compared when the run is'
    ' resumed, because the program calls Python or cannot be traced for a CPU without'
    ' a mesh; a change of what it reads outside of the configuration, such as an'
    ' environment variable, remains unnoticed'
  ]


def test_the_loop_reports_other_functions_on_resume(
  tmp_path, capsys, monkeypatch
):
  workdir = tmp_path / 'run'
  for iterations, text, is_reported in ((1, 'a', False), (2, 'c', True)):
    monkeypatch.setitem(
      small_loop.FUNCTION_FINGERPRINTS, 'loss of the recipe', f'jax {text}'
    )
    small_loop.run(workdir, train__iterations=iterations)
    sentence = 'loss of the recipe has changed since the checkpoint was written'
    assert (sentence in capsys.readouterr().err) == is_reported
  assert sentence in (workdir / 'notices.jsonl').read_text()


@pytest.mark.slow
def test_a_recipe_that_reads_the_environment_is_reported_on_resume(tmp_path):
  workdir = tmp_path / 'run'
  settings = {'warm_start__steps': 2, 'evaluate__problems': 4}

  def train(iterations, **environment):
    return subprocess.run(
      process.arguments(
        'toy_changed', workdir, train__iterations=iterations, **settings
      ),
      env=process.ENVIRONMENT | environment,
      check=True,
      capture_output=True,
      text=True,
    ).stderr

  sentence = 'loss of the recipe has changed since the checkpoint was written'
  assert sentence not in train(1)
  assert sentence not in train(2)
  assert sentence in train(3, TOY_CHANGED='loss')
  assert sentence in (workdir / 'notices.jsonl').read_text()
