# SPDX-License-Identifier: Apache-2.0
"""What a run begins with: its model, and parameters before the first update."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from covrl.config import Config, ConfigError, Recipe
from covrl.data import check_tokenizer
from covrl.models import Lora, ModelConfig, Policy
from covrl.pretrained import base_of, load_adapters, load_params, lora_of
from covrl.run.checkpoint import Checkpoint
from covrl.tasks.task import Task


def policy_of(recipe: Recipe, task: Task) -> Policy:
  """The policy that a recipe trains on a task.

  Raises:
    ConfigError: if its adapters are stated twice.
    ValueError: if the task's tokenizer is not the model's.
  """
  policy = described_policy(recipe, task.tokenizer.vocab_size)
  check_tokenizer(task.tokenizer, policy.config.vocab_size)
  return policy


def described_policy(recipe: Recipe, vocab_size: int) -> Policy:
  """The policy of a recipe, for so many tokens if it has none pretrained.

  Raises:
    ConfigError: if its adapters are stated twice.
  """
  model = recipe.module.make_model(recipe.config, vocab_size)
  model = dataclasses.replace(model, remat=recipe.config.train.remat)
  return Policy(with_adapters(model, recipe.config))


def with_adapters(model: ModelConfig, config: Config) -> ModelConfig:
  """A model with the adapters that the run trains, if it trains any.

  A pretrained model that stays is held as it is multiplied: what is narrow in
  its files gains nothing from wider parameters that do not move.

  Raises:
    ConfigError: if the pretrained model has adapters and others are asked for.
  """
  settings = config.lora
  found = lora_of(config.pretrained) if config.pretrained else None
  if found is not None and settings.rank > 0:
    raise ConfigError(
      f'lora.rank must be 0 where pretrained is an adapter, {config.pretrained}'
      f' having one of rank {found.rank}, got {settings.rank}'
    )
  lora = found
  if settings.rank > 0:
    targets = tuple(name.strip() for name in settings.targets.split(','))
    lora = Lora(rank=settings.rank, alpha=settings.alpha, targets=targets)
  stays = bool(lora and config.pretrained and not config.warm_start.steps)
  return dataclasses.replace(
    model, lora=lora, param_dtype=model.dtype if stays else model.param_dtype
  )


def base_params(
  config: Config,
  policy: Policy,
  mesh: Mesh,
  key: Key[Array, ''],
  finished: Checkpoint | None,
) -> PyTree:
  """Parameters of the policy without adapters.

  Args:
    config: says where they are from.
    policy: whose.
    mesh: where they shall live.
    key: draws them, if they are from nowhere.
    finished: a warm start that was made already.
  """
  base = policy.base
  if finished is not None:
    return finished.restore(base.abstract_params(mesh))
  if config.pretrained:
    return load_params(base_of(config.pretrained), base, mesh)
  return base.init(key, mesh)


def first_params(
  config: Config, policy: Policy, mesh: Mesh, key: Key[Array, ''], base: PyTree
) -> PyTree:
  """All parameters, adapters among them, where there are any.

  Args:
    config: says where adapters are from.
    policy: whose.
    mesh: where they shall live.
    key: draws them, if they are from nowhere.
    base: parameters of the policy without adapters.
  """
  if policy.config.lora is None:
    return base
  if config.pretrained and lora_of(config.pretrained) is not None:
    adapters = load_adapters(config.pretrained, policy, mesh)
  else:
    adapters = policy.init_adapters(key, mesh)
  return policy.join(adapters, {'base': base})
