"""Recipes for Countdown: a million parameters, trained on a CPU.

A response combines three or four numbers to reach a target. The recipes differ
only in the loss and the token chain. Each takes about seven minutes on two CPU
cores, four of them for the warm start. `Expect` gives means over three seeds at
the end of training; the curves are in `configs/results`.
"""

import dataclasses
import functools

import optax

import covrl
from covrl.config import Config, Recipe
from covrl.models import countdown as countdown_model
from covrl.tasks.task import countdown_task
from covrl.train.networks import (
  critic,
  critic_advantages,
  prime_advantages,
  process_reward_model,
)


def grpo() -> Recipe:
  """GRPO: PPO's clip and no entropy control.

  Run: covrl train --config=countdown:grpo --workdir=runs/grpo
  Hardware: two CPU cores, seven minutes.
  Expect: entropy falls from 0.403 to 0.167 nats, from the first iteration on,
  and pass@8 from 72.7 to 58.0 %. The baseline of the others.
  """
  config = Config()
  # Problems small enough for a policy of a million parameters.
  config.countdown.max_value = 12
  config.countdown.max_target = 60
  config.entropy.fraction = 0.05
  # All schedules of the variants end with the run.
  config.train.schedule_iterations = config.train.iterations = 30
  return Recipe(
    config=config,
    task=lambda config: countdown_task(config.countdown),
    model=lambda config, vocab_size: countdown_model(vocab_size),
    advantages=lambda config: covrl.group_relative,
    loss=lambda config: functools.partial(
      covrl.clipped_surrogate,
      low=config.train.clip_low,
      high=config.train.clip_high,
    ),
    token_tx=lambda config: optax.identity(),
    tx=_tx,
    warm_start_tx=_warm_start_tx,
  )


def grpo_no_clip() -> Recipe:
  """GRPO without a clip: the base loss of KL-Cov alone.

  Run: covrl train --config=countdown:grpo_no_clip --workdir=runs/grpo_no_clip
  Hardware: two CPU cores, seven minutes.
  Expect: a comparison that shows the effect of the missing clip alone.
  """
  return dataclasses.replace(
    grpo(),
    loss=lambda config: functools.partial(
      covrl.policy_gradient, max_log_ratio=20.0
    ),
  )


def kl_cov() -> Recipe:
  """KL-Cov, annealed: a penalty on the tokens of highest covariance.

  Run: covrl train --config=countdown:kl_cov --workdir=runs/kl_cov
  Hardware: two CPU cores, seven minutes.
  Expect: entropy 0.05 nats above GRPO's at half of the run, and 0.175 nats at the
  end, where the coefficient is 0; pass@8 57.5 %, as GRPO's, and three points
  above `kl_cov_beta0`.
  """
  return dataclasses.replace(
    grpo_no_clip(),
    token_tx=lambda config: covrl.kl_cov(
      fraction=config.entropy.fraction,
      coefficient=_annealed(config),
      selection_source=config.entropy.selection_source,
    ),
  )


def kl_cov_beta0() -> Recipe:
  """KL-Cov with coefficient 0: selects tokens and leaves them unchanged.

  Run: covrl train --config=countdown:kl_cov_beta0 --workdir=runs/kl_cov_beta0
  Hardware: two CPU cores, seven minutes.
  Expect: the same as `grpo_no_clip`, bit for bit.
  """
  recipe = kl_cov()
  recipe.config.entropy.coefficient = 0.0
  return recipe


def clip_cov() -> Recipe:
  """Clip-Cov: no gradient from a few random tokens of high covariance.

  Run: covrl train --config=countdown:clip_cov --workdir=runs/clip_cov
  Hardware: two CPU cores, seven minutes.
  Expect: entropy 0.266 nats, the highest, and mean@8 31.3 %, the lowest. PPO's
  range is [0, 2], as published.
  """
  recipe = grpo()
  recipe.config.train.clip_low = recipe.config.train.clip_high = 1.0
  return dataclasses.replace(
    recipe,
    token_tx=lambda config: covrl.clip_cov(
      fraction=config.entropy.fraction,
      low=config.entropy.covariance_low,
      high=config.entropy.covariance_high,
      selection_source=config.entropy.selection_source,
    ),
  )


def entropy_bonus() -> Recipe:
  """GRPO with a constant entropy bonus on all tokens.

  Run: covrl train --config=countdown:entropy_bonus --workdir=runs/entropy_bonus
  Hardware: two CPU cores, seven minutes.
  Expect: entropy 0.180 nats, a little above GRPO's; accuracies as GRPO's.
  """
  recipe = grpo()
  recipe.config.entropy.coefficient = 0.01
  return dataclasses.replace(
    recipe,
    token_tx=lambda config: covrl.entropy_bonus(config.entropy.coefficient),
  )


def random_k() -> Recipe:
  """KL-Cov's penalty on random tokens instead of those of high covariance.

  Run: covrl train --config=countdown:random_k --workdir=runs/random_k
  Hardware: two CPU cores, seven minutes.
  Expect: entropy 0.177 nats; a comparison that shows the effect of the selection
  by covariance.
  """
  return dataclasses.replace(
    grpo_no_clip(),
    token_tx=lambda config: covrl.token_masked(
      covrl.add_divergence_penalty(_annealed(config)),
      covrl.selectors.random_tokens(config.entropy.fraction),
    ),
  )


def adaptive_bonus() -> Recipe:
  """GRPO whose entropy follows a schedule, by a bonus that adapts.

  Run: covrl train --config=countdown:adaptive_bonus --workdir=runs/adaptive_bonus
  Hardware: two CPU cores, seven minutes.
  Expect: entropy near a straight line from `entropy.initial_target` to
  `entropy.target`, where GRPO's falls to 0.22 nats within ten iterations. The
  controller, `covrl.controllers.adaptive_bonus`, was compared with others on a
  smaller task, `tests/benchmarks`.
  """
  recipe = grpo()
  recipe.config.entropy.initial_target = 0.40
  recipe.config.entropy.target = 0.30
  return dataclasses.replace(
    recipe,
    token_tx=lambda config: covrl.entropy_bonus(
      covrl.adaptive_bonus(
        optax.linear_schedule(
          config.entropy.initial_target,
          config.entropy.target,
          config.schedule_updates,
        ),
        increment=5e-3,
        maximum=1.0,
      )
    ),
  )


def ppo() -> Recipe:
  """PPO: a critic's values in place of the other responses to a prompt.

  Run: covrl train --config=countdown:ppo --workdir=runs/ppo
  Hardware: two CPU cores, nine minutes.
  Expect: entropy falls from the policy's first update on; after five iterations
  the critic explains about a tenth of the returns' variance. `make
  study-algorithms` compares it with `grpo` and `prime`.
  """
  recipe = grpo()
  # The critic is as small as the policy, and learns from the first rollout on.
  recipe.config.critic.learning_rate = 1e-3
  recipe.config.critic.warm_up = 4
  return dataclasses.replace(
    recipe,
    networks=lambda config: {'critic': critic(config)},
    estimator=critic_advantages,
  )


def prime() -> Recipe:
  """PRIME: rewards of tokens from a reward model that learns from outcomes.

  Prompts whose responses are nearly all right or all wrong are drawn again, up
  to four times. The settings are those that PRIME published for language models,
  with two differences: the reward model's learning rate, and that it learns from
  an iteration's outcomes before it scores the responses.

  Run: covrl train --config=countdown:prime --workdir=runs/prime
  Hardware: two CPU cores, fifteen minutes.
  Expect: `make study-algorithms` compares it with `grpo` and `ppo`.
  Source: Cui et al., Process Reinforcement through Implicit Rewards,
  arXiv:2502.01456, and the authors' implementation in verl.
  """
  recipe = grpo()
  config = recipe.config
  config.prime.update = 'before'
  # The reward model is as small as the policy.
  config.prime.learning_rate = 1e-3
  config.train.keep_reference = True
  config.rollout.max_draws = 4
  config.rollout.min_accuracy = 0.2
  config.rollout.max_accuracy = 0.8
  config.rollout.drop_truncated_groups = True
  config.rollout.fill_groups = True
  return dataclasses.replace(
    recipe,
    networks=lambda config: {'prm': process_reward_model(config)},
    estimator=prime_advantages,
  )


def prime_kl_cov() -> Recipe:
  """PRIME with the loss and the annealed penalty of KL-Cov.

  Run: covrl train --config=countdown:prime_kl_cov --workdir=runs/prime_kl_cov
  Hardware: two CPU cores, fifteen minutes.
  Expect: not measured yet; to be compared with `prime`.
  """
  kl_cov_recipe = kl_cov()
  return dataclasses.replace(
    prime(), loss=kl_cov_recipe.loss, token_tx=kl_cov_recipe.token_tx
  )


def _annealed(config: Config) -> optax.Schedule:
  """Returns the coefficient, decaying linearly to 0."""
  return optax.linear_schedule(
    config.entropy.coefficient, 0.0, config.schedule_updates
  )


def _tx(config: Config) -> optax.GradientTransformation:
  """Returns Adam with clipped gradients."""
  return optax.chain(
    optax.clip_by_global_norm(config.train.max_gradient_norm),
    optax.adam(config.train.learning_rate, b2=0.95),
  )


def _warm_start_tx(config: Config) -> optax.GradientTransformation:
  """Returns AdamW with warm-up and cosine decay."""
  steps = max(config.warm_start.steps, 2)  # a schedule needs two
  rate = optax.warmup_cosine_decay_schedule(
    0.0, config.warm_start.learning_rate, min(100, steps // 10 + 1), steps
  )
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98))
