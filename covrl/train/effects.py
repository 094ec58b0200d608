# SPDX-License-Identifier: Apache-2.0
"""Warnings of config fields and functions that have no effect, or a wrong one.

Also finds out which statistics a loss and a token chain read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Var
from jaxtyping import PyTree

from covrl.config import Config, Recipe, flatten
from covrl.entropy import (
  DivergencePenaltyState,
  ImportanceWeightState,
  TokenMaskedState,
)
from covrl.entropy.base import update_signal
from covrl.entropy.inspection import single_token
from covrl.models import ModelConfig, Policy
from covrl.rewards.reward import RewardPart
from covrl.tasks.task import Task
from covrl.train.algorithm import Algorithm
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


def direction_warnings(
  policy: Policy, **chains: tuple[optax.GradientTransformation, int]
) -> Iterator[str]:
  """Yields a sentence for each chain that moves parameters along gradients.

  Args:
    policy: the policy.
    **chains: parameter chains of the policy with their numbers of updates, by their
      names in a `Recipe`.
  """
  trainable, _ = policy.split(policy.abstract_params())
  for name, (tx, updates) in chains.items():
    update = _first_ascent(tx, trainable, updates)
    if update is None:
      continue
    along = (
      f"the recipe's {name} moves parameters along their gradient, which raises"
      ' the loss'
    )
    if update < 2:
      yield (
        f'{along}: a chain needs scale_by_learning_rate at its end, and'
        ' optax.masked returns the gradients of the parameters that it leaves out'
      )
    else:
      yield (
        f'{along}, at update {update} of {updates}: its learning rate becomes'
        ' negative'
      )


def _first_ascent(
  tx: optax.GradientTransformation, params: PyTree, updates: int
) -> int | None:
  """Returns an update at which a chain moves a parameter along its gradient.

  It is run on gradients of 1 and parameters of 0 with one entry each, twice, since
  a learning rate may begin at 0; then once for each of some later updates, whose
  number takes the place of the counts in its state. A chain that fails on such
  shapes counts as one that does not.

  Args:
    tx: a parameter chain.
    params: shapes and dtypes of the parameters.
    updates: number of updates that the chain makes.
  """
  update = optax.with_extra_args_support(tx).update
  count = 32 if updates > 2 else 0
  later = np.unique(np.linspace(2, updates - 1, count).astype(np.int32))

  def is_along(moves: PyTree) -> jax.Array:
    return jnp.any(
      jnp.stack([jnp.any(leaf > 0) for leaf in jax.tree.leaves(moves)])
    )

  def run() -> tuple[list[jax.Array], jax.Array]:
    zeros = jax.tree.map(
      lambda leaf: jnp.zeros((1,) * len(leaf.shape), leaf.dtype), params
    )
    gradients = jax.tree.map(jnp.ones_like, zeros)
    first, state = update(gradients, tx.init(zeros), zeros)
    second, state = update(gradients, state, zeros)

    def at(count: jax.Array) -> jax.Array:
      counted = jax.tree.map(
        lambda leaf: count if is_update_count(leaf) else leaf, state
      )
      return is_along(update(gradients, counted, zeros)[0])

    return [is_along(first), is_along(second)], jax.lax.map(at, later)

  try:
    early, along = jax.jit(run)()
  except Exception:
    return None
  if any(early):
    return 0
  found = later[np.asarray(along)]
  return int(found[0]) if found.size else None


def is_update_count(leaf: Any) -> bool:
  """Whether an array of a chain's state counts updates."""
  return jnp.shape(leaf) == () and jnp.result_type(leaf) == jnp.int32


def gradient_warnings(algorithm: Algorithm) -> Iterator[str]:
  """Yields a sentence if loss and token chain have no gradient.

  They are traced on a single token and not computed; an algorithm that cannot be
  traced there yields none.
  """
  stats, context = single_token()
  given_by_loss = ('score_weight', 'clipped')
  values: dict[str, Any] = {
    name: value for name, value in context.items() if name not in given_by_loss
  }

  def run(stats: TokenStats, advantages: Any, weights: Any) -> PyTree:
    loss_context = values | {'advantages': advantages, 'weights': weights}
    (_, aux), signal = jax.value_and_grad(algorithm.loss, has_aux=True)(
      stats, **loss_context
    )
    state = algorithm.token_tx.init(stats.template())
    context = loss_context | aux.for_selection
    return update_signal(algorithm.token_tx, signal, state, stats, **context)[0]

  try:
    traced = jax.make_jaxpr(run)(stats, values['advantages'], values['weights'])
  except Exception:
    return
  dependent = set(traced.jaxpr.invars)
  for eqn in traced.eqns:
    if any(x in dependent for x in eqn.invars if isinstance(x, Var)):
      dependent.update(eqn.outvars)
  if not any(
    x in dependent for x in traced.jaxpr.outvars if isinstance(x, Var)
  ):
    yield (
      "the recipe's loss and token chain have no gradient: no token trains the"
      ' policy, whatever its advantage'
    )


def reads_reference(algorithm: Algorithm) -> bool:
  """Returns whether an algorithm depends on the reference policy.

  Loss and token chain are traced on a single token and not computed; what cannot
  be traced there counts as dependent.
  """
  if algorithm.estimator is not None and algorithm.estimator.reads_reference:
    return True
  return _reads(algorithm, 'ref_logprobs')


def reads_moments(algorithm: Algorithm) -> bool:
  """Returns whether a loss or token chain reads moments of the policy.

  Both the current moments and those of the old policy count, since a decision on
  the statistics of the old policy receives its moments as `moments`. They are
  traced as in `reads_reference`.
  """
  return _reads(algorithm, 'moments', 'old_moments')


def _reads(algorithm: Algorithm, *entries: str) -> bool:
  """Returns whether loss or token chain depend on entries of the context."""
  stats, context = single_token()
  given_by_loss = ('score_weight', 'clipped')
  loss_context: dict[str, Any] = {
    name: value for name, value in context.items() if name not in given_by_loss
  }

  def run(inputs: dict[str, Any]) -> tuple[Any, Any]:
    values = loss_context | inputs
    (value, aux), signal = jax.value_and_grad(algorithm.loss, has_aux=True)(
      stats, **values
    )
    state = algorithm.token_tx.init(stats.template())
    return value, update_signal(
      algorithm.token_tx, signal, state, stats, **(values | aux.for_selection)
    )

  try:
    traced = jax.make_jaxpr(run)(
      {name: loss_context[name] for name in entries}
    ).jaxpr
  except Exception:
    return True
  variables = [*traced.outvars, *(x for eqn in traced.eqns for x in eqn.invars)]
  return any(
    variable is argument for variable in variables for argument in traced.invars
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
