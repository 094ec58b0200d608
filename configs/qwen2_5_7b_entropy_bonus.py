"""GRPO with a constant entropy bonus on Qwen2.5-7B: the dense cure.

  covrl train --config=configs/qwen2_5_7b_entropy_bonus.py --workdir=runs/qwen2_5_7b_entropy_bonus --config.data.train=FILES --config.evaluate.suite_directory=DIRECTORY

Hardware: sized for 32 chips of TPU v5p (2x4x4); never run here.
Expect: a control whose coefficient is a guess: too small it does nothing, too
large the entropy explodes.
Source: none of this coefficient.
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
  config.entropy.coefficient = 1e-3
  return config


def make_loss(config: Config) -> Loss:
  return functools.partial(
    covrl.clipped_surrogate, low=config.train.low, high=config.train.high
  )


def make_token_tx(config: Config) -> optax.GradientTransformation:
  return covrl.entropy_bonus(coefficient=config.entropy.coefficient)
