"""GRPO without a clip: the base loss of KL-Cov, alone.

  covrl train --config=configs/countdown_grpo_no_clip.py --workdir=runs/countdown_grpo_no_clip

Hardware: two CPU cores, about six minutes, warm start included.
Expect: a control; what KL-Cov owes to the missing clip shows here.
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
  del config
  return functools.partial(covrl.policy_gradient, max_log_ratio=20.0)


def make_token_tx(config: Config) -> optax.GradientTransformation:
  del config
  return optax.identity()
