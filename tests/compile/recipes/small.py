# SPDX-License-Identifier: Apache-2.0
"""KL-Cov on a model of two layers that a chip's kernels take."""

import dataclasses

from train import toy

from covrl.config import Config
from covrl.data import train_sentencepiece
from covrl.models import ModelConfig
from covrl.train import Task

make_advantages = toy.make_advantages
make_loss = toy.make_loss
make_token_tx = toy.make_token_tx
make_tx = toy.make_tx
make_warm_start_tx = toy.make_warm_start_tx


def get_config() -> Config:
  config = toy.get_config()
  config.mesh.data = 2
  config.mesh.fsdp = 2
  config.mesh.tensor = 2
  config.rollout.prompts_per_iteration = 8
  config.rollout.responses_per_prompt = 2
  config.rollout.max_prompt_length = 128
  config.rollout.max_response_length = 384
  config.train.sequences_per_update = 16
  config.train.micro_batches = 2
  config.train.remat = 'cheap'
  return config


def make_task(config: Config) -> Task:
  words = train_sentencepiece(map(str, range(4092)))  # and four special ones
  return dataclasses.replace(toy.make_task(config), tokenizer=words)


def make_model(config: Config, vocab_size: int) -> ModelConfig:
  del config
  return ModelConfig(
    vocab_size=vocab_size,
    num_layers=2,
    model_dim=512,
    num_heads=4,
    num_kv_heads=1,
    head_dim=128,
    hidden_dim=1024,
    tied_embeddings=False,
    dtype='bfloat16',
    param_dtype='float32',
  )
