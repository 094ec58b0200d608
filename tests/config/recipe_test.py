# SPDX-License-Identifier: Apache-2.0
"""Recipe files: location, execution and identity."""

import dataclasses
import importlib
import inspect
import json
import pathlib
import re
import shutil
import sys
import textwrap

import pytest

import covrl
from configs import countdown
from covrl.config import ConfigError, Recipe, flatten, load, recipes, restore

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
KL_COV = 'countdown:kl_cov'
COUNTDOWN = [spec for spec, _ in recipes() if spec.startswith('countdown:')]

PRIME = {
  'prime.learning_rate',
  'prime.update',
  'train.keep_reference',
  'rollout.max_draws',
  'rollout.min_accuracy',
  'rollout.max_accuracy',
  'rollout.drop_truncated_groups',
  'rollout.fill_groups',
}
# Fields that a recipe changes, besides its loss and token chain.
CHANGED_FIELDS = {
  'countdown:clip_cov': {'train.clip_low', 'train.clip_high'},
  'countdown:entropy_bonus': {'entropy.coefficient'},
  'countdown:kl_cov_beta0': {'entropy.coefficient'},
  'countdown:ppo': {'critic.learning_rate', 'critic.warm_up'},
  'countdown:prime': PRIME,
  'countdown:prime_kl_cov': PRIME,
}

# Recipes without a row in the table of results.
NOT_IN_THE_STUDY = {
  'countdown:ppo',
  'countdown:prime',
  'countdown:prime_kl_cov',
}


@pytest.fixture
def recipe_file(tmp_path):
  """A recipe file that imports another file in its directory."""
  shutil.copy(CONFIGS / 'countdown.py', tmp_path / 'shared.py')
  file = tmp_path / 'own.py'
  file.write_text(
    textwrap.dedent('''
      import dataclasses

      import shared

      def kl_cov():
        """Mine."""
        return dataclasses.replace(shared.kl_cov())
    ''')
  )
  return file


def error_of_load(*arguments):
  """Returns the error of a recipe that is refused; it is one sentence."""
  with pytest.raises(ConfigError) as caught:
    load(*arguments)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_recipes_are_listed_with_their_first_docstring_line():
  listed = dict(recipes())
  assert len(COUNTDOWN) == 11
  assert listed['countdown:grpo'] == "GRPO: PPO's clip and no entropy control."
  assert all(summary.endswith('.') for summary in listed.values())


@pytest.mark.parametrize('spec', COUNTDOWN)
def test_recipes_differ_only_in_the_named_fields(spec):
  ours, theirs = (
    flatten(load(name).config) for name in (spec, 'countdown:grpo')
  )
  different = {name for name in ours if ours[name] != theirs[name]}
  assert different == CHANGED_FIELDS.get(spec, set())


@pytest.mark.parametrize('spec', COUNTDOWN)
def test_functions_build_with_overrides_applied(spec):
  recipe = load(spec, ['--config.train.sequences_per_update=64'])
  for name in ('advantages', 'loss', 'token_tx', 'tx', 'warm_start_tx'):
    assert getattr(recipe, name)(recipe.config) is not None
  assert recipe.model(recipe.config, 32).vocab_size == 32
  # Docstrings state the command, the hardware and the expected result.
  name = spec.partition(':')[2]
  doc = getattr(countdown, name).__doc__ or ''
  assert f'--config={spec} --workdir=runs/{name}' in doc
  assert 'Hardware:' in doc
  assert 'Expect:' in doc


@pytest.mark.parametrize('spec', [KL_COV, f'{CONFIGS}/countdown.py:kl_cov'])
def test_a_name_and_a_path_load_the_same_recipe(spec):
  recipe = load(spec)
  assert recipe.name == KL_COV
  assert recipe.identity == load(KL_COV).identity


def test_file_with_one_recipe_needs_no_function(recipe_file):
  assert load(str(recipe_file)).name == 'own:kl_cov'
  text = recipe_file.read_text()
  recipe_file.write_text(f'{text}\n\ndef other():\n  return kl_cov()\n')
  assert error_of_load(str(recipe_file)) == (
    f'--config must name one of the recipes {recipe_file}:kl_cov,'
    f' {recipe_file}:other, got {str(recipe_file)!r}'
  )
  assert load(f'{recipe_file}:other').name == 'own:other'


def test_helpers_are_not_recipes(recipe_file):
  recipe_file.write_text(
    f'{recipe_file.read_text()}\n\n'
    'def _private():\n  ...\n\n'
    'def loss(config):\n  ...\n\n'
    'def steps() -> int:\n  ...\n'
  )
  assert load(str(recipe_file)).name == 'own:kl_cov'


def test_refuses_a_file_without_recipes(recipe_file):
  recipe_file.write_text('def loss(config):\n  ...\n')
  assert error_of_load(str(recipe_file)) == (
    'a recipe file must have a function that returns a Recipe, got'
    f' {recipe_file} without one'
  )


def test_an_unknown_function_is_refused_with_the_nearest_name():
  error = error_of_load('countdown:kl_covv')
  assert error.startswith('--config must name a recipe in ')
  assert error.endswith("countdown.py, got 'kl_covv'; did you mean 'kl_cov'?")


def test_refuses_an_unknown_recipe_file():
  error = error_of_load('countdwn:kl_cov')
  assert error.endswith("got 'countdwn:kl_cov'")
  assert 'covrl recipes' in error


def test_refuses_files_that_are_not_recipe_files(tmp_path):
  assert error_of_load(str(tmp_path / 'none.py')) == (
    f"--config must name a Python file, got '{tmp_path / 'none.py'}', which does"
    ' not exist'
  )
  (tmp_path / 'notes.txt').write_text('hello')
  assert 'must name a Python file' in error_of_load(str(tmp_path / 'notes.txt'))
  broken = tmp_path / 'broken.py'
  broken.write_text('def kl_cov(:\n')
  assert 'must be valid Python, got' in error_of_load(str(broken))


def test_function_must_return_a_recipe(recipe_file):
  recipe_file.write_text('def kl_cov():\n  return dict(seed=1)\n')
  assert error_of_load(str(recipe_file)) == (
    f'kl_cov() of {recipe_file} must return a covrl Recipe, got dict'
  )


def test_values_set_by_a_recipe_are_checked(recipe_file):
  recipe_file.write_text(
    'import shared\n\n'
    'def kl_cov():\n'
    '  recipe = shared.kl_cov()\n'
    '  recipe.config.train.learning_rate = float("nan")\n'
    '  return recipe\n'
  )
  assert (
    error_of_load(str(recipe_file))
    == 'train.learning_rate must lie in [0, 10], got nan'
  )
  recipe_file.write_text(
    recipe_file.read_text().replace('float("nan")', '"3e-4"')
  )
  assert (
    error_of_load(str(recipe_file))
    == "train.learning_rate must be a number, got '3e-4'"
  )


def test_recipe_file_is_executed_once(recipe_file, capsys):
  recipe_file.write_text(f'print("executed")\n{recipe_file.read_text()}')
  load(f'{recipe_file}:kl_cov', ['--config.seed=3'])
  assert capsys.readouterr().out == 'executed\n'


def test_sources_are_the_files_that_a_recipe_imports(recipe_file):
  recipe = load(str(recipe_file))
  assert recipe.name == 'own:kl_cov'
  assert sorted(recipe.sources) == ['own.py', 'shared.py']
  assert recipe.as_json()['source'] == recipe_file.read_text()
  assert recipe.as_json()['identity'] == recipe.identity


def test_same_sources_elsewhere_are_the_same_recipe(tmp_path):
  copy = shutil.copy(CONFIGS / 'countdown.py', tmp_path)
  assert load(f'{copy}:kl_cov').identity == load(KL_COV).identity


def test_loading_one_recipe_does_not_affect_the_next(recipe_file):
  recipe = load(str(recipe_file))
  other_file = recipe_file.with_name('countdown.py')
  shutil.copy(CONFIGS / 'countdown.py', other_file)
  assert sorted(load(f'{other_file}:grpo').sources) == ['countdown.py']
  assert load(str(recipe_file)).identity == recipe.identity
  assert 'shared' not in sys.modules


def test_imported_files_are_read_anew(recipe_file):
  before = load(str(recipe_file))
  shared = recipe_file.with_name('shared.py')
  text = shared.read_text().replace('fraction = 0.05', 'fraction = 0.03')
  shared.write_text(f'{text}# Changed.\n')
  after = load(str(recipe_file))
  assert after.config.entropy.fraction == 0.03
  assert before.config.entropy.fraction == 0.05
  assert after.identity != before.identity


def test_recipe_is_restored_from_copies_of_its_files(recipe_file, tmp_path):
  recipe = load(str(recipe_file), ['--config.train.iterations=3'])
  copies = tmp_path / 'copies'
  copies.mkdir()
  for name, text in recipe.sources.items():
    (copies / name).write_text(text)
  recipe_file.unlink()
  described = json.loads(json.dumps(recipe.as_json()))
  restored = restore(copies, described)
  assert restored.config == recipe.config
  assert restored.identity == recipe.identity
  with pytest.raises(ConfigError, match='older version of covrl'):
    restore(copies, {**described, 'name': 'countdown_kl_cov'})


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    (
      "pathlib.Path(__file__).with_name('numbers.txt').read_text()",
      'the recipe of the run cannot be executed (FileNotFoundError: [Errno 2] No such'
      " file or directory: '{copies}/numbers.txt'); only Python files beside a recipe"
      ' are kept with a run',
    ),
    (
      'import helpers.sums',
      "the recipe of the run needs the module 'helpers', which is not installed here;"
      ' only single files beside a recipe are kept with a run',
    ),
  ],
)
def test_a_copy_of_a_recipe_that_lacks_other_files_is_refused_in_one_sentence(
  recipe_file, tmp_path, line, message
):
  (tmp_path / 'helpers').mkdir()
  (tmp_path / 'helpers' / 'sums.py').write_text('')
  (tmp_path / 'numbers.txt').write_text('1')
  copies = tmp_path / 'copies'
  copies.mkdir()
  text = f'import pathlib\n{line}\n{recipe_file.read_text()}'
  recipe_file.write_text(text)
  recipe = load(str(recipe_file))
  for name, source in recipe.sources.items():
    (copies / name).write_text(source)
  with pytest.raises(ConfigError) as error:
    restore(copies, recipe.as_json())
  assert str(error.value) == message.format(copies=copies)


def test_shipped_recipes_can_be_imported():
  module = importlib.import_module('covrl.recipes.countdown')
  recipe = module.grpo()
  assert isinstance(recipe, Recipe)
  assert recipe.config == load('countdown:grpo').config


def test_a_variant_states_only_its_differences(recipe_file):
  recipe_file.write_text(
    textwrap.dedent("""
      import dataclasses

      import covrl
      from covrl.recipes import countdown

      def forking() -> countdown.Recipe:
        return dataclasses.replace(
          countdown.grpo(),
          token_tx=lambda config: covrl.forking_tokens(config.entropy.fraction),
        )
    """)
  )
  recipe = load(str(recipe_file), ['--config.entropy.fraction=0.5'])
  assert recipe.config.countdown == load('countdown:grpo').config.countdown
  assert recipe.token_tx(recipe.config) is not None
  assert sorted(recipe.sources) == ['own.py']


def test_variants_do_not_share_a_config():
  base = countdown.grpo()
  variant = dataclasses.replace(base, loss=lambda config: covrl.policy_gradient)
  variant.config.train.clip_low = 0.5
  assert (
    base.config.train.clip_low == countdown.grpo().config.train.clip_low == 0.2
  )


@pytest.mark.parametrize(
  ('override', 'is_same'),
  [
    ('train.iterations=3', True),
    ('checkpoint.every=3', True),
    ('checkpoint.keep=3', True),
    ('logging.samples_every=3', True),
    ('train.learning_rate=3.0', False),
    ('train.sequences_per_update=64', False),
    ('entropy.coefficient=3.0', False),
    ('warm_start.steps=3', False),
    ('evaluate.every=3', False),
    ('seed=3', False),
  ],
)
def test_identity_depends_on_what_a_run_computes(override, is_same):
  changed = load(KL_COV, [f'--config.{override}'])
  assert (changed.identity == load(KL_COV).identity) == is_same


def test_workers_import_installed_modules_and_not_files_of_their_names():
  texts = dict.fromkeys(('queue.py', 'numpy.py', 'mine.py'), 'x = 1')
  recipe = dataclasses.replace(
    load(KL_COV), sources=texts, directory=pathlib.Path('/a')
  )
  assert recipe.modules == {'mine': ('/a/mine.py', 'x = 1')}


def test_recipes_with_the_same_fields_are_different_runs():
  ours, theirs = load(KL_COV), load('countdown:random_k')
  assert ours.config == theirs.config
  assert ours.identity != theirs.identity


@pytest.mark.parametrize(
  'spec', [spec for spec in COUNTDOWN if spec not in NOT_IN_THE_STUDY]
)
def test_docstrings_of_countdown_recipes_agree_with_the_results(spec):
  name = spec.partition(':')[2]
  text = inspect.getdoc(getattr(countdown, name)) or ''
  assert 'two CPU cores, seven minutes.' in text
  rows = (CONFIGS / 'results' / 'countdown.md').read_text().splitlines()
  rows_of_recipe = [
    r for r in rows if r.startswith(('| warm', f'| countdown_{name} |'))
  ]
  stated = re.findall(r'\d\.\d{3}|\d{2}\.\d', text.partition('Expect')[2])
  assert all(number in ' '.join(rows_of_recipe) for number in stated)
  assert stated or name in ('grpo_no_clip', 'kl_cov_beta0', 'adaptive_bonus')
