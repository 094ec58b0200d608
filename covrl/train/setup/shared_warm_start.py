# SPDX-License-Identifier: Apache-2.0
"""The warm start of another run that a run begins with."""

from __future__ import annotations

from covrl.config import Config, ConfigError, flatten
from covrl.config.conversion import from_dict, version_difference
from covrl.data.problems import source_fingerprint
from covrl.models import Policy
from covrl.run.checkpoint import Checkpoint
from covrl.run.directory import RunDirectory
from covrl.tasks.task import Task
from covrl.train.setup.inputs import check_recipe, policy_fingerprints
from covrl.train.sft import is_warm_start_finished, warm_start_store

# Fields in which two runs must agree to share a warm start.
_SHARED_FIELDS = (
  'seed',
  'pretrained',
  'countdown.',
  'maze.',
  'arithmetic.',
  'data.template',
  'warm_start.',
  'rollout.max_prompt_length',
  'rollout.max_response_length',
)


def shared_warm_start(
  config: Config, task: Task, policy: Policy
) -> Checkpoint | None:
  """Returns the warm start of the run `warm_start.from_run`, if configured.

  Args:
    config: the run's configuration.
    task: the run's task.
    policy: the run's policy, with or without adapters.

  Raises:
    ConfigError: that run has no finished warm start, a different one or one of
      another model, format of prompts or other examples, or the task has no solved
      examples for a warm start of its own.
  """
  if not config.warm_start.from_run:
    if config.warm_start.steps and task.solved is None:
      raise ConfigError(
        'warm_start.steps must be 0 for a task without solved examples, got '
        f'{config.warm_start.steps}'
      )
    return None
  other = RunDirectory(config.warm_start.from_run)
  settings = other.read_config()
  other_config = settings['config']
  other_fields = flatten(from_dict(other_config))
  for name, value in flatten(config).items():
    if name == 'warm_start.from_run' or not name.startswith(_SHARED_FIELDS):
      continue
    if other_fields[name] != value:
      changes = version_difference(other_config)
      raise ConfigError(
        'warm_start.from_run must be a run with the same warm start, got'
        f' {other.path}, which '
        + (
          f'is of another version of covrl, {changes}'
          if changes
          else f'has {name}={other_fields[name]!r} and not {value!r}'
        )
      )
  saved = warm_start_store(other).latest()
  if saved is None or not is_warm_start_finished(saved, config):
    raise ConfigError(
      'warm_start.from_run must be a run with a finished warm start, got'
      f' {other.path}'
    )
  check_recipe(saved, settings['identity'])
  _check_same_inputs(saved, config, task, policy, other)
  return saved


def _check_same_inputs(
  saved: Checkpoint,
  config: Config,
  task: Task,
  policy: Policy,
  other: RunDirectory,
) -> None:
  """Checks that another run's warm start was of the same model, prompts and examples.

  Inputs without a fingerprint count as the same.
  """
  expected = policy_fingerprints(config, task, policy, None)
  if task.solved is not None:
    expected['solved examples'] = source_fingerprint(task.solved)
  inputs = saved.metadata.get('inputs', {})
  for name, fingerprint in expected.items():
    if fingerprint and inputs.get(name, fingerprint) not in ('', fingerprint):
      raise ConfigError(
        f'warm_start.from_run must be a run with the same {name}, got'
        f' {other.path}, which has another'
      )
