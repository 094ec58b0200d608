"""Clip-Cov on Qwen2.5-7B: no gradient from a few tokens of high covariance.

  covrl train --config=configs/qwen2_5_7b_clip_cov.py --workdir=runs/qwen2_5_7b_clip_cov --config.data.train=FILES --config.evaluate.suite_directory=DIRECTORY

Hardware: sized for 32 chips of TPU v5p (2x4x4); never run here.
Expect: entropy ends at 0.07 nats; AIME 2024 22.1, MATH500 80.4, the seven sets
40.4 as printed (41.7 their plain mean).
Source: Cui et al., arXiv:2505.22617, table 2 and its scripts.
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
  # As published: PPO's range is [0, 2].
  config.train.low = config.train.high = 1.0
  config.entropy.fraction = 2e-4
  return config


def make_loss(config: Config) -> Loss:
  return functools.partial(
    covrl.clipped_surrogate, low=config.train.low, high=config.train.high
  )


def make_token_tx(config: Config) -> optax.GradientTransformation:
  return covrl.clip_cov(
    fraction=config.entropy.fraction,
    low=config.entropy.low,
    high=config.entropy.high,
    selection_source=config.entropy.selection_source,
  )
