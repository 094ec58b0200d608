"""GRPO with a constant entropy bonus: the dense cure.

  covrl train --config=configs/countdown_entropy_bonus.py --workdir=runs/countdown_entropy_bonus

Hardware: two CPU cores, about six minutes, warm start included.
Expect: entropy stays above GRPO's and settles where bonus and reward balance.
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
  config.entropy.coefficient = 0.01
  return config


def make_loss(config: Config) -> Loss:
  return functools.partial(
    covrl.clipped_surrogate, low=config.train.low, high=config.train.high
  )


def make_token_tx(config: Config) -> optax.GradientTransformation:
  return covrl.entropy_bonus(coefficient=config.entropy.coefficient)
