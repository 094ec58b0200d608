# SPDX-License-Identifier: Apache-2.0
"""The policy of a run and its parameters before any update."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from covrl.config import Config, ConfigError, Recipe
from covrl.data import Tokenizer, check_tokenizer
from covrl.models import Lora, ModelConfig, Policy
from covrl.pretrained import (
  base_model_directory,
  load_adapters,
  load_params,
  lora_config,
  max_positions,
)
from covrl.run.checkpoint import Checkpoint


def make_policy(recipe: Recipe, tokenizer: Tokenizer) -> Policy:
  """Returns a recipe's policy for a task's tokenizer.

  Raises:
    ConfigError: adapters are configured twice, prompts and responses are longer
      than the pretrained model allows, or experts are to be replayed and the
      model has none.
    ValueError: the tokenizer does not belong to the model.
  """
  policy = make_policy_of_size(recipe, tokenizer.vocab_size)
  check_tokenizer(tokenizer, policy.config.vocab_size)
  return policy


def make_policy_of_size(recipe: Recipe, vocab_size: int) -> Policy:
  """Returns a recipe's policy without a tokenizer.

  Args:
    recipe: the recipe.
    vocab_size: number of tokens, for models that are not pretrained.

  Raises:
    ConfigError: adapters are configured twice, prompts and responses are longer
      than the pretrained model allows, or experts are to be replayed and the
      model has none.
  """
  model = recipe.model(recipe.config, vocab_size)
  if not isinstance(model, ModelConfig):
    raise ConfigError(
      f"the recipe's model must return a ModelConfig, got {type(model).__name__}"
    )
  for dtype in (model.dtype, model.param_dtype):
    if dtype == 'float64':
      raise ConfigError(
        "the recipe's model must have floats of at most 32 bits, got float64"
      )
  if recipe.config.pretrained:
    check_lengths(recipe.config, recipe.config.pretrained)
  if recipe.config.train.routing_replay and model.experts is None:
    raise ConfigError(
      'the model must have experts with train.routing_replay, got one without'
    )
  model = dataclasses.replace(model, remat=recipe.config.train.remat)
  return Policy(with_adapters(model, recipe.config))


def check_lengths(config: Config, pretrained: str) -> None:
  """Checks that sequences fit into the positions of a pretrained model.

  Args:
    config: the run's configuration.
    pretrained: the model, of the policy or of a network beside it.

  Raises:
    ConfigError: they do not.
  """
  positions = max_positions(pretrained)
  prompt = config.rollout.max_prompt_length
  response = config.rollout.max_response_length
  if positions is not None and prompt + response > positions:
    raise ConfigError(
      'rollout.max_prompt_length + rollout.max_response_length must be at most'
      f' {positions}, the positions of {pretrained}'
      f' (max_position_embeddings), got {prompt} + {response}'
    )


def with_adapters(model: ModelConfig, config: Config) -> ModelConfig:
  """Adds the LoRA adapters that the run trains, if any.

  A frozen pretrained model stores its parameters in the dtype it computes in:
  wider parameters would gain nothing, as they do not change.

  Raises:
    ConfigError: the pretrained model has adapters, and others or a warm start,
      which would change the model under them, are configured.
  """
  settings = config.lora
  pretrained_lora = (
    lora_config(config.pretrained) if config.pretrained else None
  )
  if pretrained_lora is not None and settings.rank > 0:
    raise ConfigError(
      f'lora.rank must be 0 where pretrained is an adapter, {config.pretrained}'
      f' having one of rank {pretrained_lora.rank}, got {settings.rank}'
    )
  if pretrained_lora is not None and config.warm_start.steps:
    raise ConfigError(
      'warm_start.steps must be 0 where pretrained is an adapter, whose base model'
      f' the warm start would change, got {config.warm_start.steps}; merge'
      f' {config.pretrained} into a model first, with covrl convert'
    )
  lora = pretrained_lora
  if settings.rank > 0:
    targets = tuple(name.strip() for name in settings.targets.split(','))
    lora = Lora(rank=settings.rank, alpha=settings.alpha, targets=targets)
  frozen = bool(lora and config.pretrained and not config.warm_start.steps)
  return dataclasses.replace(
    model, lora=lora, param_dtype=model.dtype if frozen else model.param_dtype
  )


def initial_base_params(
  config: Config,
  policy: Policy,
  mesh: Mesh,
  key: Key[Array, ''],
  warm_start: Checkpoint | None,
) -> PyTree:
  """Returns the parameters of the policy without adapters.

  Args:
    config: names the pretrained model, if any.
    policy: the policy, with or without adapters.
    mesh: the mesh to shard the parameters over.
    key: PRNG key of random parameters.
    warm_start: a finished warm start, whose parameters take precedence.
  """
  base = policy.base
  if warm_start is not None:
    return warm_start.restore(base.abstract_params(mesh))
  if config.pretrained:
    return load_params(base_model_directory(config.pretrained), base, mesh)
  return base.init(key, mesh)


def add_adapter_params(
  config: Config, policy: Policy, mesh: Mesh, key: Key[Array, ''], base: PyTree
) -> PyTree:
  """Adds the parameters of adapters, if the policy has any.

  Args:
    config: names the pretrained adapter, if any.
    policy: the policy, with or without adapters.
    mesh: the mesh to shard the parameters over.
    key: PRNG key of random adapters.
    base: parameters of the policy without adapters.
  """
  if policy.config.lora is None:
    return base
  if config.pretrained and lora_config(config.pretrained) is not None:
    adapters = load_adapters(config.pretrained, policy, mesh)
  else:
    adapters = policy.init_adapters(key, mesh)
  return policy.join(adapters, {'base': base})
