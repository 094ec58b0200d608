"""What recipes for pretrained policies of 7 or 8 billion parameters share.

Not a recipe of its own. The numbers are those of Cui et al., The Entropy
Mechanism of Reinforcement Learning for Reasoning Language Models,
arXiv:2505.22617, and of its scripts; the recipes beside it differ from one
another in the loss, the token chain and the model, and in nothing else.

Files are the user's own: questions to train on (`data.train`; by default
DAPO-Math-17k as published, which has every question about a hundred times) and
evaluation sets (`evaluate.suite_directory`). Nothing is downloaded but the
model, where there is a network; `--config.pretrained=DIRECTORY` names one.
"""

import dataclasses

import optax

import covrl
from covrl.config import Config
from covrl.models import ModelConfig
from covrl.pretrained import load_policy
from covrl.train import Task, text_task
from covrl.train.rollout_batch import Advantages


def get_config() -> Config:
  """256 prompts × 8 responses of up to 8,192 tokens, eight updates."""
  config = Config()
  config.data.train = 'data/dapo-math-17k.parquet'
  # Asked as the evaluation sets are, and not with the frame of the file.
  config.data.bare_questions = True
  config.rollout.prompts_per_iteration = 256
  config.rollout.responses_per_prompt = 8
  config.rollout.max_prompt_length = 2048
  config.rollout.max_response_length = 8192
  config.rollout.temperature = 1.0
  config.rollout.top_p = 1.0
  config.rollout.tensor = 4
  # Groups of equal reward are redrawn; then it trains on what there is.
  config.rollout.max_draws = 10
  config.train.iterations = 300
  config.train.sequences_per_update = 256
  config.train.micro_batches = 8
  config.train.remat = 'cheap'
  config.train.learning_rate = 5e-7
  config.train.max_gradient_norm = 1.0
  config.train.weights = 'token-mean'
  config.entropy.fraction = 2e-3
  config.entropy.coefficient = 1.0
  # Published is 'current', a forward pass more of every update.
  config.entropy.selection_source = 'old'
  config.warm_start.steps = 0
  config.evaluate.every = 20
  config.evaluate.suites = (
    'math500,aime24,aime25,amc,omni_math,olympiadbench,minerva'
  )
  config.checkpoint.every = 5
  config.rewards.workers = 8
  return config


def make_task(config: Config) -> Task:
  return text_task(config)


def make_model(config: Config, vocab_size: int) -> ModelConfig:
  del vocab_size  # the model's own
  model = load_policy(config.pretrained, 'bfloat16').config
  # At these learning rates bfloat16 parameters would not move.
  return dataclasses.replace(model, param_dtype='float32')


def make_advantages(config: Config) -> Advantages:
  del config
  return covrl.group_relative


def make_tx(config: Config) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(config.train.max_gradient_norm),
    optax.adamw(config.train.learning_rate, b2=0.999, weight_decay=0.0),
  )


def make_warm_start_tx(config: Config) -> optax.GradientTransformation:
  return optax.adamw(config.warm_start.learning_rate)
