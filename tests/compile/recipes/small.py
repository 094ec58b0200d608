# SPDX-License-Identifier: Apache-2.0
"""KL-Cov on a model of two layers whose sizes suit a TPU's kernels."""

import dataclasses

from train import toy

from covrl.config import Config
from covrl.data import train_sentencepiece
from covrl.models import ModelConfig
from covrl.train import Task


def small():
  """Returns the recipe."""
  recipe = toy.recipe(task=_task, model=_model)
  config = recipe.config
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
  return recipe


def _task(config: Config) -> Task:
  """Returns the toy task with a vocabulary of 4,096 words."""
  # With four special tokens, 4,096 in all.
  words = train_sentencepiece(map(str, range(4092)))
  return dataclasses.replace(toy.make_task(config), tokenizer=words)


def _model(config: Config, vocab_size: int) -> ModelConfig:
  """Returns a model whose sizes are multiples of 128."""
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
