"""Qwen2.5-7B with KL-Cov on 64 chips of TPU v5p, to be compiled and not run.

Sizes are those of published runs: 256 prompts × 8 responses, prompts of up to
2,048 tokens and responses of up to 8,192, eight updates of 256 sequences.
"""

import functools

import optax
from train import toy

import covrl
from covrl.config import Config
from covrl.models import ModelConfig
from covrl.train import Loss

make_task = toy.make_task
make_advantages = toy.make_advantages
make_warm_start_tx = toy.make_warm_start_tx


def get_config() -> Config:
  config = Config()
  config.mesh.data = 4
  config.mesh.fsdp = 16
  config.rollout.prompts_per_iteration = 256
  config.rollout.responses_per_prompt = 8
  config.rollout.max_prompt_length = 2048
  config.rollout.max_response_length = 8192
  config.rollout.tensor = 4
  config.train.sequences_per_update = 256
  config.train.micro_batches = 4
  config.train.remat = 'cheap'
  config.train.learning_rate = 5e-7
  config.warm_start.steps = 0
  config.task.held_out = toy.HELD_OUT
  config.evaluate.problems = 32
  return config


def make_model(config: Config, vocab_size: int) -> ModelConfig:
  del config, vocab_size
  return ModelConfig(
    vocab_size=152064,
    num_layers=28,
    model_dim=3584,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    hidden_dim=18944,
    rope_theta=1e6,
    qkv_bias=True,
    tied_embeddings=False,
    dtype='bfloat16',
    param_dtype='float32',
  )


def make_loss(config: Config) -> Loss:
  del config
  return functools.partial(covrl.policy_gradient, max_log_ratio=20.0)


def make_token_tx(config: Config) -> optax.GradientTransformation:
  return covrl.kl_cov(
    fraction=config.entropy.fraction,
    coefficient=config.entropy.coefficient,
    selection_source=config.entropy.selection_source,
  )


def make_tx(config: Config) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(config.train.max_gradient_norm),
    optax.adamw(config.train.learning_rate, b2=0.999, weight_decay=0.0),
  )
