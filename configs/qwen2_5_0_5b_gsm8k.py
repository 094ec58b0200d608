"""KL-Cov on Qwen2.5-0.5B and GSM8K: the smallest run of a pretrained policy.

  covrl train --config=configs/qwen2_5_0_5b_gsm8k.py --workdir=runs/qwen2_5_0_5b_gsm8k --config.data.train=FILES --config.evaluate.suite_directory=DIRECTORY

Hardware: sized for 8 chips of TPU v5e; never run here.
Expect: reward rises from the first iterations on; no figures are published for
this setting.
Source: the method of arXiv:2505.22617; the sizes are ours.
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
  config.pretrained = 'Qwen/Qwen2.5-0.5B-Instruct'
  config.data.train = 'data/gsm8k-train.jsonl'
  config.rollout.prompts_per_iteration = 64
  config.rollout.max_prompt_length = 512
  config.rollout.max_response_length = 1024
  config.rollout.max_draws = 4
  config.rollout.tensor = 1
  config.train.iterations = 100
  config.train.sequences_per_update = 128
  config.train.micro_batches = 2
  config.train.learning_rate = 1e-6
  config.evaluate.suites = 'gsm8k'
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
