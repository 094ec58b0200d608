"""GRPO whose entropy follows a schedule, by a bonus that a controller sets.

  covrl train --config=configs/countdown_target_entropy.py --workdir=runs/countdown_target_entropy

The controller learns online how much the bonus moves the entropy. Hardware: two CPU cores, about six minutes, warm start
included.
Expect: entropy falls along a straight line from `entropy.initial_target` to
`entropy.target`, where plain GRPO collapses within ten iterations.
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
  config.entropy.initial_target = 0.40
  config.entropy.target = 0.30
  return config


def make_loss(config: Config) -> Loss:
  return functools.partial(
    covrl.clipped_surrogate, low=config.train.low, high=config.train.high
  )


def make_token_tx(config: Config) -> optax.GradientTransformation:
  target = optax.linear_schedule(
    config.entropy.initial_target, config.entropy.target, config.total_updates
  )
  return covrl.entropy_bonus(covrl.target_entropy(target))
