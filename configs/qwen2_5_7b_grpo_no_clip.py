"""GRPO without a clip on Qwen2.5-7B: the base loss of KL-Cov, alone.

  covrl train --config=configs/qwen2_5_7b_grpo_no_clip.py --workdir=runs/qwen2_5_7b_grpo_no_clip --config.data.train=FILES --config.evaluate.suite_directory=DIRECTORY

Hardware: sized for 32 chips of TPU v5p (2x4x4); never run here.
Expect: a control that the paper does not have: what KL-Cov owes to the missing
clip shows here.
Source: none; the loss is that of KL-Cov in arXiv:2505.22617.
"""

import functools

import optax
import reasoning_7b

import covrl
from covrl.config import Config
from covrl.train import Loss

make_advantages = reasoning_7b.make_advantages
make_model = reasoning_7b.make_model
make_task = reasoning_7b.make_task
make_tx = reasoning_7b.make_tx
make_warm_start_tx = reasoning_7b.make_warm_start_tx


def get_config() -> Config:
  config = reasoning_7b.get_config()
  config.pretrained = 'Qwen/Qwen2.5-7B'
  return config


def make_loss(config: Config) -> Loss:
  del config
  return functools.partial(covrl.policy_gradient, max_log_ratio=20.0)


def make_token_tx(config: Config) -> optax.GradientTransformation:
  del config
  return optax.identity()
