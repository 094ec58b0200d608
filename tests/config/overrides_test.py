# SPDX-License-Identifier: Apache-2.0
"""Overrides of config fields, and checks of their values."""

import dataclasses
import math
import typing

import pytest

from covrl.config import (
  Config,
  ConfigError,
  field_help,
  flatten,
  from_dict,
  load,
)
from covrl.config.bounds import SEED
from covrl.config.schema import fields_by_name
from covrl.models.remat import RematPolicy
from covrl.objectives import WEIGHT_MODES
from covrl.types import SelectionSource

KL_COV = 'countdown:kl_cov'


def error_of(*overrides):
  """Returns the error of overrides that are refused; it is one sentence."""
  with pytest.raises(ConfigError) as caught:
    load(KL_COV, [f'--config.{override}' for override in overrides])
  assert '\n' not in str(caught.value)
  return str(caught.value)


NUMBERS = [
  field
  for field in fields_by_name().values()
  if field.kind in (int, float) and not field.choices
]
# Fields for which −1 has a meaning: by their bounds, or as a number of either sign.
SIGNED = {
  'countdown.seed',
  'entropy.coefficient',
  'entropy.covariance_low',
  'entropy.covariance_high',
  'rewards.format_weight',
  'rewards.function_weight',
  'evaluate.suite_samples',
  'evaluate.suite_temperature',
}


@pytest.mark.parametrize('field', NUMBERS, ids=lambda field: field.name)
def test_impossible_numbers_are_refused(field):
  impossible = [math.nan, math.inf, -math.inf, 1e30, -1e30]
  if field.kind is int:
    too_large = 2**32 if field.bounds == SEED else 2**31
    impossible = [10**30, -(10**30), 10**400, too_large]
  if field.name not in SIGNED and not field.name.startswith('mesh.'):
    impossible.append(-1)
  for value in impossible:
    with pytest.raises(ConfigError, match=field.name) as caught:
      field.check(field.kind(value))
    assert '\n' not in str(caught.value)


def test_sizes_are_at_least_one_or_minus_one():
  assert error_of('mesh.tensor=0') == (
    'mesh.tensor must be at least 1, or -1, got 0'
  )
  assert 'suite_samples must be at least 1, or -1, got 0' in error_of(
    'evaluate.suite_samples=0'
  )
  assert 'suite_temperature must be at least 0, or -1, got -0.5' in error_of(
    'evaluate.suite_temperature=-0.5'
  )


def test_overrides_change_fields_of_every_type():
  recipe = load(
    KL_COV,
    [
      '--config.train.iterations=3',
      '--config.train.learning_rate=0.5',
      '--config.warm_start.from_run=runs/a',
      '--config.logging.tensorboard=false',
      '--config.seed=7',
    ],
  )
  unchanged = flatten(load(KL_COV).config)
  changed = {
    name: value
    for name, value in flatten(recipe.config).items()
    if value != unchanged[name]
  }
  assert changed == {
    'train.iterations': 3,
    'train.learning_rate': 0.5,
    'warm_start.from_run': 'runs/a',
    'logging.tensorboard': False,
    'seed': 7,
  }


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (['--config.train.iterations', '3'], {'train.iterations': 3}),
    (['--config.rollout.top_k', '3', '--config.seed=1'], {'rollout.top_k': 3}),
    (['--config.data.deduplicate=False'], {'data.deduplicate': False}),
    (['--config.train.offload_optimizer'], {'train.offload_optimizer': True}),
    (
      ['--config.data.template=a=b {question}'],
      {'data.template': 'a=b {question}'},
    ),
    (['--config.data.system='], {'data.system': ''}),
    (['--config.evaluate.suite_samples=-1'], {'evaluate.suite_samples': -1}),
    (['--config.entropy.coefficient', '-0.5'], {'entropy.coefficient': -0.5}),
    (['--config.seed=1', '--config.seed=2'], {'seed': 2}),
  ],
)
def test_overrides_may_be_written_in_several_ways(arguments, expected):
  fields = flatten(load(KL_COV, arguments).config)
  assert {name: fields[name] for name in expected} == expected


def test_an_integer_is_a_valid_value_of_a_float():
  value = load(KL_COV, ['--config.entropy.coefficient=2']).config.entropy
  assert value.coefficient == 2.0
  assert isinstance(value.coefficient, float)


@pytest.mark.parametrize(
  ('field', 'nearest'),
  [
    ('train.iteratons', 'train.iterations'),
    ('entropy.coeficient', 'entropy.coefficient'),
    ('iterations', 'train.iterations'),
    ('sed', 'seed'),
    ('warmstart.steps', 'warm_start.steps'),
    ('evaluate.sample', 'evaluate.samples'),
    ('train.temperature', 'rollout.temperature or evaluate.temperature'),
    # A part of a name, in the same group before others.
    ('train.low', 'train.clip_low'),
    ('train.high', 'train.clip_high'),
    ('entropy.low', 'entropy.covariance_low'),
    ('entropy.high', 'entropy.covariance_high'),
    ('rollout.low', 'train.clip_low or entropy.covariance_low'),
    # A group that is unlike those that have such a field.
    ('task.min_numbers', 'countdown.min_numbers'),
    ('task.max_value', 'countdown.max_value or arithmetic.max_value'),
    ('rollout.drop_truncated', 'rollout.drop_truncated_groups'),
    (
      'task.held_out',
      'countdown.held_out or maze.held_out or arithmetic.held_out',
    ),
  ],
)
def test_unknown_field_names_the_nearest(field, nearest):
  assert error_of(f'{field}=3') == (
    f'overrides must name config fields, got {field!r}; did you mean {nearest}?'
  )


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ('data.layout', 'data.schema'),
    ('rewards.judge', 'rewards.sandbox'),
    ('rewards.judge_url', 'rewards.sandbox_url'),
  ],
)
def test_renamed_field_names_the_new_one(old, new):
  assert new in fields_by_name()
  assert error_of(f'{old}=remote') == (
    f'overrides must name config fields, got {old!r}; it is now {new}'
  )


def test_an_unknown_field_unlike_any_other_is_refused_without_advice():
  assert error_of('xyzz=3') == "overrides must name config fields, got 'xyzz'"


CHECKPOINT = 'checkpoint is a group of config fields: ' + ', '.join(
  name for name in fields_by_name() if name.startswith('checkpoint.')
)


@pytest.mark.parametrize(
  'field', ['checkpiont', 'checkpoint.', 'checkpoint.xyzzy', 'checkpiont.xyzzy']
)
def test_unknown_field_names_the_group_it_resembles(field):
  assert error_of(f'{field}=3') == (
    f'overrides must name config fields, got {field!r}; {CHECKPOINT}'
  )


def test_a_group_of_fields_is_refused_with_its_fields():
  assert error_of('checkpoint=3') == CHECKPOINT


@pytest.mark.parametrize(
  ('text', 'advice'),
  [
    ('checkpoint=3', f'; {CHECKPOINT}'),
    ('--checkpoint=3', f'; {CHECKPOINT}'),
    ('--train.iterations=3', '; did you mean --config.train.iterations?'),
    ('iterations=3', '; did you mean train.iterations?'),
    ('xyzzy=3', ''),
  ],
)
def test_argument_that_is_not_an_override_is_shown_with_advice(text, advice):
  with pytest.raises(ConfigError) as caught:
    load(KL_COV, [text])
  assert str(caught.value) == (
    f'overrides must look like --config.FIELD=VALUE, got {text!r}{advice}'
  )


@pytest.mark.parametrize(
  ('override', 'requirement'),
  [
    ('train.iterations=many', "must be an integer, got 'many'"),
    ('train.iterations=1.5', "must be an integer, got '1.5'"),
    ('train.iterations', 'must have a value, an integer, got none'),
    ('train.learning_rate=fast', "must be a number, got 'fast'"),
    ('logging.tensorboard=perhaps', "must be true or false, got 'perhaps'"),
  ],
)
def test_values_of_another_type_are_refused(override, requirement):
  name = override.partition('=')[0]
  assert error_of(override) == f'--config.{name} {requirement}'


@pytest.mark.parametrize(
  ('overrides', 'reason'),
  [
    (
      {'train.sequences_per_update': 100},
      'the sequences of an iteration (rollout.prompts_per_iteration × '
      'rollout.responses_per_prompt) must be a multiple of '
      'train.sequences_per_update, got 512 and 100; nearest possible: '
      'train.sequences_per_update = 64 or 128',
    ),
    (
      {'train.micro_batches': 3},
      'train.sequences_per_update must be a multiple of train.micro_batches, '
      'got 128 and 3; nearest possible: train.micro_batches = 2 or 4',
    ),
    (
      {'maze.max_steps': 4},
      'maze must have 1 <= min_distance <= max_steps, got min_distance=5 and '
      'max_steps=4',
    ),
    ({'train.iterations': 0}, 'train.iterations must be at least 1, got 0'),
    ({'checkpoint.keep': 0}, 'checkpoint.keep must be at least 1, got 0'),
    ({'warm_start.steps': -1}, 'warm_start.steps must be at least 0, got -1'),
    ({'seed': -1}, 'seed must lie in [0, 4294967295], got -1'),
    ({'seed': 1 << 32}, 'seed must lie in [0, 4294967295], got 4294967296'),
    (
      {'rollout.temperature': 0},
      'rollout.temperature must be above 0 to learn from samples, got 0',
    ),
    ({'rollout.top_p': 1.5}, 'rollout.top_p must lie in (0, 1], got 1.5'),
    (
      {'rewards.max_failures': 2},
      'rewards.max_failures must lie in [0, 1], got 2',
    ),
    (
      {'countdown.min_numbers': 5},
      'countdown must have 1 <= min_numbers <= max_numbers, got min_numbers=5 and '
      'max_numbers=4',
    ),
    (
      {'data.min_pass_rate': 0.5, 'data.max_pass_rate': 0.25},
      'data.min_pass_rate must be at most data.max_pass_rate, got 0.5 and 0.25',
    ),
    (
      {'train.reset_reference_every': 2},
      'train.keep_reference must be true with train.reset_reference_every, got'
      ' false and 2',
    ),
    (
      {'train.packed_rows': 256},
      'train.packed_rows must be at most train.sequences_per_update, got 256 '
      'of 128',
    ),
  ],
)
def test_invalid_and_conflicting_values_are_refused(overrides, reason):
  arguments = [f'{name}={value}' for name, value in overrides.items()]
  assert error_of(*arguments) == reason


def test_the_largest_seed_is_valid():
  largest = (1 << 32) - 1
  recipe = load(KL_COV, [f'--config.seed={largest}'])
  assert recipe.config.seed == largest


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_every_number_must_be_finite(value):
  floats = [f for f in fields_by_name().values() if f.kind is float]
  assert len(floats) > 20
  for field in floats:
    error = error_of(f'{field.name}={value}')
    assert error.startswith(f'{field.name} must ')
    assert error.endswith(f', got {value}')


@pytest.mark.parametrize(
  'field', ['train.learning_rate', 'warm_start.learning_rate']
)
@pytest.mark.parametrize('value', ['-1', '1e30'])
def test_learning_rates_have_bounds(field, value):
  assert error_of(f'{field}={value}') == (
    f'{field} must lie in [0, 10], got {float(value):g}'
  )


@pytest.mark.parametrize('value', [0, -0.1, 1.5])
def test_fraction_of_tokens_lies_between_0_and_1(value):
  assert error_of(f'entropy.fraction={value}') == (
    f'entropy.fraction must lie in (0, 1], got {value:g}'
  )


@pytest.mark.parametrize(
  ('field', 'choices'),
  [
    ('train.weights', WEIGHT_MODES),
    ('train.remat', typing.get_args(RematPolicy)),
    ('entropy.selection_source', typing.get_args(SelectionSource)),
    (
      'rewards.sandbox',
      ('', 'bubblewrap', 'landlock', 'remote', 'unsandboxed'),
    ),
  ],
)
def test_choices_are_those_of_the_package(field, choices):
  assert fields_by_name()[field].choices == choices
  assert error_of(f'{field}=new') == (
    f"{field} must be one of {choices}, got 'new'"
  )


def test_configs_are_restored_from_their_dictionaries():
  plain = dataclasses.asdict(load(KL_COV).config)
  assert from_dict(plain) == load(KL_COV).config
  assert from_dict({}) == Config()


def test_batch_sizes_follow_from_fields():
  sizes = load(KL_COV, ['--config.train.iterations=5']).config
  assert sizes.sequences_per_iteration == 64 * 8
  assert sizes.updates_per_iteration == 4
  assert sizes.total_updates == 20


def test_schedules_do_not_depend_on_the_number_of_iterations():
  recipe = load(KL_COV)
  longer = load(KL_COV, ['--config.train.iterations=60'])
  assert recipe.config.schedule_updates == recipe.config.total_updates == 120
  assert longer.config.schedule_updates == 120
  assert longer.identity == recipe.identity
  other = load(KL_COV, ['--config.train.schedule_iterations=60'])
  assert other.config.schedule_updates == 240
  assert other.identity != recipe.identity


def test_a_schedule_needs_its_iterations():
  config = load(KL_COV, ['--config.train.schedule_iterations=0']).config
  with pytest.raises(ConfigError, match='schedule_iterations must be at least'):
    _ = config.schedule_updates


def test_every_field_has_a_type_a_meaning_and_a_valid_default():
  defaults = flatten(Config())
  assert set(fields_by_name()) == set(defaults)
  for name, field in fields_by_name().items():
    field.check(defaults[name])
    assert len(field.meaning) > 5
    assert field.meaning.endswith('.')


def test_help_shows_values_types_and_bounds():
  config = load(KL_COV).config
  text = field_help(config)
  assert all(f'--config.{name}=' in text for name in flatten(config))
  assert '--config.entropy.fraction=0.05\n' in text
  words = ' '.join(text.split())
  assert '(a number, in (0, 1])' in words
  assert '(old | current)' in words
  assert '--config.logging.tensorboard=true\n' in text
  # Sentences begin with capitals, symbols keep their case.
  for meaning in ('Seed of all', 'γ, discount', 'k, responses per held-out'):
    assert f'\n      {meaning}' in text
  # Lines of values may be longer than the terminal is wide.
  prose = (line for line in text.splitlines() if '--config.' not in line)
  assert all(len(line) <= 80 for line in prose)
