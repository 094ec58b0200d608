# SPDX-License-Identifier: Apache-2.0
"""Tests of the recipes for Countdown with written steps."""

import inspect
import pathlib
import re

import pytest

from configs import countdown_steps
from covrl.config import flatten, load, recipes
from covrl.data import SolvedCountdownStepsSource
from covrl.models import Policy

SPECS = [spec for spec, _ in recipes() if spec.startswith('countdown_steps:')]
CHANGED_FIELDS = {'countdown_steps:entropy_bonus': {'entropy.coefficient'}}


def test_recipes_are_listed():
  names = {spec.partition(':')[2] for spec in SPECS}
  assert names == {'grpo', 'grpo_no_clip', 'kl_cov', 'entropy_bonus'}


@pytest.mark.parametrize('spec', SPECS)
def test_recipes_differ_only_in_the_named_fields(spec):
  fields = flatten(load(spec).config)
  grpo_fields = flatten(load('countdown_steps:grpo').config)
  different = {name for name in fields if fields[name] != grpo_fields[name]}
  assert different == CHANGED_FIELDS.get(spec, set())


@pytest.mark.parametrize('spec', SPECS)
def test_functions_build_with_overrides_applied(spec):
  recipe = load(spec, ['--config.train.learning_rate=3e-4'])
  for name in ('advantages', 'loss', 'token_tx', 'tx', 'warm_start_tx'):
    assert getattr(recipe, name)(recipe.config) is not None
  name = spec.partition(':')[2]
  doc = inspect.getdoc(getattr(countdown_steps, name)) or ''
  assert f'--config={spec} --workdir=runs/steps_{name}' in doc
  assert 'Hardware:' in doc
  assert 'Expect:' in doc


@pytest.mark.parametrize('name', ['grpo', 'kl_cov'])
def test_docstrings_agree_with_the_table_of_results(name):
  doc = inspect.getdoc(getattr(countdown_steps, name)) or ''
  stated_numbers = re.findall(
    r'\d\.\d{3}|\d{2}\.\d', doc.partition('Expect')[2]
  )
  readme = pathlib.Path(countdown_steps.__file__).with_name('README.md')
  rows = [
    row
    for row in readme.read_text().splitlines()
    if row.startswith(('| warm start of', f'| `{name}` | 100'))
  ]
  assert len(rows) == 2
  assert len(stated_numbers) == 8
  assert all(number in ' '.join(rows) for number in stated_numbers)


def test_prompts_and_solutions_fit_into_the_length_limits():
  config = load('countdown_steps:grpo').config
  task = countdown_steps.grpo().task(config)
  source = SolvedCountdownStepsSource(config.countdown)
  longest = 0
  for index in range(200):
    problem = source[index]
    prompt = task.tokenizer.encode(problem.prompt)
    # The beginning of a prompt and the end of a response are tokens, too.
    assert 1 + len(prompt) <= config.rollout.max_prompt_length
    response = task.tokenizer.encode(problem.solution or '')
    longest = max(longest, 1 + len(response))
  assert longest == config.rollout.max_response_length <= 25


def test_the_policy_is_small_enough_to_be_committed_as_a_file():
  recipe = load('countdown_steps:grpo')
  vocab_size = recipe.task(recipe.config).tokenizer.vocab_size
  policy = Policy(recipe.model(recipe.config, vocab_size))
  assert policy.num_params * 4 < 3 * 1024**2
