# SPDX-License-Identifier: Apache-2.0
"""Invalid input ends with one sentence and status 2, and changes no file."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from cli.conftest import RECIPE, TESTS

from covrl.cli import main
from covrl.compile.plan import plan
from covrl.config import ConfigError, load


def test_an_unknown_field_is_refused_with_the_nearest_name(refuse_training):
  assert refuse_training('--config.train.iteratons=3') == (
    "overrides must name config fields, got 'train.iteratons'; did you mean "
    'train.iterations?'
  )


def test_refuses_a_value_of_the_wrong_type(refuse_training):
  assert "iterations must be an integer, got 'many'" in refuse_training(
    '--config.train.iterations', 'many'
  )


def test_refuses_an_argument_that_is_not_an_override(refuse_training):
  assert refuse_training('--seed=1') == (
    "overrides must look like --config.FIELD=VALUE, got '--seed=1'; did you mean "
    '--config.seed?'
  )


@pytest.mark.parametrize(
  ('override', 'reason'),
  [
    (
      'train.sequences_per_update=7',
      'must be a multiple of train.sequences_per_update, got 32 and 7',
    ),
    (
      'train.micro_batches=3',
      'must be a multiple of train.micro_batches, got 8 and 3',
    ),
    (
      'mesh.data=3',
      'nearest possible: product of the axes other than -1 = 2 or',
    ),
    (
      'train.sequences_per_update=4',
      'must be a multiple of mesh.data × mesh.fsdp × mesh.expert, got 4 and 8',
    ),
    ('train.weights=mean', "train.weights must be one of ('token-mean', "),
    ('train.clip_low=2', 'train.clip_low must lie in [0, 1], got 2'),
    ('entropy.fraction=0.2', 'fraction must lie in (0, 0.05], got 0.2'),
    ('entropy.selection_source=new', 'selection_source must be one of'),
    (
      'rollout.max_prompt_length=3',
      'a prompt must have at most 3 tokens, got 5',
    ),
    (
      'warm_start.from_run=/nowhere',
      '/nowhere must be a run directory, got none there',
    ),
    (
      'train.schedule_iterations=2147483647',
      'train.schedule_iterations must be at most 536870911, with 4 updates per',
    ),
    ('rewards.workers=100000', 'rewards.workers must lie in [1, 1024], got'),
  ],
)
def test_refuses_a_configuration_that_cannot_run(
  refuse_training, override, reason
):
  assert reason in refuse_training(f'--config.{override}')


def test_refuses_a_task_without_training_problems(
  refuse_training, changed_recipe
):
  error = refuse_training(
    recipe=changed_recipe("""
      import dataclasses
      from covrl.data import ListSource

      def task(config):
        return dataclasses.replace(toy.make_task(config), train=ListSource([]))

      def kl_cov():
        return toy.recipe(task=task)
    """)
  )
  assert error == (
    'the task must have training problems, got none; data.train names the files of'
    ' a task of text'
  )


@pytest.mark.parametrize('field', ['train', 'held_out'])
def test_refuses_a_prompt_that_is_too_long(
  refuse_training, changed_recipe, field
):
  error = refuse_training(
    recipe=changed_recipe(f"""
      import dataclasses
      import itertools
      from covrl.data import ListSource, Problem

      def task(config):
        digits = itertools.islice(itertools.permutations('123456'), 32)
        long = [
          Problem(prompt=' '.join(each) + ' :', reference=[1], source='long')
          for each in digits
        ]
        long = ListSource(long[:1]) if {field!r} == 'train' else long
        return dataclasses.replace(toy.make_task(config), {field}=long)

      def kl_cov():
        return toy.recipe(task=task)
    """)
  )
  # The length includes the BOS token.
  assert error == (
    "a prompt must have at most 6 tokens, got 8 in problem 0 of source 'long'"
  )


def test_refuses_a_tokenizer_with_another_vocabulary_than_the_policy(
  refuse_training, changed_recipe
):
  error = refuse_training(
    recipe=changed_recipe("""
      def model(config, vocab_size):
        return toy.make_model(config, vocab_size + 1)

      def kl_cov():
        return toy.recipe(model=model)
    """)
  )
  assert "the tokenizer must have the policy's 16 tokens, got one of 15" in (
    error
  )


def test_refuses_a_warm_start_without_solved_examples(
  refuse_training, changed_recipe
):
  error = refuse_training(
    recipe=changed_recipe("""
      import dataclasses

      def task(config):
        return dataclasses.replace(toy.make_task(config), solved=None)

      def kl_cov():
        return toy.recipe(task=task)
    """)
  )
  assert error == (
    'warm_start.steps must be 0 for a task without solved examples, got 30'
  )


def test_refuses_a_config_that_is_not_a_recipe(
  refuse_training, changed_recipe, tmp_path
):
  assert 'must name a Python file' in refuse_training(
    recipe=tmp_path / 'none.py'
  )
  error = refuse_training(recipe=changed_recipe('def kl_cov():\n  return 3\n'))
  assert error.startswith('kl_cov() of ')
  assert error.endswith(' must return a covrl Recipe, got int')


def test_errors_of_the_recipe_keep_their_traceback(tmp_path, changed_recipe):
  recipe = changed_recipe("""
    def task(config):
      raise ValueError('a mistake of the recipe')

    def kl_cov():
      return toy.recipe(task=task)
  """)
  with pytest.raises(ValueError, match='a mistake of the recipe'):
    main(['train', f'--config={recipe}', f'--workdir={tmp_path / "run"}'])


def test_installed_command_prints_one_sentence(tmp_path):
  completed = subprocess.run(
    [
      pathlib.Path(sys.executable).with_name('covrl'),
      'train',
      f'--config={RECIPE}',
      f'--workdir={tmp_path / "run"}',
      '--config.train.iteratons=3',
    ],
    env={**os.environ, 'PYTHONPATH': str(TESTS)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert completed.returncode == 2
  assert completed.stdout == ''
  assert completed.stderr == (
    "covrl: overrides must name config fields, got 'train.iteratons'; did you mean "
    'train.iterations?\n'
  )


RECIPE_WITH_FAILING_REWARD = """
  from covrl.rewards import Reward

  def broken(response, reference):
    return response.count('1') / 0

  def kl_cov():
    return toy.recipe(
      task=lambda config: dataclasses.replace(
        toy.make_task(config), rewards=[Reward(name='mine', score=broken)]))
"""


def test_a_score_function_that_fails_is_refused(
  refuse_training, changed_recipe
):
  file = changed_recipe(
    f'import dataclasses\n{textwrap.dedent(RECIPE_WITH_FAILING_REWARD)}'
  )
  sentence = 'ZeroDivisionError: division by zero'
  # Before anything is trained.
  error = refuse_training(recipe=f'{file}:kl_cov')
  assert error.startswith("the reward 'mine' must be a function (response, ref")
  assert error.endswith(sentence)
  with pytest.raises(ConfigError, match=sentence):
    list(plan(load(f'{file}:kl_cov')))
