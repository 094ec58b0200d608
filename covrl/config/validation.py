# SPDX-License-Identifier: Apache-2.0
"""Checks of a configuration."""

from covrl.config.divisors import check_divides
from covrl.config.errors import ConfigError
from covrl.config.fields import Config
from covrl.config.flat import flatten
from covrl.config.schema import fields_by_name


def check(config: Config) -> None:
  """Checks every field's type and bounds, and that fields do not conflict.

  Raises:
    ConfigError: a value is invalid, in one sentence.
  """
  values = flatten(config)
  for name, field in fields_by_name().items():
    field.check(values[name])
  config.task.check()
  _check_batches(config)
  if config.train.reset_reference_every and not config.train.keep_reference:
    raise ConfigError(
      'train.reset_reference_every needs train.keep_reference, got '
      f'{config.train.reset_reference_every} without it'
    )
  if config.evaluate.problems > config.task.held_out:
    raise ConfigError(
      'evaluate.problems must be at most task.held_out, got '
      f'{config.evaluate.problems} of {config.task.held_out}'
    )
  if config.data.min_pass_rate > config.data.max_pass_rate:
    raise ConfigError(
      'data.min_pass_rate must be at most data.max_pass_rate, got '
      f'{config.data.min_pass_rate:g} and {config.data.max_pass_rate:g}'
    )


def _check_batches(config: Config) -> None:
  """Checks that an iteration divides into updates and micro-batches."""
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
  if train.packed_rows > train.sequences_per_update:
    raise ConfigError(
      'train.packed_rows must be at most train.sequences_per_update, got '
      f'{train.packed_rows} of {train.sequences_per_update}'
    )
