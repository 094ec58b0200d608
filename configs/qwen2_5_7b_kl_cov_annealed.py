"""KL-Cov on Qwen2.5-7B, its coefficient annealed to 0.

  covrl train --config=configs/qwen2_5_7b_kl_cov_annealed.py --workdir=runs/qwen2_5_7b_kl_cov_annealed --config.data.train=FILES --config.evaluate.suite_directory=DIRECTORY

Hardware: sized for 32 chips of TPU v5p (2x4x4); never run here.
Expect: at first as KL-Cov, at the end as without a clip: the bias that a penalty
leaves vanishes with it.
Source: none of the schedule; the rest as arXiv:2505.22617.
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
  beta = optax.linear_schedule(
    config.entropy.coefficient, 0.0, config.total_updates
  )
  return covrl.kl_cov(
    fraction=config.entropy.fraction,
    coefficient=beta,
    selection_source=config.entropy.selection_source,
  )
