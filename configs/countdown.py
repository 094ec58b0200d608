"""What all Countdown recipes share: the task, the policy, the optimisers.

Not a recipe of its own. The recipes beside it differ from one another in the
loss and in the token chain, and in nothing else.
"""

import optax

import covrl
from covrl.config import Config
from covrl.models import ModelConfig
from covrl.models import countdown as countdown_model
from covrl.train import Task, countdown_task
from covrl.train.rollout_batch import Advantages


def get_config() -> Config:
  """64 prompts × 8 responses, four updates, about a million parameters."""
  config = Config()
  config.entropy.fraction = 0.05
  return config


def make_task(config: Config) -> Task:
  return countdown_task(config.task)


def make_model(config: Config, vocab_size: int) -> ModelConfig:
  del config
  return countdown_model(vocab_size)


def make_advantages(config: Config) -> Advantages:
  del config
  return covrl.group_relative


def make_tx(config: Config) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(config.train.max_gradient_norm),
    optax.adam(config.train.learning_rate, b2=0.95),
  )


def make_warm_start_tx(config: Config) -> optax.GradientTransformation:
  steps = max(config.warm_start.steps, 2)  # a schedule needs two
  rate = optax.warmup_cosine_decay_schedule(
    0.0, config.warm_start.learning_rate, min(100, steps // 10 + 1), steps
  )
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98))
