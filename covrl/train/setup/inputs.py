# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of a run's inputs, stored in checkpoints and compared on resume.

A run is not resumed on other problems, with another tokenizer, another format of
prompts, or with adapters of another base model.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from covrl import storage
from covrl.config import Config, ConfigError, Recipe
from covrl.config.conversion import version_difference
from covrl.data.fingerprints import problems_fingerprint, text_fingerprint
from covrl.data.problems import source_fingerprint
from covrl.models import ModelConfig, Policy
from covrl.pretrained.adapters import base_model_directory
from covrl.pretrained.weights.orbax_cache import has_orbax
from covrl.run.checkpoint import (
  Checkpoint,
  CheckpointError,
  CheckpointStore,
)
from covrl.run.checkpoint_files import MANIFEST
from covrl.run.directory import RECIPE
from covrl.storage.fingerprints import directory_fingerprint
from covrl.tasks.task import Task
from covrl.train.sft import is_warm_start_finished

# Name of the policy's configuration among the inputs.
_MODEL = 'configuration of the model'
# Name of the format of prompts among the inputs, which earlier versions did not store.
_PROMPT_FORMAT = 'prompt format'
# Name of the texts of special tokens, which earlier versions did not store.
_SPECIAL_TEXTS = 'texts of special tokens'
# Endings of the names of files with a pretrained model's weights.
_WEIGHTS = ('.safetensors', '.gguf')
# Name of these weights among the inputs. Earlier versions stored samples of them as
# 'weights of the pretrained model'.
_PRETRAINED = 'pretrained weights'
# Name of a run's own warm start among the inputs.
_WARM_START = 'warm start'


def input_fingerprints(
  config: Config,
  task: Task,
  policy: Policy,
  shared_warm_start: Checkpoint | None,
  networks: Mapping[str, Policy],
) -> dict[str, str]:
  """Returns the fingerprint of each input by its name; empty if it has none.

  Args:
    config: the run's configuration.
    task: the run's task.
    policy: the policy, with or without adapters.
    shared_warm_start: the warm start of another run, if it is used.
    networks: models of the networks beside the policy by name.
  """
  fingerprints = {'problems to train on': source_fingerprint(task.train)}
  for name, network in networks.items():
    fingerprints[f'{_MODEL} of {name}'] = _model_fingerprint(network.config)
  if config.warm_start.steps and task.solved is not None:
    fingerprints['solved examples'] = source_fingerprint(task.solved)
  return (
    fingerprints
    | _evaluation_fingerprints(config, task)
    | policy_fingerprints(config, task, policy, shared_warm_start)
  )


def check_opened_run(
  config: Config,
  task: Task,
  policy: Policy,
  shared_warm_start: Checkpoint | None,
  saved: Checkpoint,
  warn: Callable[[str], object],
) -> None:
  """Checks that the inputs of an opened run's policy have not changed.

  A run is opened to evaluate, sample or convert its policy.

  Args:
    config: the run's configuration.
    task: the run's task.
    policy: the policy, with or without adapters.
    shared_warm_start: the warm start of another run, if it is used.
    saved: the checkpoint.
    warn: receives a sentence if the problems to evaluate on have changed.

  Raises:
    ConfigError: the tokenizer, the format of prompts, the base of the adapters or
      the shared warm start has changed since.
  """
  saved_inputs = saved.metadata.get('inputs', {})

  def changed(inputs: Mapping[str, str]) -> list[str]:
    return [
      name
      for name, fingerprint in inputs.items()
      if fingerprint
      and saved_inputs.get(name, fingerprint) not in ('', fingerprint)
    ]

  if names := changed(
    policy_fingerprints(config, task, policy, shared_warm_start)
  ):
    raise ConfigError(
      f'{", ".join(names)} must be the same as in training, got others than when'
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
    for suite in task.evaluation_suites(config.evaluate)
  }


def policy_fingerprints(
  config: Config,
  task: Task,
  policy: Policy,
  shared_warm_start: Checkpoint | None,
) -> dict[str, str]:
  """Returns the fingerprints of a policy's inputs besides its checkpoint.

  The format of prompts is one where the task has one: it depends on the chat template
  of the pretrained model, whose file may change.
  """
  tokenizer = task.tokenizer
  special = tokenizer.bos_id, tuple(tokenizer.end_ids), tokenizer.pad_id
  # Adapters that the run adds are not the model's.
  model = policy.base.config if config.lora.rank else policy.config
  fingerprints = {
    'tokenizer': getattr(tokenizer, 'fingerprint', ''),
    'special tokens': text_fingerprint(repr(special)),
    _MODEL: _model_fingerprint(model),
  }
  # Those of other files of a model change how a text is encoded, too.
  if (texts := getattr(tokenizer, 'special_tokens', None)) is not None:
    fingerprints[_SPECIAL_TEXTS] = text_fingerprint(repr(sorted(texts)))
  if task.prompt_format is not None:
    fingerprints[_PROMPT_FORMAT] = task.prompt_format.fingerprint
  if shared_warm_start is not None:
    fingerprints['shared warm start'] = _files_fingerprint(shared_warm_start)
  elif policy.config.lora is not None and config.pretrained:
    fingerprints |= pretrained_fingerprint(config)
  return fingerprints


def _model_fingerprint(model: ModelConfig) -> str:
  """Returns a fingerprint of a model's configuration, without rematerialisation."""
  return text_fingerprint(repr(dataclasses.replace(model, remat='nothing')))


def pretrained_fingerprint(config: Config) -> dict[str, str]:
  """Returns the fingerprint of the pretrained model's weights, by its name.

  Empty for a run without one. Weights in Orbax format have no fingerprint, those
  beside them are not read.
  """
  if not config.pretrained:
    return {}
  folder = base_model_directory(config.pretrained)
  if has_orbax(folder):
    return {_PRETRAINED: ''}
  return {_PRETRAINED: directory_fingerprint(folder, _WEIGHTS)}


def warm_start_fingerprint(
  config: Config, policy: Policy, warm_starts: CheckpointStore
) -> dict[str, str]:
  """Returns the fingerprint of a run's own warm start, by its name.

  Only checkpoints of adapters need it. The warm start must be finished.
  """
  if policy.config.lora is None or not config.warm_start.steps:
    return {}
  warm_start = warm_starts.latest()
  return (
    {} if warm_start is None else {_WARM_START: _files_fingerprint(warm_start)}
  )


def warm_start_of(
  saved: Checkpoint, config: Config, warm_starts: CheckpointStore
) -> Checkpoint | None:
  """Returns the run's own warm start, the base of the adapters of a checkpoint.

  Args:
    saved: the checkpoint, which has adapters only.
    config: the run's configuration.
    warm_starts: the store of the run's warm start.

  Returns:
    The finished warm start; `None` for a run without one.

  Raises:
    CheckpointError: it is absent or unfinished.
    ConfigError: it is not the one of training.
  """
  if not config.warm_start.steps:
    return None
  warm_start = warm_starts.latest()
  if warm_start is None or not is_warm_start_finished(warm_start, config):
    actual = (
      'none'
      if warm_start is None
      else f'{warm_start.path}, which is unfinished'
    )
    raise CheckpointError(
      f'warm_start/ of the run must have the base of the adapters in the checkpoint'
      f' {saved.path}, got {actual}'
    )
  fingerprint = _files_fingerprint(warm_start)
  if (
    saved.metadata.get('inputs', {}).get(_WARM_START, fingerprint)
    != fingerprint
  ):
    raise ConfigError(
      f'the warm start {warm_start.path} must be the one that the adapters of'
      f' {saved.path} were trained on, got another one'
    )
  return warm_start


def _files_fingerprint(saved: Checkpoint) -> str:
  """Returns a fingerprint of the files of a checkpoint."""
  return text_fingerprint(json.dumps(saved.files, sort_keys=True))


def check_recipe(saved: Checkpoint, identity: str) -> None:
  """Checks that a checkpoint is of a run's own recipe and seed.

  Args:
    saved: a checkpoint in the run's directory, perhaps copied from another run.
    identity: see `Recipe.identity`.

  Raises:
    ConfigError: it is another recipe's.
  """
  if saved.metadata.get('inputs', {}).get(RECIPE, identity) != identity:
    raise ConfigError(
      f'{saved.path} must be a checkpoint of the run in this directory, got one of'
      ' another recipe, configuration or seed'
    )


def check_inputs(
  config: Config,
  inputs: Mapping[str, str],
  saved: Checkpoint | None,
  warn: Callable[[str], object],
) -> None:
  """Checks that a resumed run has the inputs that its checkpoint records.

  Args:
    config: the run's configuration.
    inputs: see `input_fingerprints`.
    saved: the checkpoint to resume from; `None` starts the run.
    warn: receives a sentence about inputs without a fingerprint.

  Raises:
    ConfigError: an input has changed, or has no fingerprint and
      `checkpoint.allow_unknown_data` is not set.
  """
  saved_inputs = {} if saved is None else saved.metadata.get('inputs', {})
  expected = {
    name: saved_inputs.get(name, fingerprint)
    for name, fingerprint in inputs.items()
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
      f'{", ".join(changed)} must be the same when a run is resumed, got others'
      ' than when the checkpoint was written; restore them or use another'
      ' --workdir'
    )
  if not unknown:
    return
  names = ', '.join(unknown)
  text = f'{names}: no fingerprint'
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
      f'{names} must have a fingerprint when a run is resumed, got none: changes'
      ' since the checkpoint would remain unnoticed; add'
      ' --config.checkpoint.allow_unknown_data=true to resume nevertheless'
    )


def check_edits(
  saved: Checkpoint,
  recipe: Recipe,
  saved_config: Mapping[str, Any],
  warn: Callable[[str], object],
) -> None:
  """Warns if the recipe of an opened run is not that of its checkpoint.

  Args:
    saved: the checkpoint.
    recipe: the recipe, made of the files in the run directory.
    saved_config: the configuration in `config.json`; one of another version of
      covrl cannot be compared.
    warn: receives a sentence.
  """
  expected = saved.metadata.get('inputs', {}).get(RECIPE, recipe.identity)
  if recipe.identity != expected and not version_difference(saved_config):
    warn(
      f'config.json or recipe/ beside {saved.path.parent} has been edited since the'
      ' checkpoint was written: results are not those of the run'
    )


def warn_of_newer(saved: Checkpoint, warn: Callable[[str], object]) -> None:
  """Warns of a newer checkpoint that is incomplete, which is not opened."""
  for path in storage.entries(saved.path.parent):
    is_name = re.fullmatch('[0-9]{8,}', path.name)
    is_newer = is_name and int(path.name) > saved.position
    if is_newer and not storage.is_regular_file(path / MANIFEST):
      warn(
        f'{path} has no {MANIFEST}, as where it is being written or was copied in'
        f' part: the policy is that of {saved.path.name}'
      )
