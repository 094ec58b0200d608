"""Recipes for Countdown with written steps: 0.4 million parameters, on a CPU.

A response joins four or five numbers step by step and writes each result:
`7 + 3 = 10 , 10 * 4 = 40 , 40 + 2 = 42`. Its reward is 1 if every step is right
and the last one reaches the target. The recipes differ only in the loss and the
token chain; losses and optimisers are those of `countdown.py`.
"""

import dataclasses

import covrl
from covrl.config import Config, Recipe
from covrl.models import ModelConfig
from covrl.recipes import countdown
from covrl.tasks import countdown_steps_task


def grpo() -> Recipe:
  """GRPO: PPO's clip and no entropy control.

  Run: covrl train --config=countdown_steps:grpo --workdir=runs/steps_grpo
  Hardware: two CPU cores, six minutes.
  Expect: within 100 iterations greedy accuracy rises from 23.0 to 28.5 %, mean@8
  from 11.8 to 24.9 % and pass@8 from 55.1 to 57.0 %; entropy falls from 0.337 to
  0.140 nats (seed 0, 256 problems).
  """
  base = countdown.grpo()
  config = base.config
  config.countdown.min_numbers, config.countdown.max_numbers = 4, 5
  config.countdown.max_value, config.countdown.max_target = 15, 40
  config.evaluate.problems = 512
  config.warm_start.steps, config.warm_start.batch_size = 1500, 32
  config.rollout.prompts_per_iteration = 32
  config.rollout.responses_per_prompt = 16
  config.rollout.max_prompt_length = 9
  config.rollout.max_response_length = 24
  config.entropy.fraction = 0.02
  config.train.learning_rate = 2e-4
  config.train.schedule_iterations = config.train.iterations = 100
  config.evaluate.every = 50
  return dataclasses.replace(
    base,
    task=lambda config: countdown_steps_task(config.countdown),
    model=_model,
  )


def grpo_no_clip() -> Recipe:
  """GRPO without a clip: the base loss of KL-Cov alone.

  Run: covrl train --config=countdown_steps:grpo_no_clip --workdir=runs/steps_grpo_no_clip
  Hardware: two CPU cores, six minutes.
  Expect: a comparison that shows the effect of the missing clip alone.
  """
  return dataclasses.replace(grpo(), loss=countdown.grpo_no_clip().loss)


def kl_cov() -> Recipe:
  """KL-Cov: a constant penalty on the 2 % of tokens of highest covariance.

  Run: covrl train --config=countdown_steps:kl_cov --workdir=runs/steps_kl_cov
  Hardware: two CPU cores, six minutes.
  Expect: within 100 iterations greedy accuracy rises from 23.0 to 31.6 %, mean@8
  from 11.8 to 21.0 % and pass@8 from 55.1 to 59.4 %; entropy falls from 0.337 to
  0.216 nats (seed 0, 256 problems).
  """
  return dataclasses.replace(
    grpo_no_clip(),
    token_tx=lambda config: covrl.kl_cov(
      fraction=config.entropy.fraction,
      coefficient=config.entropy.coefficient,
      selection_source=config.entropy.selection_source,
    ),
  )


def entropy_bonus() -> Recipe:
  """GRPO with a constant entropy bonus on all tokens.

  Run: covrl train --config=countdown_steps:entropy_bonus --workdir=runs/steps_entropy_bonus
  Hardware: two CPU cores, six minutes.
  Expect: a comparison with `grpo`; not measured yet.
  """
  recipe = grpo()
  recipe.config.entropy.coefficient = 0.001
  return dataclasses.replace(
    recipe, token_tx=countdown.entropy_bonus().token_tx
  )


def _model(config: Config, vocab_size: int) -> ModelConfig:
  """Returns a model of 0.4 million parameters."""
  return ModelConfig(
    vocab_size=vocab_size,
    num_layers=4,
    model_dim=96,
    num_heads=3,
    num_kv_heads=1,
    head_dim=32,
    hidden_dim=256,
  )
