"""KL-Cov on Qwen2.5-72B: a penalty on the tokens of highest covariance.

  covrl train --config=configs/qwen2_5_72b_kl_cov.py --workdir=runs/qwen2_5_72b_kl_cov --config.data.train=FILES --config.evaluate.suite_directory=DIRECTORY

Hardware: sized for 512 chips of TPU v5p (8x8x8); never run here.
Expect: no figures are published for this model.
Source: the method and the numbers of Cui et al., arXiv:2505.22617, for 32 billion
parameters; the sizes of the mesh are ours.
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
  config.pretrained = 'Qwen/Qwen2.5-72B'
  config.mesh.data = 1
  config.mesh.fsdp = 128
  config.mesh.tensor = 4
  config.rollout.tensor = 8
  config.train.remat = 'cheap'
  return config


def make_loss(config: Config) -> Loss:
  del config
  return functools.partial(covrl.policy_gradient, max_log_ratio=20.0)


def make_token_tx(config: Config) -> optax.GradientTransformation:
  return covrl.kl_cov(
    fraction=config.entropy.fraction,
    coefficient=config.entropy.coefficient,
    selection_source=config.entropy.selection_source,
  )
