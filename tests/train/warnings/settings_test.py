# SPDX-License-Identifier: Apache-2.0
"""Overridden config fields that have no effect are reported."""

import contextlib

import pytest
from train.process import RECIPES

from covrl.config import load, recorded_reads
from covrl.rewards import Reward
from covrl.train.algorithm import Algorithm, reads_reference
from covrl.train.setup.build import build
from covrl.train.warnings.settings import (
  config_warnings,
  unused_override_warnings,
)

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
  'checkpoint.every_updates': 99,
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


@pytest.mark.parametrize(
  ('template', 'is_reported'),
  [('Q: {question}\\nA:', True), ('Q: {question}\nA:', False)],
)
def test_a_template_with_the_letters_of_a_line_break_is_reported(
  template, is_reported
):
  recipe = load(str(RECIPES / 'toy_kl_cov.py'))
  recipe.config.data.template = template
  algorithm = Algorithm.from_recipe(recipe)
  warnings = config_warnings(recipe.config, algorithm, ())
  assert any('data.template' in text for text in warnings) is is_reported
