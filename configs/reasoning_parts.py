"""Parts of the recipes in `reasoning.py`: published batch sizes, methods, models."""

import dataclasses
import functools
from typing import Any

import optax

import covrl
from covrl.config import Config, Recipe
from covrl.models import ModelConfig
from covrl.pretrained import load_policy
from covrl.tasks.text import text_task
from covrl.train.networks import prime_advantages, process_reward_model
from covrl.types import Scope


def recipe_7b(pretrained: str) -> Recipe:
  """GRPO with 256 prompts × 8 responses of up to 8,192 tokens, eight updates."""
  config = Config()
  config.pretrained = pretrained
  config.data.train = 'data/dapo-math-17k.parquet'
  # Questions have the form of the evaluation suites', without the instructions in
  # the file.
  config.data.bare_questions = True
  config.rollout.prompts_per_iteration = 256
  config.rollout.responses_per_prompt = 8
  config.rollout.max_prompt_length = 2048
  config.rollout.max_response_length = 8192
  config.rollout.temperature = 1.0
  config.rollout.top_p = 1.0
  config.rollout.tensor = 4
  # Groups of equal reward are redrawn at most ten times.
  config.rollout.max_draws = 10
  config.train.schedule_iterations = config.train.iterations = 300
  config.train.sequences_per_update = 256
  config.train.micro_batches = 8
  config.train.remat = 'cheap'
  config.train.learning_rate = 5e-7
  config.train.max_gradient_norm = 1.0
  config.train.weights = 'token-mean'
  config.entropy.fraction = 2e-3
  config.entropy.coefficient = 1.0
  config.entropy.selection_source = 'old'
  config.warm_start.steps = 0
  config.evaluate.every = 20
  config.evaluate.suites = (
    'math500,aime24,aime25,amc,omni_math,olympiadbench,minerva'
  )
  config.checkpoint.every = 5
  config.rewards.workers = 8
  return Recipe(
    config=config,
    task=text_task,
    model=_model,
    advantages=lambda config: covrl.group_relative,
    loss=lambda config: functools.partial(
      covrl.clipped_surrogate,
      low=config.train.clip_low,
      high=config.train.clip_high,
    ),
    token_tx=lambda config: optax.identity(),
    tx=lambda config: optax.chain(
      optax.clip_by_global_norm(config.train.max_gradient_norm),
      optax.adamw(config.train.learning_rate, b2=0.999, weight_decay=0.0),
    ),
    warm_start_tx=lambda config: optax.adamw(config.warm_start.learning_rate),
  )


def recipe_32b(pretrained: str) -> Recipe:
  """`recipe_7b` with a tenth of the fraction of tokens and twice the learning rate."""
  recipe = recipe_7b(pretrained)
  config = recipe.config
  # 64 shards of a width of 5,120, on 128 chips: a shard must have a multiple of 16
  # rows for XLA to sum gradients by reduce-scatter on TPUs.
  config.mesh.data = 2
  config.train.schedule_iterations = config.train.iterations = 140
  config.train.micro_batches = 2
  config.train.remat = 'gate'
  config.train.learning_rate = 1e-6
  config.entropy.fraction = 2e-4
  return recipe


def _model(config: Config, vocab_size: int) -> ModelConfig:
  """Returns the config of the pretrained model, with float32 parameters."""
  del vocab_size  # the pretrained model has its own
  model = load_policy(config.pretrained, 'bfloat16').config
  # At these learning rates bfloat16 parameters would not change.
  return dataclasses.replace(model, param_dtype='float32')


def unclipped(config: Config) -> Any:
  """The loss of KL-Cov: no clip, and log ratios bounded at ±20."""
  del config
  return functools.partial(covrl.policy_gradient, max_log_ratio=20.0)


def _kl_cov(config: Config, **options: Any) -> optax.GradientTransformation:
  """Returns KL-Cov with the numbers of a configuration."""
  return covrl.kl_cov(
    fraction=config.entropy.fraction,
    coefficient=config.entropy.coefficient,
    selection_source=config.entropy.selection_source,
    **options,
  )


def _clip_cov(config: Config, **options: Any) -> optax.GradientTransformation:
  """Returns Clip-Cov with the numbers of a configuration."""
  return covrl.clip_cov(
    fraction=config.entropy.fraction,
    low=config.entropy.covariance_low,
    high=config.entropy.covariance_high,
    selection_source=config.entropy.selection_source,
    **options,
  )


def with_kl_cov(recipe: Recipe) -> Recipe:
  """Adds KL-Cov, with its published loss, which has no clip."""
  return dataclasses.replace(recipe, loss=unclipped, token_tx=_kl_cov)


def with_clip_cov(recipe: Recipe) -> Recipe:
  """Adds Clip-Cov, with PPO's clip range of [0, 2]."""
  config = recipe.config
  config.train.clip_low = config.train.clip_high = 1.0
  config.entropy.fraction = 2e-4
  return dataclasses.replace(recipe, token_tx=_clip_cov)


def with_prime(recipe: Recipe) -> Recipe:
  """Adds PRIME's reward model, advantages, batch sizes and filters."""
  config = recipe.config
  # The numbers of `prime` are defaults.
  config.train.keep_reference = True
  config.rollout.responses_per_prompt = 4
  config.rollout.max_prompt_length = 1024
  config.rollout.max_response_length = 3072
  config.rollout.max_draws = 4
  config.rollout.min_accuracy = 0.2
  config.rollout.max_accuracy = 0.8
  config.rollout.drop_truncated_groups = True
  config.rollout.fill_groups = True
  config.train.sequences_per_update = config.sequences_per_iteration
  config.train.micro_batches = 16
  return dataclasses.replace(
    recipe,
    networks=lambda config: {'prm': process_reward_model(config)},
    estimator=prime_advantages,
  )


def with_model(recipe: Recipe, pretrained: str) -> Recipe:
  """Replaces the pretrained model."""
  recipe.config.pretrained = pretrained
  return recipe


def published_kl_cov(scope: Scope) -> dict[str, Any]:
  """KL-Cov's loss and token chain without covrl's bound on ratios and dead zone."""
  return {
    'loss': lambda config: covrl.policy_gradient,
    'token_tx': functools.partial(
      _kl_cov, scope=scope, minimum=1, dead_zone=0.0
    ),
  }


def published_clip_cov(scope: Scope) -> dict[str, Any]:
  """Clip-Cov's loss and token chain without covrl's bound on ratios."""
  return {
    'loss': lambda config: functools.partial(
      covrl.clipped_surrogate,
      low=config.train.clip_low,
      high=config.train.clip_high,
      max_log_ratio=None,
    ),
    'token_tx': functools.partial(_clip_cov, scope=scope, minimum=1),
  }


def as_published(recipe: Recipe, functions: dict[str, Any]) -> Recipe:
  """Selects by current statistics, with a method's published functions."""
  recipe = dataclasses.replace(recipe, **functions)
  recipe.config.entropy.selection_source = 'current'
  return recipe
