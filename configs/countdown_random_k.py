"""KL-Cov's penalty on random tokens instead of those of high covariance.

  covrl train --config=configs/countdown_random_k.py --workdir=runs/countdown_random_k

Hardware: two CPU cores, about six minutes, warm start included.
Expect: a control; what the selection is worth shows here.
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
  beta = optax.linear_schedule(
    config.entropy.coefficient, 0.0, config.total_updates
  )
  return covrl.token_masked(
    covrl.add_divergence_penalty(beta),
    covrl.selectors.random_tokens(config.entropy.fraction),
  )
