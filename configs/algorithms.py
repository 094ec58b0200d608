"""Recipes of published algorithms on Countdown: one million parameters, a CPU.

Each is a complete algorithm: advantages, loss, aggregation of tokens, choice of
groups. Model, task, optimiser and warm start are those of `countdown:grpo`, and
any token chain may be added:

  dataclasses.replace(dapo(), token_tx=countdown.kl_cov().token_tx)

An iteration has four updates. None of them penalises a divergence from a
reference policy.
"""

import dataclasses
import functools

from jaxtyping import Array, Bool, Float, Int

import covrl
from covrl.config import Config, Recipe
from covrl.recipes import countdown
from covrl.rewards import Overlong
from covrl.tasks.task import Task, countdown_task


def dapo() -> Recipe:
  """DAPO: clip-higher, groups of unequal reward, and a length penalty.

  Clip range [0.8, 1.28], mean over tokens, up to four draws of prompts until all
  groups have unequal rewards, and a penalty that grows over the last fifth of
  the response length (published: 4,096 of 20,480 tokens).

  Run: covrl train --config=algorithms:dapo --workdir=runs/dapo
  Hardware: two CPU cores, nine minutes.
  Expect: a comparison with `countdown:grpo`: `make study-algorithms`.
  Source: Yu et al., DAPO, arXiv:2503.14476.
  """
  recipe = countdown.grpo()
  recipe.config.train.clip_high = 0.28
  recipe.config.rollout.max_draws = 4
  recipe.config.rewards.overlong_buffer = 2
  return dataclasses.replace(recipe, task=_task_with_length_penalty)


def dr_grpo() -> Recipe:
  """Dr. GRPO: rewards minus the group's mean, sums over a constant length.

  Neither difficult prompts nor short responses weigh more than others.

  Run: covrl train --config=algorithms:dr_grpo --workdir=runs/dr_grpo
  Hardware: two CPU cores, seven minutes.
  Expect: a comparison with `countdown:grpo`: `make study-algorithms`.
  Source: Liu et al., Understanding R1-Zero-Like Training, arXiv:2503.20783.
  """
  recipe = countdown.grpo()
  recipe.config.train.weights = 'constant-length'
  return dataclasses.replace(
    recipe,
    advantages=lambda config: functools.partial(
      covrl.group_relative, scale=None
    ),
  )


def reinforce_plus_plus() -> Recipe:
  """REINFORCE++: rewards whitened over the tokens of the whole batch.

  No baseline per prompt is subtracted.

  Run: covrl train --config=algorithms:reinforce_plus_plus --workdir=runs/reinforce_plus_plus
  Hardware: two CPU cores, seven minutes.
  Expect: a comparison with `countdown:grpo`: `make study-algorithms`.
  Source: Hu et al., REINFORCE++, arXiv:2501.03262, without its KL penalty.
  """
  return dataclasses.replace(
    countdown.grpo(), advantages=lambda config: _whitened_rewards
  )


def rloo() -> Recipe:
  """RLOO: rewards minus the mean of the group's other responses.

  Run: covrl train --config=algorithms:rloo --workdir=runs/rloo
  Hardware: two CPU cores, seven minutes.
  Expect: a comparison with `countdown:grpo`: `make study-algorithms`.
  Source: Ahmadian et al., Back to Basics, arXiv:2402.14740; with PPO's clip, as
  public trainers have it for more than one update of a rollout.
  """
  return dataclasses.replace(
    countdown.grpo(), advantages=lambda config: covrl.leave_one_out
  )


def gspo() -> Recipe:
  """GSPO: clips whole responses by the geometric mean of their ratios.

  The clip range, [1 − 3e-4, 1 + 4e-4], is that of the paper.

  Run: covrl train --config=algorithms:gspo --workdir=runs/gspo
  Hardware: two CPU cores, seven minutes.
  Expect: a comparison with `countdown:grpo`: `make study-algorithms`.
  Source: Zheng et al., Group Sequence Policy Optimization, arXiv:2507.18071.
  """
  recipe = countdown.grpo()
  recipe.config.train.clip_low, recipe.config.train.clip_high = 3e-4, 4e-4
  recipe.config.train.weights = 'sequence-mean-token-mean'
  return dataclasses.replace(
    recipe,
    loss=lambda config: functools.partial(
      covrl.gspo, low=config.train.clip_low, high=config.train.clip_high
    ),
  )


def luspo() -> Recipe:
  """LUSPO: GSPO whose responses weigh in proportion to their length.

  The sum over tokens in place of their mean removes GSPO's preference for short
  responses.

  Run: covrl train --config=algorithms:luspo --workdir=runs/luspo
  Hardware: two CPU cores, seven minutes.
  Expect: a comparison with `gspo`: `make study-algorithms`.
  Source: TRL's `loss_type='luspo'` (Length-Unbiased Sequence Policy
  Optimization), with the clip range of `gspo`.
  """
  recipe = gspo()
  recipe.config.train.weights = 'sequence-mean-token-sum'
  return recipe


def cispo() -> Recipe:
  """CISPO: truncates the ratios and clips no token.

  Ratios above 5 are truncated and small ones are not, as in the paper.

  Run: covrl train --config=algorithms:cispo --workdir=runs/cispo
  Hardware: two CPU cores, seven minutes.
  Expect: a comparison with `countdown:grpo`: `make study-algorithms`.
  Source: MiniMax, MiniMax-M1, arXiv:2506.13585.
  """
  recipe = countdown.grpo()
  recipe.config.train.clip_low, recipe.config.train.clip_high = 1.0, 4.0
  return dataclasses.replace(
    recipe,
    loss=lambda config: functools.partial(
      covrl.losses.cispo, low=config.train.clip_low, high=config.train.clip_high
    ),
  )


def _task_with_length_penalty(config: Config) -> Task:
  """Returns Countdown with DAPO's penalty of long responses."""
  task = countdown_task(config.countdown)
  penalty = Overlong(
    max_length=config.rollout.max_response_length,
    buffer=config.rewards.overlong_buffer,
  )
  return dataclasses.replace(task, rewards=[*task.rewards, penalty])


def _whitened_rewards(
  rewards: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  mask: Bool[Array, 'S T'],
) -> Float[Array, 'S T']:
  """Returns REINFORCE++'s advantages of all tokens."""
  del group_ids
  return covrl.advantages.reinforce_plus_plus(
    covrl.advantages.token_rewards(rewards, mask).rewards, mask
  )
