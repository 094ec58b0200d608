"""KL-Cov on DeepSeekMath 7B: a penalty on the tokens of highest covariance.

  covrl train --config=configs/deepseek_math_7b_kl_cov.py --workdir=runs/deepseek_math_7b_kl_cov --config.data.train=FILES --config.evaluate.suite_directory=DIRECTORY

Hardware: sized for 32 chips of TPU v5p (2x4x4); never run here.
Expect: entropy held above GRPO's; no figures are published for KL-Cov on this
model.
Source: the settings of arXiv:2505.22617 for 7B, which has this family in its
fits of reward against entropy.
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
  config.pretrained = 'deepseek-ai/deepseek-math-7b-instruct'
  # The prompts of the settings, in fewer positions than Qwen2.5 has.
  config.rollout.max_response_length = 2048
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
