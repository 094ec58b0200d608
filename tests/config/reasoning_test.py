# SPDX-License-Identifier: Apache-2.0
"""Recipes for pretrained policies: settings, functions, and one short run.

The run trains and evaluates a checkpoint of two layers with reduced sizes.
"""

import inspect
import json
import math
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from config.published_test import SETTINGS, SHARED
from pretrained.fixtures import MODELS, replace_tensors, tensors_of
from train.process import ENVIRONMENT, metric_lines

import covrl
from configs import reasoning
from covrl.cli import main
from covrl.config import flatten, load, recipes
from covrl.data import prompt_ids
from covrl.train.setup.restore import SuiteChoice, open_model

ROOT = pathlib.Path(__file__).parents[2]
DATA = ROOT / 'tests' / 'golden' / 'data'
TOKENIZER = ROOT / 'tests' / 'golden' / 'tokenizers' / 'bytes'
# Recipes of the covariance methods exactly as published; see published_test.
EXACT = {
  *(
    f'paper_{size}_{m}'
    for size in ('7b', '32b')
    for m in ('kl_cov', 'clip_cov')
  ),
  'verl_kl_cov',
  'verl_clip_cov',
}
# The other recipes.
OTHERS = {
  *(
    f'qwen2_5_7b_{name}'
    for name in (
      'grpo',
      'grpo_no_clip',
      'clip_higher',
      'entropy_bonus',
      'clip_cov',
      'kl_cov',
      'kl_cov_annealed',
      'ppo',
      'rloo',
      'rloo_kl_cov',
      'prime',
      'prime_kl_cov',
    )
  ),
  'qwen2_5_32b_grpo',
  'qwen2_5_32b_kl_cov',
  'qwen2_5_72b_kl_cov',
  'qwen2_5_0_5b_gsm8k',
  'llama3_1_8b_kl_cov',
  'mistral_7b_kl_cov',
  'deepseek_math_7b_kl_cov',
}
# Settings of PRIME's scripts that are not those of the others.
PRIME_SETTINGS: dict[str, object] = {
  'prime.coefficient': 0.05,
  'prime.learning_rate': 1e-6,
  'prime.weight_decay': 0.0,
  'prime.max_gradient_norm': 10.0,
  'prime.update': 'after',
  'prime.form': 'code',
  'prime.process_coefficient': 5.0,
  'prime.outcome_coefficient': 5.0,
  'rollout.responses_per_prompt': 4,
  'rollout.max_prompt_length': 1024,
  'rollout.max_response_length': 3072,
  'rollout.max_draws': 4,
  'rollout.min_accuracy': 0.2,
  'rollout.max_accuracy': 0.8,
}
each_recipe = pytest.mark.parametrize('name', sorted(OTHERS | EXACT))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The golden Qwen2 with an embedding for the tokenizer's 320 tokens."""
  directory = tmp_path_factory.mktemp('models') / 'qwen2'
  shutil.copytree(MODELS / 'qwen2', directory)
  rows = tensors_of(directory)['model.embed_tokens.weight']
  rng = np.random.default_rng(0)
  embedding = rng.normal(0, 0.02, (320, rows.shape[1])).astype(rows.dtype)
  replace_tensors(directory, **{'model.embed_tokens.weight': embedding})
  config = json.loads((directory / 'config.json').read_text())
  (directory / 'config.json').write_text(
    json.dumps({**config, 'vocab_size': 320, 'max_position_embeddings': 16384})
  )
  for file in TOKENIZER.iterdir():
    if file.name not in ('config.json', 'golden.json'):
      shutil.copy(file, directory / file.name)
  return directory


def overrides(model, **settings):
  """Returns overrides that name the model, golden data and settings."""
  return [
    f'--config.pretrained={model}',
    f'--config.data.train={DATA / "dapo_math_17k.parquet"}',
    f'--config.evaluate.suite_directory={DATA / "suites"}',
    *(
      f'--config.{name.replace("__", ".")}={value}'
      for name, value in settings.items()
    ),
  ]


def test_all_recipes_are_shipped():
  specs = [spec for spec, _ in recipes() if spec.startswith('reasoning:')]
  assert sorted(specs) == sorted(f'reasoning:{name}' for name in OTHERS | EXACT)


@each_recipe
def test_every_recipe_builds_its_task_model_and_transforms(name, model):
  recipe = load(f'reasoning:{name}', overrides(model))
  config = recipe.config
  task = recipe.task(config)
  assert len(task.train) == 5
  assert [suite.name for suite in task.suites] == config.evaluate.suites.split(
    ','
  )
  policy = recipe.model(config, task.tokenizer.vocab_size)
  assert (policy.vocab_size, policy.num_layers) == (320, 2)
  assert (policy.dtype, policy.param_dtype) == ('bfloat16', 'float32')
  rloo = name.startswith('qwen2_5_7b_rloo')
  assert recipe.advantages(config) is (
    covrl.leave_one_out if rloo else covrl.group_relative
  )
  assert callable(recipe.loss(config))
  recipe.token_tx(config).init(covrl.TokenStats.template())
  params = {'w': jnp.ones(3)}
  recipe.tx(config).init(params)
  recipe.warm_start_tx(config).init(params)
  doc = inspect.getdoc(getattr(reasoning, name)) or ''
  assert f'--config=reasoning:{name} --workdir=runs/{name}\n' in doc
  for word in ('Hardware: ', 'Expect: ', 'Source: '):
    assert f'\n{word}' in doc


@pytest.mark.parametrize('name', sorted(OTHERS))
def test_settings_are_the_published_ones_but_for_the_listed_fields(name):
  fields = flatten(load(f'reasoning:{name}').config)
  published = SHARED | SETTINGS['paper_7b_kl_cov']
  if '32b' in name or '72b' in name:
    published = SHARED | SETTINGS['paper_32b_kl_cov']
  if 'clip_cov' in name:
    published = SHARED | SETTINGS['paper_7b_clip_cov']
  # The published source is 'current', which takes another forward pass per update.
  changed_fields: dict[str, object] = {'entropy.selection_source': 'old'}
  if name.startswith('deepseek'):
    changed_fields['rollout.max_response_length'] = 2048
  if name == 'qwen2_5_7b_entropy_bonus':
    changed_fields['entropy.coefficient'] = 1e-3
  if name == 'qwen2_5_0_5b_gsm8k':
    changed_fields |= {
      'rollout.prompts_per_iteration': 64,
      'rollout.max_prompt_length': 512,
      'rollout.max_response_length': 1024,
      'train.sequences_per_update': 128,
      'train.learning_rate': 1e-6,
    }
  elif '_prime' in name:
    changed_fields |= PRIME_SETTINGS
    if name.endswith('prime'):
      changed_fields['train.sequences_per_update'] = 1024
  else:
    draws = 1 if name.endswith('ppo') else 10
    assert fields['rollout.max_draws'] == draws
  for field, value in {**published, **changed_fields}.items():
    assert fields[field] == value, field


@pytest.mark.parametrize(
  ('name', 'low', 'high'),
  [('grpo', 0.2, 0.2), ('clip_higher', 0.2, 0.28), ('clip_cov', 1.0, 1.0)],
)
def test_clip_ranges_are_those_of_the_method(name, low, high):
  config = load(f'reasoning:qwen2_5_7b_{name}').config
  assert (config.train.clip_low, config.train.clip_high) == (low, high)


def test_learning_rate_is_constant_and_weight_decay_0():
  recipe = load('reasoning:qwen2_5_7b_kl_cov')
  tx = recipe.tx(recipe.config)
  params = {'w': jnp.full(3, 100.0)}
  state = tx.init(params)
  for _ in range(3):
    updates, state = tx.update({'w': jnp.full(3, 0.1)}, state, params)
    # Adam's step for a constant gradient: the learning rate, without decay.
    np.testing.assert_allclose(updates['w'], -5e-7, rtol=1e-4)


REDUCED_SETTINGS = {
  'rollout__prompts_per_iteration': 4,
  'rollout__responses_per_prompt': 2,
  'rollout__max_prompt_length': 320,
  'rollout__max_response_length': 8,
  'rollout__max_draws': 2,
  'rollout__tensor': 1,
  'train__iterations': 2,
  'train__sequences_per_update': 4,
  'train__micro_batches': 2,
  'entropy__fraction': 0.05,
  'evaluate__suites': 'math500,aime24',
  'evaluate__suite_problems': 2,
  'evaluate__suite_samples': 2,
  'evaluate__every': 2,
  # A tiny random policy never solves a problem, but half of its responses have
  # no e.
  'rewards__format': '[^e]*',
  'rewards__format_weight': 1.0,
  'rewards__workers': 1,
  'rewards__timeout': 60.0,
  'logging__tensorboard': 'false',
  'logging__samples_every': 1,
  'logging__entropy_change_every': 0,
}


@pytest.fixture(scope='module')
def trained_run(model, tmp_path_factory):
  """A finished run of KL-Cov with reduced sizes."""
  workdir = tmp_path_factory.mktemp('runs') / 'kl_cov'
  subprocess.run(
    [
      sys.executable,
      *('-m', 'covrl.cli', 'train'),
      '--config=reasoning:qwen2_5_7b_kl_cov',
      f'--workdir={workdir}',
      *overrides(model, **REDUCED_SETTINGS),
    ],
    env=ENVIRONMENT,
    check=True,
    timeout=900,
  )
  return workdir


def test_7b_recipe_trains_two_iterations(trained_run):
  updates = metric_lines(trained_run, 'train')
  assert [(line['iteration'], line['step']) for line in updates] == [
    (0, 1),
    (0, 2),
    (1, 3),
    (1, 4),
  ]
  assert all(line['reward/math'] == 0 for line in updates)
  assert any(line['reward/format'] > 0 for line in updates)
  assert any(line['selected'] > 0 for line in updates)
  assert any(line['gradient_norm'] > 0 for line in updates)
  assert all(math.isfinite(line['entropy']) for line in updates)
  assert all(line['reward_failures'] == 0 for line in updates)


def test_run_is_evaluated_on_its_suites(trained_run):
  first, last = metric_lines(trained_run, 'eval')
  assert (first['iteration'], last['iteration']) == (0, 2)
  for line in (first, last):
    for name in ('math500', 'aime24'):
      assert {
        f'{name}/{f}' for f in ('greedy', 'mean@2', 'pass@2', 'maj@2')
      } <= set(line)
    assert (
      line['accuracy']
      == (line['math500/accuracy'] + line['aime24/accuracy']) / 2
    )
  file = trained_run / 'evaluation' / 'iteration_000002.jsonl'
  results = [json.loads(line) for line in file.read_text().splitlines()]
  assert [(r['suite'], len(r['correct'])) for r in results] == [
    ('math500', 2),
    ('math500', 2),
    ('aime24', 2),
    ('aime24', 2),
  ]


def test_evaluates_a_run_on_other_suites(trained_run, capsys):
  main(
    [
      'evaluate',
      str(trained_run),
      f'--suite=amc,minerva,{DATA / "dapo_math_17k.parquet"}',
      f'--suite_directory={DATA / "suites"}',
      '--samples=2',
      '--problems=2',
    ]
  )
  printed = capsys.readouterr()
  assert '5 of the problems that the run was trained on are' in printed.err
  assert 'amc/mean@2' in printed.out
  name, file = printed.out.splitlines()[-1].split()
  assert (name, file) == (
    'results',
    str(trained_run / 'evaluation' / 'summary.json'),
  )
  summary = json.loads(
    (trained_run / 'evaluation' / 'summary.json').read_text()
  )
  assert set(summary) == {'amc', 'minerva', 'dapo_math_17k'}
  assert summary['amc']['iteration'] == 2
  assert (summary['amc']['samples'], summary['amc']['temperature']) == (2, 0.6)
  value, low, high = summary['amc']['metrics']['mean@2']
  assert 0 <= low <= value <= high <= 1
  (line, _) = (
    (trained_run / 'evaluation' / 'amc.jsonl').read_text().splitlines()
  )
  assert len(json.loads(line)['responses']) == 3


def test_prompts_of_an_evaluation_are_padded_to_the_longest(model):
  suites = SuiteChoice('aime25', str(DATA / 'suites'))
  with open_model(
    str(model), suites, lengths=(2048, 4), prompts_per_batch=8
  ) as opened:
    (suite,) = opened.task.suites
    longest = max(
      len(prompt_ids(problem, opened.task.tokenizer))
      for problem in suite.problems
    )
    assert opened.config.rollout.max_prompt_length == longest < 320


def test_evaluates_a_pretrained_model_without_a_recipe(model, tmp_path, capsys):
  arguments = [
    'evaluate',
    str(model),
    '--suite=aime25',
    f'--suite_directory={DATA / "suites"}',
    '--samples=0',
    '--max_prompt_length=320',
    '--max_length=4',
    '--batch=8',
  ]
  main(arguments)
  printed = capsys.readouterr().out
  assert 'aime25/greedy' in printed
  assert printed.splitlines()[-1].endswith(' not written without --output')
  main([*arguments, f'--output={tmp_path}'])
  assert (tmp_path / 'evaluation' / 'aime25.jsonl').exists()
  assert not (model / 'evaluation').exists()


@pytest.mark.parametrize(
  ('flags', 'sentence'),
  [
    (
      ['--suite=amc', '--samples=-1', f'--suite_directory={DATA / "suites"}'],
      '--samples must be at least 0, got -1',
    ),
    (
      [
        '--suite=amc',
        '--temperature=nan',
        f'--suite_directory={DATA / "suites"}',
      ],
      '--temperature must be at least 0, got nan',
    ),
    (
      [
        '--suite=amc',
        '--temperature=inf',
        f'--suite_directory={DATA / "suites"}',
      ],
      '--temperature must be finite, got inf',
    ),
    (['--suite=aime9'], 'an evaluation set must be one of math500'),
    (
      ['--suite=amc', '--suite_directory=nowhere'],
      'must be in nowhere, as amc',
    ),
    (
      ['--suite=amc', '--problems=9', f'--suite_directory={DATA / "suites"}'],
      '--problems must lie in [1, 3], got 9',
    ),
  ],
)
def test_evaluation_refuses_invalid_options(
  trained_run, flags, sentence, capsys
):
  with pytest.raises(SystemExit):
    main(['evaluate', str(trained_run), *flags])
  *progress, error = capsys.readouterr().err.splitlines()
  assert sentence in error
  messages = [line for line in progress if line.startswith('covrl: ')]
  # The first line names the recipe that is executed.
  assert all('execut' in line for line in messages), messages
