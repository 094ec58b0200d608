"""GRPO on Qwen2.5-32B: PPO's clip and no entropy control.

  covrl train --config=configs/qwen2_5_32b_grpo.py --workdir=runs/qwen2_5_32b_grpo --config.data.train=FILES --config.evaluate.suite_directory=DIRECTORY

Hardware: sized for 128 chips of TPU v5p (4x4x8); never run here.
Expect: entropy falls from 0.73 to 0.025 nats; AIME 2024 21.8, MATH500 84.2, the
seven sets 45.8 as printed (45.2 their plain mean).
Source: Cui et al., arXiv:2505.22617, table 2 and its scripts.
"""

import functools

import optax
import reasoning_32b

import covrl
from covrl.config import Config
from covrl.train import Loss

make_advantages = reasoning_32b.make_advantages
make_model = reasoning_32b.make_model
make_task = reasoning_32b.make_task
make_tx = reasoning_32b.make_tx
make_warm_start_tx = reasoning_32b.make_warm_start_tx


def get_config() -> Config:
  config = reasoning_32b.get_config()
  config.pretrained = 'Qwen/Qwen2.5-32B'
  return config


def make_loss(config: Config) -> Loss:
  return functools.partial(
    covrl.clipped_surrogate, low=config.train.low, high=config.train.high
  )


def make_token_tx(config: Config) -> optax.GradientTransformation:
  del config
  return optax.identity()
