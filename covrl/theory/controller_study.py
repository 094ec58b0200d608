# SPDX-License-Identifier: Apache-2.0
"""Experiment: how closely entropy controllers follow a target in bandits.

The target falls linearly to 1.2 nats below the initial entropy and stays there.
Without control, policy gradient falls well below it. Two of covrl's controllers
set the coefficient of an entropy bonus by feedback, `target_entropy` by its
first-order formula. Two methods predict the entropy after each single update: it
falls by η times the mean of c*, the exact token score (`covrl.exact_score`).
`bonus by c*` sets the coefficient of the bonus that compensates for the decrease;
`detach by c*` detaches tokens in descending order of c* until the predicted entropy
equals the target, the last of them in part.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

import covrl
from covrl.entropy.base import token_transform
from covrl.theory import tabular, trees
from covrl.theory.claim import Settings
from covrl.theory.float64 import cached_in_float64

PROMPTS, ACTIONS, RESPONSES = 32, 16, 16
LEARNING_RATE = 24.0
TARGET_DROP = 1.2  # nats from the initial entropy to the final target
CONTROLLERS = (
  'none',
  'adaptive_bonus',
  'proportional_integral',
  'target_entropy',
  'bonus by c*',
  'detach by c*',
)
QUICK_CONTROLLERS = ('none', 'target_entropy', 'bonus by c*', 'detach by c*')


class ControllerResults(NamedTuple):
  """Entropy and reward under each controller (axis `A`).

  Attributes:
    controllers: names of the controllers.
    steps: update numbers.
    target: target entropy in nats.
    entropy: entropy along the run in nats, mean over seeds.
    error: root mean squared distance from the target, relative to
      `TARGET_DROP`.
    reward: final reward relative to the best possible one.
  """

  controllers: tuple[str, ...]
  steps: Float[np.ndarray, ' t']
  target: Float[np.ndarray, ' t']
  entropy: Float[np.ndarray, 'A t']
  error: Float[np.ndarray, ' A']
  reward: Float[np.ndarray, ' A']


@cached_in_float64
def run_controllers(settings: Settings) -> ControllerResults:
  """Runs all controllers for 200 updates with 8 seeds.

  A quick run has fewer controllers, 100 updates and 2 seeds.
  """
  names = QUICK_CONTROLLERS if settings.quick else CONTROLLERS
  seeds, steps = settings.choose(8, 2), settings.choose(200, 100)
  rng = settings.rng()
  tree = trees.random_tree(rng, prompts=PROMPTS, depth=1, actions=ACTIONS)
  logits = jnp.asarray(0.5 * rng.normal(size=tree.rewards.shape))
  best_reward = float(tree.rewards.max(-1).mean())
  initial_entropy = float(trees.mean_entropy(tree, logits))
  target = initial_entropy - TARGET_DROP * np.minimum(
    np.arange(steps) / (0.6 * steps), 1
  )

  def trace(name: str) -> tuple[Array, Array]:
    # With a target of −∞ nothing is controlled, in the same compiled program.
    goal = target
    if name == 'none':
      name, goal = CONTROLLERS[-1], np.full(steps, -np.inf)
    return _train(tree, logits, settings.key(), jnp.asarray(goal), name, seeds)

  traces = [trace(name) for name in names]
  entropy = np.array([np.asarray(h, float) for h, _ in traces])
  reward = np.array([np.asarray(r, float).mean() for _, r in traces])
  distance = entropy - target
  return ControllerResults(
    controllers=names,
    steps=np.arange(1.0, steps + 1),
    target=target,
    entropy=entropy.mean(1),
    error=np.sqrt((distance**2).mean((1, 2))) / TARGET_DROP,
    reward=reward / best_reward,
  )


def _chain(name: str, target: Float[Array, ' t']) -> Any:
  """The token chain of a controller."""

  def target_at(step: Any) -> Array:
    return target[jnp.minimum(step, target.size - 1)]

  match name:
    case 'adaptive_bonus':
      controller = covrl.adaptive_bonus(target_at, 0.05, maximum=3.0)
    case 'proportional_integral':
      controller = covrl.controllers.proportional_integral(
        target_at, proportional=3.0, integral=0.3, minimum=0.0, maximum=5.0
      )
    case 'target_entropy':
      controller = covrl.target_entropy(target_at, horizon=4.0, maximum=5.0)
    case 'bonus by c*':
      return predictive_control(target_at, add_restoring_bonus)
    case _:
      return predictive_control(target_at, detach_tokens)
  return covrl.entropy_bonus(controller)


def predictive_control(
  target: optax.Schedule, edit: Callable[..., covrl.TokenStats]
) -> optax.GradientTransformationExtraArgs:
  """Edits the updates according to their predicted effect on the entropy.

  A token lowers the mean entropy over equally likely prompts by

    η · weight · c* / prompts

  because it moves only the logits of its own prompt.

  Args:
    target: entropy after the update in nats, as a schedule of `step`.
    edit: `(updates, effects, shortfall, stats, context) -> updates`; `effects` are
      the entropy decreases by the tokens, and `shortfall` is the amount by which the
      entropy is predicted to fall below the target, in nats.
  """

  def update(
    updates: covrl.TokenStats,
    state: PyTree,
    stats: covrl.TokenStats,
    context: dict[str, Any],
  ) -> tuple[covrl.TokenStats, PyTree]:
    weight = context['score_weight'] * context['weights']
    scores = covrl.exact_score(stats, context['moments'], weight)
    effects = LEARNING_RATE * scores.ravel() / PROMPTS
    shortfall = target(context['step']) - context['entropy'] + jnp.sum(effects)
    return edit(updates, effects, shortfall, stats, context), state

  return token_transform(edit.__name__, optax.init_empty_state, update)


def detach_tokens(
  updates: covrl.TokenStats,
  effects: Float[Array, ' N'],
  shortfall: Float[Array, ''],
  stats: covrl.TokenStats,
  context: dict[str, Any],
) -> covrl.TokenStats:
  """Detaches the tokens with the largest effects, whose sum is the shortfall."""
  del stats, context
  order = jnp.argsort(-effects)
  ordered = jnp.maximum(effects[order], 0)
  before = jnp.cumsum(ordered) - ordered
  detached = jnp.clip((shortfall - before) / jnp.maximum(ordered, 1e-12), 0, 1)
  detached = jnp.where(ordered > 0, detached, 0)
  factors = jnp.zeros_like(effects).at[order].set(1 - detached)
  factors = factors.reshape(updates.logprobs.shape)
  return jax.tree.map(lambda u: (u * factors).astype(u.dtype), updates)


def add_restoring_bonus(
  updates: covrl.TokenStats,
  effects: Float[Array, ' N'],
  shortfall: Float[Array, ''],
  stats: covrl.TokenStats,
  context: dict[str, Any],
) -> covrl.TokenStats:
  """Adds an entropy bonus that raises entropy by the shortfall: α η Σ π² f² per token."""
  del effects
  h, moments = stats.entropy, context['moments']
  token_gains = moments.square_log_square + h * (
    2 * moments.square_log + h * moments.square
  )
  weights = context['weights']
  gain_per_coefficient = (
    LEARNING_RATE * jnp.sum(weights * token_gains) / PROMPTS
  )
  alpha = jnp.maximum(shortfall, 0) / gain_per_coefficient
  return dataclasses.replace(updates, entropy=updates.entropy - alpha * weights)


@functools.partial(jax.jit, static_argnames=('name', 'seeds'))
def _train(
  tree: trees.Tree,
  logits: Array,
  key: Array,
  target: Float[Array, ' t'],
  name: str,
  seeds: int,
) -> tuple[Array, Array]:
  """Entropy along the run and final reward, for every seed."""
  chain = _chain(name, target)

  def update(
    state: tuple[Array, PyTree], step: Array, noise: Array
  ) -> tuple[Array, PyTree]:
    table, token_state = state
    updated = tabular.update(
      table,
      tabular.sample_tokens(tree, table, noise, scale=None),
      chain,
      token_state,
      learning_rate=LEARNING_RATE,
      step=step,
      entropy=trees.mean_entropy(tree, table),
    )
    return updated.logits, updated.token_state

  def step_all(
    states: tuple[Array, PyTree], step: Array
  ) -> tuple[tuple[Array, PyTree], Array]:
    step_key = jax.random.fold_in(key, step)
    noise = tabular.gumbel_noise(
      step_key, seeds, tree=tree, responses=RESPONSES
    )
    states = jax.vmap(update, (0, None, 0))(states, step, noise)
    return states, jax.vmap(trees.mean_entropy, (None, 0))(tree, states[0])

  starts = jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (seeds, *leaf.shape)),
    (logits, chain.init(covrl.TokenStats.template())),
  )
  (ends, _), entropy = jax.lax.scan(step_all, starts, jnp.arange(target.size))
  return entropy.T, jax.vmap(trees.objective, (None, 0))(tree, ends)
