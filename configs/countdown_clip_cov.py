"""Clip-Cov: no gradient from a few random tokens of high covariance.

  covrl train --config=configs/countdown_clip_cov.py --workdir=runs/countdown_clip_cov

Hardware: two CPU cores, about six minutes, warm start included.
Expect: entropy falls a little later than GRPO's; as published PPO's range is [0, 2].
"""

import functools

import countdown
import optax

import covrl
from covrl.config import Config
from covrl.train import Loss

make_advantages = countdown.make_advantages
make_model = countdown.make_model
make_task = countdown.make_task
make_tx = countdown.make_tx
make_warm_start_tx = countdown.make_warm_start_tx


def get_config() -> Config:
  config = countdown.get_config()
  config.train.low = config.train.high = 1.0
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
