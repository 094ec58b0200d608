# SPDX-License-Identifier: Apache-2.0
"""Warnings of config fields that have no effect, or a biased one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import jax
from jaxtyping import PyTree

from covrl.config import Config, Recipe, flatten
from covrl.entropy import (
  DivergencePenaltyState,
  ImportanceWeightState,
  TokenMaskedState,
)
from covrl.models import ModelConfig
from covrl.rewards.reward import RewardPart
from covrl.tasks.task import Task
from covrl.train.algorithm import Algorithm, reads_reference
from covrl.types import TokenStats

# Fields and sections (`NAME.`) that have an effect only if something reads them while
# the run is built, such as a function of the recipe.
_READ_BY_RECIPES = (
  *('countdown.', 'maze.', 'arithmetic.', 'data.', 'entropy.'),
  *('train.learning_rate', 'train.max_gradient_norm'),
  *('train.clip_low', 'train.clip_high', 'train.schedule_iterations'),
  *('rewards.sandbox', 'rewards.packages', 'rewards.format'),
  *('rewards.overlong_buffer', 'rewards.function_weight'),
  *('evaluate.suite', 'evaluate.problems', 'evaluate.samples'),
  'evaluate.temperature',
)

# Fields with their conditions of having an effect, in words and as predicates.
_CONDITIONS: tuple[
  tuple[tuple[str, ...], str, Callable[[Config], object]], ...
] = (
  (
    ('warm_start.', 'checkpoint.warm_start_every', 'logging.warm_start_every'),
    'warm_start.steps above 0',
    lambda config: config.warm_start.steps,
  ),
  (
    ('checkpoint.warm_start_every', 'logging.warm_start_every'),
    'a warm start of its own, not that of warm_start.from_run',
    lambda config: not config.warm_start.from_run,
  ),
  (
    ('rollout.max_staleness',),
    'rollout.carried_groups above 0',
    lambda config: config.rollout.carried_groups,
  ),
  (
    ('lora.alpha', 'lora.targets'),
    'lora.rank above 0',
    lambda config: config.lora.rank,
  ),
  (
    ('checkpoint.every_updates',),
    'an iteration of more updates',
    lambda config: (
      config.checkpoint.every_updates < config.updates_per_iteration
    ),
  ),
  (
    ('logging.samples_every',),
    'logging.samples above 0',
    lambda config: config.logging.samples,
  ),
  (
    ('rewards.format_weight',),
    'rewards.format',
    lambda config: config.rewards.format,
  ),
  (
    ('rewards.function_weight',),
    'rewards.function',
    lambda config: config.rewards.function,
  ),
  (
    ('data.pass_rates',),
    'data.min_pass_rate above 0 or data.max_pass_rate below 1',
    lambda config: (
      config.data.min_pass_rate > 0 or config.data.max_pass_rate < 1
    ),
  ),
  (
    ('critic.kl',),
    'critic.kl_coefficient above 0',
    lambda config: config.critic.kl_coefficient,
  ),
  (
    ('critic.kl_horizon',),
    'critic.kl_target above 0',
    lambda config: config.critic.kl_target,
  ),
)


def unused_override_warnings(
  recipe: Recipe, fields_read: Collection[str], task: Task, model: ModelConfig
) -> Iterator[str]:
  """Yields a sentence for each overridden field that has no effect.

  Args:
    recipe: the run's recipe.
    fields_read: the fields that were read while the run was built.
    task: the run's task.
    model: the policy's model.
  """
  values = flatten(recipe.config)
  for name in recipe.overridden:
    if reason := _reason(name, recipe.config, fields_read, task, model):
      yield f'{name} = {values[name]} has no effect: {reason}'


def config_warnings(
  config: Config, algorithm: Algorithm, rewards: Sequence[RewardPart]
) -> Iterator[str]:
  """Yields a sentence for each setting that has no or a biased effect.

  Args:
    config: the configuration; values from the recipe count like overrides.
    algorithm: the loss and the transformations of the run.
    rewards: the rewards of the run's task.
  """
  token_state = algorithm.token_tx.init(TokenStats.template())
  train, rollout = config.train, config.rollout
  if config.rewards.function and 'function' not in (
    reward.name for reward in rewards
  ):
    yield (
      f'rewards.function = {config.rewards.function} has no effect: it is for'
      ' tasks of text, other tasks name their score functions themselves'
    )
  if (
    _contains(token_state, DivergencePenaltyState)
    and config.updates_per_iteration == 1
  ):
    yield (
      'a divergence penalty has no gradient where π = π_old, and with one '
      'update per iteration (train.sequences_per_update = '
      f'{train.sequences_per_update}) that is always: it does nothing'
    )
  if '\\n' in config.data.template:
    yield (
      'data.template has a backslash and an n in place of a line break, which a shell'
      " writes for $'Q: {question}\\nA:'"
    )
  if config.evaluate.samples > 1 and not config.evaluate.temperature:
    yield (
      'evaluate.temperature = 0 makes all samples of a problem the greedy'
      f' response, so that pass@{config.evaluate.samples} is greedy accuracy'
    )
  if train.keep_reference and not reads_reference(algorithm):
    yield (
      'train.keep_reference has no effect but its cost: neither loss nor token'
      ' chain nor estimator reads the reference policy'
    )
  max_tokens = train.sequences_per_update * rollout.max_response_length
  if (
    _contains(token_state, TokenMaskedState)
    and config.entropy.fraction * max_tokens < 1
  ):
    yield (
      f'entropy.fraction = {config.entropy.fraction:g} selects no token of an '
      f'update, which has at most {max_tokens} response tokens'
    )
  if rollout.top_p < 1 or rollout.top_k > 0 or rollout.min_p > 0:
    yield (
      'with top-p, top-k or min-p the sampler is not the '
      'policy that is trained: importance weights are biased'
    )
  if rollout.cache_dtype == 'int8' and not _contains(
    token_state, ImportanceWeightState
  ):
    yield (
      "rollout.cache_dtype = 'int8' samples with other probabilities than those "
      'that are trained, and the token chain has no importance weights: add'
      ' truncated_importance_weights, icepop or decoupled_ppo'
    )
  if rollout.pipeline and not _contains(token_state, ImportanceWeightState):
    yield (
      f'rollout.pipeline = {rollout.pipeline} samples with an older policy, and'
      ' the token chain has no importance weights: add'
      ' truncated_importance_weights, icepop or decoupled_ppo'
    )


def _reason(
  name: str,
  config: Config,
  fields_read: Collection[str],
  task: Task,
  model: ModelConfig,
) -> str:
  """Returns why a field has no effect; empty if it may have one."""
  for fields, condition, is_met in _CONDITIONS:
    is_dependent = name != 'warm_start.steps' and _is_among(name, fields)
    if is_dependent and not is_met(config):
      return f'it needs {condition}'
  if name == 'train.balance' and model.experts is None:
    return 'it needs a model with experts'
  # The run is saved and reported at `evaluate.every` in any case.
  is_evaluation = name.startswith('evaluate.') and name != 'evaluate.every'
  if is_evaluation and not task.evaluation_suites(config.evaluate):
    return 'the task has no problems to evaluate on'
  # Every run reads `data.checked_programs`.
  needed = {name, 'data.train'} if name.startswith('data.') else {name}
  if name.startswith(_READ_BY_RECIPES) and not needed <= set(fields_read):
    return 'nothing in this recipe reads it'
  return ''


def _is_among(name: str, fields: tuple[str, ...]) -> bool:
  """Returns whether a name is one of the fields, or of a section `NAME.`."""
  return any(
    name.startswith(field) if field.endswith('.') else name == field
    for field in fields
  )


def _contains(tree: PyTree, kind: type) -> bool:
  """Returns whether a tree has a node of a type."""
  leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
  return any(isinstance(leaf, kind) for leaf in leaves)
