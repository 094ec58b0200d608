"""Recipes for mazes: 0.2 million parameters, trained on a CPU.

A response writes a path through a maze of 5 × 5 cells, from start to goal in at
most eight steps: `a4 b4 b3 c3 d3`. The warm start imitates an explorer that sees
only the cells around it and often does not reach the goal in time; the policy
reads the whole maze in its prompt, and reinforcement learning teaches it to plan.
The recipes differ only in the loss and the token chain; losses and optimisers are
those of `countdown.py`.
"""

import dataclasses

from covrl.config import Config, Recipe
from covrl.models import ModelConfig
from covrl.recipes import countdown, countdown_steps
from covrl.tasks import maze_task


def grpo() -> Recipe:
  """GRPO: PPO's clip and no entropy control.

  Run: covrl train --config=mazes:grpo --workdir=runs/mazes_grpo
  Hardware: two CPU cores, three minutes.
  Expect: greedy accuracy rises from 17.4 to 53.1 %, mean@8 from 18.9 to 47.2 %
  and pass@8 from 70.8 to 71.7 %; entropy falls from 0.433 to 0.199 nats.
  """
  base = countdown.grpo()
  config = base.config
  config.evaluate.problems = 512
  config.evaluate.every = 40
  config.warm_start.steps, config.warm_start.batch_size = 1500, 64
  config.warm_start.learning_rate = 5e-3
  config.rollout.prompts_per_iteration = 32
  config.rollout.responses_per_prompt = 16
  config.rollout.max_prompt_length = 16
  config.rollout.max_response_length = 9
  config.entropy.fraction = 0.02
  config.train.learning_rate = 4e-4
  config.train.schedule_iterations = config.train.iterations = 160
  return dataclasses.replace(
    base, task=lambda config: maze_task(config.maze), model=_model
  )


def grpo_no_clip() -> Recipe:
  """GRPO without a clip: the base loss of KL-Cov alone.

  Run: covrl train --config=mazes:grpo_no_clip --workdir=runs/mazes_grpo_no_clip
  Hardware: two CPU cores, three minutes.
  Expect: a comparison that shows the effect of the missing clip alone.
  """
  return dataclasses.replace(grpo(), loss=countdown.grpo_no_clip().loss)


def kl_cov() -> Recipe:
  """KL-Cov: a constant penalty on the 2 % of tokens of highest covariance.

  Run: covrl train --config=mazes:kl_cov --workdir=runs/mazes_kl_cov
  Hardware: two CPU cores, three minutes.
  Expect: greedy accuracy rises from 17.4 to 52.5 %, mean@8 from 18.9 to 44.5 %
  and pass@8 from 70.8 to 75.5 %; entropy falls from 0.433 to 0.248 nats.
  """
  return dataclasses.replace(
    grpo_no_clip(), token_tx=countdown_steps.kl_cov().token_tx
  )


def entropy_bonus() -> Recipe:
  """GRPO with a constant entropy bonus on all tokens.

  Run: covrl train --config=mazes:entropy_bonus --workdir=runs/mazes_entropy_bonus
  Hardware: two CPU cores, three minutes.
  Expect: a comparison with `grpo`; not measured yet.
  """
  recipe = grpo()
  recipe.config.entropy.coefficient = 0.001
  return dataclasses.replace(
    recipe, token_tx=countdown.entropy_bonus().token_tx
  )


def _model(config: Config, vocab_size: int) -> ModelConfig:
  """Returns a model of 0.2 million parameters."""
  return ModelConfig(
    vocab_size=vocab_size,
    num_layers=4,
    model_dim=64,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    hidden_dim=168,
  )
