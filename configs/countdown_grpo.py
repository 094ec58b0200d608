"""GRPO: PPO's clip and no entropy control.

  covrl train --config=configs/countdown_grpo.py --workdir=runs/countdown_grpo

Hardware: two CPU cores, about six minutes, warm start included.
Expect: entropy falls from the first iteration on; the baseline of the others.
"""

import functools

import countdown
import optax

import covrl
from covrl.config import Config
from covrl.train import Loss

get_config = countdown.get_config
make_advantages = countdown.make_advantages
make_model = countdown.make_model
make_task = countdown.make_task
make_tx = countdown.make_tx
make_warm_start_tx = countdown.make_warm_start_tx


def make_loss(config: Config) -> Loss:
  return functools.partial(
    covrl.clipped_surrogate, low=config.train.low, high=config.train.high
  )


def make_token_tx(config: Config) -> optax.GradientTransformation:
  del config
  return optax.identity()
