# SPDX-License-Identifier: Apache-2.0
"""Checks that the fields of a configuration are valid and do not conflict."""

from covrl.config.bounds import MAX_MAGNITUDES
from covrl.config.conversion import flatten
from covrl.config.divisors import check_divides
from covrl.config.errors import ConfigError
from covrl.config.fields import Config
from covrl.config.schema import fields_by_name


def check(config: Config) -> None:
  """Checks every field's type and bounds, and that fields do not conflict.

  Raises:
    ConfigError: a value is invalid, in one sentence.
  """
  values = flatten(config)
  for name, field in fields_by_name().items():
    field.check(values[name])
  config.countdown.check()
  config.maze.check()
  config.arithmetic.check()
  _check_batches(config)
  _check_admission(config)
  _check_carried(config)
  if config.train.reset_reference_every and not config.train.keep_reference:
    raise ConfigError(
      'train.keep_reference must be true with train.reset_reference_every, got'
      f' false and {config.train.reset_reference_every}'
    )
  _check_filters(config)
  _check_critic(config)
  _check_prime(config)
  if config.data.min_pass_rate > config.data.max_pass_rate:
    raise ConfigError(
      'data.min_pass_rate must be at most data.max_pass_rate, got '
      f'{config.data.min_pass_rate:g} and {config.data.max_pass_rate:g}'
    )


def check_section(config: Config, section: str) -> None:
  """Checks the type and the bounds of every field of a section.

  Args:
    config: the configuration, whoever has set its fields.
    section: name of the section, such as `critic`.

  Raises:
    ConfigError: a value is invalid, in one sentence.
  """
  values = flatten(config)
  for name, field in fields_by_name().items():
    if name.startswith(f'{section}.'):
      field.check(values[name])


def _check_batches(config: Config) -> None:
  """Checks that an iteration divides into updates and micro-batches.

  Updates are counted in int32.
  """
  train = config.train
  check_divides(
    config.sequences_per_iteration,
    train.sequences_per_update,
    'the sequences of an iteration (rollout.prompts_per_iteration × '
    'rollout.responses_per_prompt)',
    'train.sequences_per_update',
  )
  check_divides(
    train.sequences_per_update,
    train.micro_batches,
    'train.sequences_per_update',
    'train.micro_batches',
  )
  check_divides(
    train.packed_rows,
    train.micro_batches,
    'train.packed_rows',
    'train.micro_batches',
  )
  for name, iterations in (
    ('train.iterations', train.iterations),
    ('train.schedule_iterations', train.schedule_iterations),
  ):
    limit = MAX_MAGNITUDES[int] // config.updates_per_iteration
    if iterations > limit:
      raise ConfigError(
        f'{name} must be at most {limit}, with {config.updates_per_iteration}'
        f' updates per iteration, got {iterations}'
      )
  if train.packed_rows > train.sequences_per_update:
    raise ConfigError(
      'train.packed_rows must be at most train.sequences_per_update, got '
      f'{train.packed_rows} of {train.sequences_per_update}'
    )


def _check_filters(config: Config) -> None:
  """Checks that groups of responses can pass the filters of the rollout."""
  rollout = config.rollout
  low, high = rollout.min_accuracy, rollout.max_accuracy
  size = rollout.responses_per_prompt
  has_filter = rollout.drop_truncated_groups or (low, high) != (0, 1)
  if low > high:
    raise ConfigError(
      'rollout.min_accuracy must be at most rollout.max_accuracy, got '
      f'{low:g} and {high:g}'
    )
  if size == 1 and (has_filter or rollout.max_draws > 1):
    raise ConfigError(
      'rollout.responses_per_prompt must be at least 2 to choose groups of'
      ' unequal reward (rollout.max_draws, min_accuracy, max_accuracy,'
      ' drop_truncated_groups), got 1'
    )
  # Groups in which all responses are right, or all wrong, have zero advantages.
  if size > 1 and not any(low <= n / size <= high for n in range(1, size)):
    raise ConfigError(
      'rollout.min_accuracy to rollout.max_accuracy must contain a multiple of'
      f' 1/{size} (rollout.responses_per_prompt) between 0 and 1, got {low:g} to'
      f' {high:g}'
    )
  if rollout.fill_groups and not (has_filter or rollout.max_draws > 1):
    raise ConfigError(
      'rollout.max_draws must be above 1, or a filter set, with'
      ' rollout.fill_groups, got neither'
    )


def _check_admission(config: Config) -> None:
  """Checks that other fields allow `rollout.admission = 'slots'`."""
  rollout = config.rollout
  if rollout.admission == 'draws':
    return
  if rollout.max_draws == 1:
    raise ConfigError(
      "rollout.max_draws must be above 1 with rollout.admission = 'slots', got 1"
    )
  if rollout.pipeline:
    raise ConfigError(
      "rollout.pipeline must be 0 with rollout.admission = 'slots', got"
      f' {rollout.pipeline}; scores decide how many prompts are sampled'
    )
  if config.train.routing_replay:
    raise ConfigError(
      "rollout.admission must be 'draws' with train.routing_replay, got 'slots',"
      ' which does not record experts'
    )


def _check_carried(config: Config) -> None:
  """Checks that the fields of partial rollouts do not conflict."""
  rollout = config.rollout
  if not rollout.carried_groups:
    return
  if not rollout.pipeline:
    raise ConfigError(
      'rollout.pipeline must be 1 with rollout.carried_groups, got 0 and'
      f' {rollout.carried_groups}'
    )
  if rollout.carried_groups > rollout.prompts_per_iteration:
    raise ConfigError(
      'rollout.carried_groups must be at most rollout.prompts_per_iteration, got'
      f' {rollout.carried_groups} of {rollout.prompts_per_iteration}'
    )
  if rollout.max_draws > 1:
    raise ConfigError(
      'rollout.max_draws must be 1 with rollout.carried_groups, got'
      f' {rollout.max_draws}'
    )


def _check_prime(config: Config) -> None:
  """Checks that PRIME's advantages read process rewards, outcomes or both."""
  prime = config.prime
  if not prime.process_coefficient and not prime.outcome_coefficient:
    raise ConfigError(
      'prime.process_coefficient or prime.outcome_coefficient must be above 0,'
      ' got 0 and 0'
    )


def _check_critic(config: Config) -> None:
  """Checks that the fields of the critic do not conflict."""
  critic = config.critic
  if critic.kl_coefficient and not config.train.keep_reference:
    raise ConfigError(
      'train.keep_reference must be true with critic.kl_coefficient, got false'
      f' and {critic.kl_coefficient:g}'
    )
  if critic.kl_target and not critic.kl_coefficient:
    raise ConfigError(
      'critic.kl_coefficient must be above 0 with critic.kl_target, got 0 and'
      f' {critic.kl_target:g}'
    )
  if critic.length_decay and critic.trace_decay != 1:
    raise ConfigError(
      'critic.trace_decay must be 1 with critic.length_decay, which takes its '
      f'place, got {critic.trace_decay:g} and {critic.length_decay:g}'
    )
  if critic.warm_up > config.total_updates:
    raise ConfigError(
      f'critic.warm_up must be at most {config.total_updates}, the updates of the'
      f' run, got {critic.warm_up}'
    )
