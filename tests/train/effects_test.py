# SPDX-License-Identifier: Apache-2.0
"""Overridden config fields that have no effect are reported."""

import contextlib
import copy
import dataclasses
import pickle

import jax
import optax
import pytest
from train.process import RECIPES

import covrl
from covrl.config import Config, TrainConfig, flatten, load, recorded_reads
from covrl.models import Policy, tiny
from covrl.rewards import Reward
from covrl.train.algorithm import Algorithm, recorded_algorithm
from covrl.train.effects import (
  config_warnings,
  direction_warnings,
  gradient_warnings,
  reads_moments,
  reads_reference,
  unused_override_warnings,
)
from covrl.train.setup.build import build

# Fields that the toy task, its recipe, or the other values leave without effect.
WITHOUT_EFFECT = {
  'maze.side': 6,
  'countdown.max_value': 20,
  'arithmetic.max_terms': 4,
  'data.template': '{question}',
  'data.checked_programs': 3,
  'entropy.covariance_low': 2.0,
  'entropy.target': 0.5,
  'rewards.format': 'a*',
  'rewards.sandbox': 'remote',
  'rewards.format_weight': 0.5,
  'rewards.function_weight': 0.5,
  'evaluate.suites': 'aime_2024',
  'evaluate.suite_samples': 4,
  'rollout.max_staleness': 5,
  'lora.alpha': 4.0,
  'train.balance': 0.1,
  'logging.samples_every': 3,
  'logging.warm_start_every': 3,
  'warm_start.batch_size': 16,
  'critic.kl': 'k1',
}
WITH_EFFECT = {
  'seed': 3,
  'warm_start.steps': 0,
  'logging.samples': 0,
  'entropy.fraction': 0.04,
  'entropy.coefficient': 0.5,
  'train.learning_rate': 1e-3,
  'train.max_gradient_norm': 2.0,
  'train.clip_low': 0.1,
  'train.schedule_iterations': 4,
  'evaluate.problems': 8,
  'rollout.top_k': 5,
  'checkpoint.keep': 3,
}


def warnings_of(values, file='toy_kl_cov'):
  """Builds a run with overrides; returns the warnings of fields without effect."""
  overrides = [f'--config.{name}={value}' for name, value in values.items()]
  recipe = load(str(RECIPES / f'{file}.py'), overrides)
  with contextlib.ExitStack() as on_exit:
    with recorded_reads(recipe.config) as read:
      run = build(recipe, None, lambda text: None)
    on_exit.callback(run.scoring.close)
    on_exit.callback(run.collector.close)
    return list(
      unused_override_warnings(recipe, read, run.task, run.policy.config)
    )


def test_overridden_fields_without_effect_are_reported():
  warnings = warnings_of(WITHOUT_EFFECT | WITH_EFFECT)
  assert [text.partition(' ')[0] for text in warnings] == list(WITHOUT_EFFECT)
  assert (
    'maze.side = 6 has no effect: nothing in this recipe reads it' in warnings
  )
  assert (
    'rollout.max_staleness = 5 has no effect: it needs rollout.carried_groups'
    ' above 0'
  ) in warnings


def test_fields_of_evaluations_need_problems():
  # At `evaluate.every` the run is saved and reported, too.
  warnings = warnings_of(
    {'evaluate.every': 2, 'evaluate.samples': 3}, 'toy_plain'
  )
  assert warnings == [
    'evaluate.samples = 3 has no effect: the task has no problems to evaluate on'
  ]


@pytest.mark.parametrize(
  ('file', 'is_read'),
  [('toy_reference', True), ('countdown:prime', True), ('toy_kl_cov', False)],
)
def test_a_reference_policy_that_nothing_reads_is_reported(file, is_read):
  name = file if ':' in file else f'{RECIPES / file}.py'
  recipe = load(name, ['--config.train.keep_reference=true'])
  algorithm = Algorithm.from_recipe(recipe)
  assert reads_reference(algorithm) is is_read
  warnings = list(config_warnings(recipe.config, algorithm, ()))
  assert any('train.keep_reference' in text for text in warnings) is not is_read


@pytest.mark.parametrize(
  ('name', 'is_used'), [('sum', False), ('function', True)]
)
def test_a_score_function_that_the_task_does_not_take_is_reported(
  name, is_used
):
  recipe = load(f'{RECIPES / "toy_plain"}.py')
  recipe.config.rewards.function = 'scores:of'
  reward = Reward(name=name, score=lambda response, reference: 1.0)
  warnings = config_warnings(
    recipe.config, Algorithm.from_recipe(recipe), [reward]
  )
  assert any('rewards.function' in text for text in warnings) is not is_used


@pytest.mark.parametrize(
  ('token_tx', 'is_read'),
  [
    (optax.identity(), False),
    (covrl.kl_cov(), False),
    (covrl.entropy_bonus(covrl.adaptive_bonus()), False),
    (covrl.kl_cov(score='exact'), True),
    (covrl.detach_drain(0.1), True),
    # A decision on the old statistics predicts from the old moments.
    (covrl.entropy_bonus(covrl.target_entropy(0.3)), True),
    (optax.chain(covrl.kl_cov(), covrl.lp_reg()), True),
  ],
)
def test_reads_moments_is_true_for_chains_that_use_them(token_tx, is_read):
  recipe = load(str(RECIPES / 'toy_kl_cov.py'), [])
  algorithm = dataclasses.replace(
    Algorithm.from_recipe(recipe), token_tx=token_tx
  )
  assert reads_moments(algorithm) is is_read


def test_copies_of_a_configuration_record_no_reads():
  config = Config()
  with recorded_reads(config):
    copies = (
      dataclasses.replace(config.train),
      copy.deepcopy(config).train,
      pickle.loads(pickle.dumps(config)).train,
    )
    assert config.train == TrainConfig()
  for section in copies:
    assert type(section) is TrainConfig
    assert section == config.train


def test_recorded_reads_leave_the_configuration_as_it_was():
  config = load(str(RECIPES / 'toy_kl_cov.py')).config
  before, section_type = flatten(config), type(config.train)
  with recorded_reads(config) as read:
    assert config.train.clip_low == before['train.clip_low']
    config.train.clip_low = 0.3
    flatten(config)
  assert read == {'train.clip_low'}
  assert type(config.train) is section_type
  assert flatten(config) == before | {'train.clip_low': 0.3}


@pytest.mark.parametrize(
  ('tx', 'ascends'),
  [
    (optax.sgd(1e-3), False),
    (optax.adamw(optax.linear_schedule(0.0, 1e-3, 10)), False),
    (optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)), False),
    (optax.adafactor(1e-3), False),
    (optax.set_to_zero(), False),
    (optax.scale_by_adam(), True),
    (optax.sgd(-1e-3), True),
    (
      optax.masked(optax.sgd(1e-3), lambda p: jax.tree.map(lambda _: False, p)),
      True,
    ),
  ],
)
def test_chains_that_move_along_the_gradient_are_reported(tx, ascends):
  warnings = [*direction_warnings(Policy(tiny(8)), tx=(tx, 2))]
  assert bool(warnings) is ascends


def test_a_learning_rate_that_becomes_negative_is_reported():
  def falling(count):
    return 1e-2 * (1 - count / 10)

  policy = Policy(tiny(8))
  assert not [*direction_warnings(policy, tx=(optax.sgd(falling), 10))]
  injected = optax.inject_hyperparams(optax.sgd)(learning_rate=falling)
  warnings = direction_warnings(
    policy, tx=(optax.sgd(falling), 40), warm_start_tx=(injected, 20)
  )
  for warning, updates in zip(warnings, (40, 20), strict=True):
    assert warning.endswith(
      f'at update 11 of {updates}: its learning rate becomes negative'
    )
  cosine = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 40)
  assert not [*direction_warnings(policy, tx=(optax.sgd(cosine), 60))]


@pytest.mark.parametrize(
  ('updates', 'fields'),
  [('schedule_updates', []), ('total_updates', ['train.iterations'])],
)
def test_schedules_that_an_extension_would_change_are_found(updates, fields):
  def falling(config):
    assert type(copy.deepcopy(config)) is Config
    return optax.adam(optax.linear_schedule(1e-2, 0, getattr(config, updates)))

  recipe = load(str(RECIPES / 'toy_kl_cov.py'))
  assert recorded_algorithm(recipe)[1] == []
  recipe = dataclasses.replace(recipe, tx=falling)
  with recorded_reads(recipe.config) as read:
    assert recorded_algorithm(recipe)[1] == fields
    # Fields that are read within are read for the outer context, too.
    assert {'entropy.fraction', 'train.clip_low'} <= read
    assert copy.deepcopy(recipe.config) == recipe.config


def algorithm_of(loss, token_tx=None):
  recipe = load(str(RECIPES / 'toy_kl_cov.py'))
  algorithm = Algorithm.from_recipe(recipe)
  return dataclasses.replace(
    algorithm, loss=loss, token_tx=token_tx or optax.identity()
  )


def with_value(edit):
  """Policy gradient with an edited value."""

  def loss(stats, **context):
    value, aux = covrl.losses.policy_gradient(stats, **context)
    return edit(value), aux

  return loss


@pytest.mark.parametrize(
  ('loss', 'token_tx', 'trains'),
  [
    (with_value(lambda value: value), None, True),
    (with_value(lambda value: -value), None, True),
    (with_value(jax.lax.stop_gradient), None, False),
    (with_value(lambda value: 0.0 * jax.lax.stop_gradient(value)), None, False),
    (with_value(jax.lax.stop_gradient), covrl.entropy_bonus(0.1), True),
    (covrl.losses.clipped_surrogate, None, True),
    (covrl.losses.gspo, None, True),
    (covrl.losses.cispo, covrl.kl_cov(0.01, 1.0), True),
    (covrl.losses.policy_gradient, optax.set_to_zero(), False),
  ],
)
def test_losses_without_a_gradient_are_reported(loss, token_tx, trains):
  warnings = [*gradient_warnings(algorithm_of(loss, token_tx))]
  assert bool(warnings) is not trains


def test_samples_of_evaluations_at_temperature_0_are_reported():
  for temperature in ('0', '0.5'):
    recipe = load(
      str(RECIPES / 'toy_kl_cov.py'),
      [f'--config.evaluate.temperature={temperature}'],
    )
    algorithm = Algorithm.from_recipe(recipe)
    warnings = list(config_warnings(recipe.config, algorithm, ()))
    is_reported = any('evaluate.temperature = 0' in text for text in warnings)
    assert is_reported == (temperature == '0')
