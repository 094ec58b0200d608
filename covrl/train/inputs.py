# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of a run's inputs, by which a resumed run recognises them.

A checkpoint stores them. A run is not resumed on other problems, with another
tokenizer, or with adapters of another base model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from covrl.config import Config, ConfigError
from covrl.data.fingerprints import problems_fingerprint, text_fingerprint
from covrl.data.problems import source_fingerprint
from covrl.models import Policy
from covrl.pretrained.adapters import base_model_directory
from covrl.run.checkpoint import Checkpoint
from covrl.storage.fingerprints import directory_fingerprint
from covrl.tasks.task import Task

_WEIGHTS = ('.safetensors', '.gguf')


def input_fingerprints(
  config: Config,
  task: Task,
  policy: Policy,
  shared_warm_start: Checkpoint | None,
) -> dict[str, str]:
  """Returns the fingerprint of each input by its name; empty for unknown.

  Args:
    config: the run's configuration.
    task: the run's task.
    policy: the policy, with or without adapters.
    shared_warm_start: the warm start of another run, if it is used.
  """
  fingerprints = {'problems to train on': source_fingerprint(task.train)}
  if config.warm_start.steps and task.solved is not None:
    fingerprints['solved examples'] = source_fingerprint(task.solved)
  return (
    fingerprints
    | _evaluation_fingerprints(config, task)
    | _policy_fingerprints(config, task, policy, shared_warm_start)
  )


def check_opened(
  config: Config,
  task: Task,
  policy: Policy,
  shared_warm_start: Checkpoint | None,
  saved: Checkpoint,
  warn: Callable[[str], object],
) -> None:
  """Checks that a run that is opened has the policy that its checkpoint names.

  Args:
    config: the run's configuration.
    task: the run's task.
    policy: the policy, with or without adapters.
    shared_warm_start: the warm start of another run, if it is used.
    saved: the checkpoint.
    warn: receives a sentence if the problems to evaluate on have changed.

  Raises:
    ConfigError: the tokenizer, the base of the adapters or the shared warm start
      has changed since.
  """
  before = saved.notes.get('inputs', {})

  def changed(inputs: Mapping[str, str]) -> list[str]:
    return [
      name
      for name, fingerprint in inputs.items()
      if fingerprint and before.get(name, fingerprint) not in ('', fingerprint)
    ]

  if names := changed(
    _policy_fingerprints(config, task, policy, shared_warm_start)
  ):
    raise ConfigError(
      f'{", ".join(names)} must be the same as in training, and have changed since'
      ' the checkpoint was written'
    )
  if names := changed(_evaluation_fingerprints(config, task)):
    warn(
      f'{", ".join(names)} have changed since the checkpoint was written: results'
      ' on them are not those of the run'
    )


def _evaluation_fingerprints(config: Config, task: Task) -> dict[str, str]:
  """Returns the fingerprints of the problems to evaluate on, by their names."""
  return {
    f'problems of {suite.name}'
    if suite.name
    else 'held-out problems': problems_fingerprint(suite.problems)
    for suite in task.evaluation(config.evaluate)
  }


def _policy_fingerprints(
  config: Config,
  task: Task,
  policy: Policy,
  shared_warm_start: Checkpoint | None,
) -> dict[str, str]:
  """Returns the fingerprints of what a policy needs besides its checkpoint."""
  fingerprints = {'tokenizer': getattr(task.tokenizer, 'fingerprint', '')}
  if shared_warm_start is not None:
    fingerprints['shared warm start'] = text_fingerprint(
      json.dumps(shared_warm_start.files, sort_keys=True)
    )
  elif policy.config.lora is not None and config.pretrained:
    fingerprints['weights of the pretrained model'] = directory_fingerprint(
      base_model_directory(config.pretrained), _WEIGHTS
    )
  return fingerprints


def check_inputs(
  config: Config,
  inputs: Mapping[str, str],
  saved: Checkpoint | None,
  warn: Callable[[str], object],
) -> None:
  """Checks that a resumed run has the inputs that its checkpoint names.

  Args:
    config: the run's configuration.
    inputs: see `input_fingerprints`.
    saved: the checkpoint to resume from; `None` starts the run.
    warn: receives a sentence about inputs without a fingerprint.

  Raises:
    ConfigError: an input has changed, or has no fingerprint and
      `checkpoint.allow_unknown_data` is not set.
  """
  before = {} if saved is None else saved.notes.get('inputs', {})
  expected = {
    name: before.get(name, fingerprint) for name, fingerprint in inputs.items()
  }
  unknown = [
    n for n, fingerprint in inputs.items() if not (fingerprint and expected[n])
  ]
  changed = [
    name
    for name, fingerprint in inputs.items()
    if name not in unknown and fingerprint != expected[name]
  ]
  if changed:
    raise ConfigError(
      f'{", ".join(changed)} must be the same when a run is resumed, and have'
      ' changed since the checkpoint was written; restore them or use another'
      ' --workdir'
    )
  if not unknown:
    return
  text = f'{", ".join(unknown)}: no fingerprint'
  if saved is None:
    warn(
      f'{text}, so that the run can be resumed only with'
      ' checkpoint.allow_unknown_data; a source of problems has one if it has a'
      ' property `fingerprint`'
    )
  elif config.checkpoint.allow_unknown_data:
    warn(f'{text}, so that changes since the checkpoint remain unnoticed')
  else:
    raise ConfigError(
      f'{text}, so that changes since the checkpoint would remain unnoticed; add'
      ' --config.checkpoint.allow_unknown_data=true to resume nevertheless'
    )
