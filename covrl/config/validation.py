# SPDX-License-Identifier: Apache-2.0
"""Which numbers contradict one another."""

from covrl.config.fields import Config, ConfigError
from covrl.config.flat import flatten


def check(config: Config) -> None:
  """Refuses a configuration that contradicts itself, in one sentence."""
  positive = (
    'rollout.prompts_per_iteration',
    'rollout.responses_per_prompt',
    'rollout.max_prompt_length',
    'rollout.max_response_length',
    'rollout.max_draws',
    'train.iterations',
    'train.sequences_per_update',
    'train.micro_batches',
    'warm_start.batch_size',
    'evaluate.every',
    'evaluate.problems',
    'evaluate.samples',
    'checkpoint.every',
    'checkpoint.keep',
    'rewards.workers',
    'logging.samples_every',
    'logging.warm_start_every',
  )
  flat = flatten(config)
  for name in positive:
    if flat[name] < 1:
      raise ConfigError(f'{name} must be at least 1, got {flat[name]}')
  for name in (
    'seed',
    'rollout.tensor',
    'train.packed_rows',
    'lora.rank',
    'warm_start.steps',
    'checkpoint.every_updates',
    'train.reset_reference_every',
    'logging.entropy_change_every',
    'data.overlap_words',
    'data.checked_programs',
    'evaluate.suite_problems',
  ):
    if flat[name] < 0:
      raise ConfigError(f'{name} must be at least 0, got {flat[name]}')
  _check_divides(
    config.sequences_per_iteration,
    config.train.sequences_per_update,
    'the sequences of an iteration (rollout.prompts_per_iteration × '
    'rollout.responses_per_prompt)',
    'train.sequences_per_update',
  )
  _check_divides(
    config.train.sequences_per_update,
    config.train.micro_batches,
    'train.sequences_per_update',
    'train.micro_batches',
  )
  _check_divides(
    config.train.packed_rows,
    config.train.micro_batches,
    'train.packed_rows',
    'train.micro_batches',
  )
  if config.train.packed_rows > config.train.sequences_per_update:
    raise ConfigError(
      'train.packed_rows must be at most train.sequences_per_update, got '
      f'{config.train.packed_rows} of {config.train.sequences_per_update}'
    )
  if config.train.balance < 0:
    raise ConfigError(
      f'train.balance must be at least 0, got {config.train.balance:g}'
    )
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
  if config.rollout.temperature <= 0:
    raise ConfigError(
      'rollout.temperature must be above 0 to learn from samples, got '
      f'{config.rollout.temperature:g}'
    )
  if not 0 < config.rollout.top_p <= 1:
    raise ConfigError(
      f'rollout.top_p must lie in (0, 1], got {config.rollout.top_p:g}'
    )
  if not 0 <= config.rewards.max_failures <= 1:
    raise ConfigError(
      'rewards.max_failures must lie in [0, 1], got '
      f'{config.rewards.max_failures:g}'
    )


def _check_divides(total: int, part: int, total_name: str, name: str) -> None:
  if total % part:
    raise ConfigError(
      f'{total_name} must be a multiple of {name}, got {total} and {part}'
    )
