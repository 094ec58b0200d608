# SPDX-License-Identifier: Apache-2.0
"""What a run is: fields, overrides, identity, and what is refused."""

import dataclasses
import pathlib
import shutil
import sys

import pytest

from covrl import config
from covrl.config import Config, ConfigError, flatten, from_dict, load

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
KL_COV = CONFIGS / 'countdown_kl_cov.py'
RECIPES = sorted(CONFIGS.glob('countdown_*.py'))

# What each recipe changes, beside its loss and token chain.
FIELDS = {
  'countdown_clip_cov': {'train.low', 'train.high'},
  'countdown_entropy_bonus': {'entropy.coefficient'},
  'countdown_kl_cov_beta0': {'entropy.coefficient'},
}


@pytest.fixture
def neighbours(tmp_path):
  """A recipe of its own, with the file it imports."""
  for name in ('countdown.py', 'countdown_kl_cov.py'):
    shutil.copy(CONFIGS / name, tmp_path / name)
  return tmp_path / 'countdown_kl_cov.py'


def refused(*arguments):
  with pytest.raises(ConfigError) as caught:
    load(*arguments)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_overrides_reach_every_kind_of_field():
  recipe = load(
    str(KL_COV),
    [
      '--config.train.iterations=3',
      '--config.train.learning_rate=0.5',
      '--config.warm_start.from_run=runs/a',
      '--config.logging.tensorboard=false',
      '--config.seed=7',
    ],
  )
  changed = {
    name: value
    for name, value in flatten(recipe.config).items()
    if value != flatten(load(str(KL_COV)).config)[name]
  }
  assert changed == {
    'train.iterations': 3,
    'train.learning_rate': 0.5,
    'warm_start.from_run': 'runs/a',
    'logging.tensorboard': False,
    'seed': 7,
  }


def test_a_whole_number_may_stand_for_a_fraction():
  recipe = load(str(KL_COV), ['--config.entropy.coefficient=2'])
  assert recipe.config.entropy.coefficient == 2.0


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipes_differ_only_in_what_their_names_say(path):
  ours, theirs = (
    flatten(load(str(file)).config)
    for file in (path, CONFIGS / 'countdown_grpo.py')
  )
  different = {name for name in ours if ours[name] != theirs[name]}
  assert different == FIELDS.get(path.stem, set())


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_factories_build_with_overrides_applied(path):
  recipe = load(str(path), ['--config.train.sequences_per_update=64'])
  for factory in config.FACTORIES:
    if factory not in ('make_task', 'make_model'):
      assert getattr(recipe.module, factory)(recipe.config) is not None
  model = recipe.module.make_model(recipe.config, 32)
  assert model.vocab_size == 32
  # A docstring that says how to run it, on what, and what to expect.
  doc = recipe.module.__doc__ or ''
  assert f'--config=configs/{path.name}' in doc
  assert 'Hardware:' in doc
  assert 'Expect:' in doc


def test_plain_fields_and_back():
  plain = dataclasses.asdict(load(str(KL_COV)).config)
  assert from_dict(plain) == load(str(KL_COV)).config
  assert from_dict({}) == Config()


def test_sizes_follow_from_fields():
  sizes = load(str(KL_COV), ['--config.train.iterations=5']).config
  assert sizes.sequences_per_iteration == 64 * 8
  assert sizes.updates_per_iteration == 4
  assert sizes.total_updates == 20


@pytest.mark.parametrize(
  ('field', 'nearest'),
  [
    ('train.iteratons', 'train.iterations'),
    ('entropy.coeficient', 'entropy.coefficient'),
    ('iterations', 'train.iterations'),
    ('sed', 'seed'),
    ('warmstart.steps', 'warm_start.steps'),
  ],
)
def test_an_unknown_field_names_the_nearest(field, nearest):
  assert refused(str(KL_COV), [f'--config.{field}=3']) == (
    f'there is no config field {field!r}; did you mean {nearest}?'
  )


def test_a_field_like_no_other():
  assert refused(str(KL_COV), ['--config.xyzzy=3']) == (
    "there is no config field 'xyzzy'"
  )


@pytest.mark.parametrize(
  'override',
  [
    'train.iterations=many',
    'train.iterations=1.5',
    'train.iterations',
    'train.learning_rate=fast',
    'logging.tensorboard=perhaps',
  ],
)
def test_a_value_of_another_type(override):
  error = refused(str(KL_COV), [f'--config.{override}'])
  assert error.startswith('cannot apply the overrides: ')
  assert f'--config.{override.split("=")[0]}' in error


@pytest.mark.parametrize(
  ('overrides', 'reason'),
  [
    (
      {'train.sequences_per_update': 100},
      'the sequences of an iteration (rollout.prompts_per_iteration × '
      'rollout.responses_per_prompt) must be a multiple of '
      'train.sequences_per_update, got 512 and 100',
    ),
    (
      {'train.micro_batches': 3},
      'train.sequences_per_update must be a multiple of train.micro_batches, '
      'got 128 and 3',
    ),
    (
      {'evaluate.problems': 2000},
      'evaluate.problems must be at most task.held_out, got 2000 of 1024',
    ),
    ({'train.iterations': 0}, 'train.iterations must be at least 1, got 0'),
    ({'checkpoint.keep': 0}, 'checkpoint.keep must be at least 1, got 0'),
    ({'warm_start.steps': -1}, 'warm_start.steps must be at least 0, got -1'),
    ({'seed': -1}, 'seed must be at least 0, got -1'),
    (
      {'rollout.temperature': 0},
      'rollout.temperature must be above 0 to learn from samples, got 0',
    ),
    ({'rollout.top_p': 1.5}, 'rollout.top_p must lie in (0, 1], got 1.5'),
    (
      {'rewards.max_failures': 2},
      'rewards.max_failures must lie in [0, 1], got 2',
    ),
  ],
)
def test_contradictions(overrides, reason):
  given = [f'--config.{name}={value}' for name, value in overrides.items()]
  assert refused(str(KL_COV), given) == reason


def test_files_that_are_no_recipes(tmp_path):
  assert refused(str(tmp_path / 'none.py')) == (
    f"--config must name a Python file, got '{tmp_path / 'none.py'}'"
  )
  (tmp_path / 'notes.txt').write_text('hello')
  assert 'must name a Python file' in refused(str(tmp_path / 'notes.txt'))
  bare = tmp_path / 'bare.py'
  bare.write_text('def get_config():\n  return 3\n')
  assert 'must define make_task(), ' in refused(str(bare))


def test_get_config_must_return_a_config(neighbours):
  text = neighbours.read_text()
  neighbours.write_text(f'{text}\n\ndef get_config():\n  return dict(seed=1)\n')
  assert refused(str(neighbours)) == (
    f'get_config() must return a covrl Config, {neighbours} returns dict'
  )


def test_a_recipe_is_the_texts_it_imports(neighbours):
  recipe = load(str(neighbours))
  assert recipe.name == 'countdown_kl_cov'
  assert sorted(recipe.sources) == ['countdown.py', 'countdown_kl_cov.py']
  assert recipe.as_json()['source'] == neighbours.read_text()
  assert recipe.as_json()['identity'] == recipe.identity
  # Elsewhere, with the same texts, it is the same recipe.
  assert load(str(KL_COV)).identity == recipe.identity


def test_loading_one_recipe_leaves_no_trace_in_the_next(neighbours):
  alone = load(str(neighbours))
  other = shutil.copy(CONFIGS / 'countdown_grpo.py', neighbours.parent)
  assert sorted(load(other).sources) == ['countdown.py', 'countdown_grpo.py']
  assert load(str(neighbours)).identity == alone.identity
  assert 'countdown' not in sys.modules


def test_a_neighbour_is_read_anew(neighbours):
  before = load(str(neighbours))
  shared = neighbours.with_name('countdown.py')
  text = shared.read_text().replace('fraction = 0.05', 'fraction = 0.03')
  shared.write_text(f'{text}# Changed.\n')
  after = load(str(neighbours))
  assert after.config.entropy.fraction == 0.03
  assert before.config.entropy.fraction == 0.05
  assert after.identity != before.identity


@pytest.mark.parametrize(
  ('override', 'same'),
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
def test_what_a_run_computes_is_its_identity(override, same):
  changed = load(str(KL_COV), [f'--config.{override}'])
  assert (changed.identity == load(str(KL_COV)).identity) == same


def test_recipes_with_the_same_fields_are_different_runs():
  ours, theirs = (
    load(str(CONFIGS / f'countdown_{name}.py'))
    for name in ('kl_cov', 'random_k')
  )
  assert ours.config == theirs.config
  assert ours.identity != theirs.identity
