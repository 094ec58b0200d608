# SPDX-License-Identifier: Apache-2.0
"""Controllers on sampled bandits: which of them holds entropy on its path.

The target falls linearly, to 1.2 nats below the start, and stays. Plain policy
gradient falls well below it. Three of covrl's controllers set the coefficient of
a bonus from readings alone. Two arms foretell: each update's fall is η times the
mean of c*, so one knows how large a bonus gives it back, or which tokens to
detach, the shortest prefix in descending c*, the last of them in part.
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
from covrl.entropy.base import init_token_state, require_stats, token_transform
from covrl.theory import tokens as tk
from covrl.theory import tree as trees
from covrl.theory.claims import Lab

PROMPTS, ACTIONS, RESPONSES, RATE, DROP = 32, 16, 16, 24.0, 1.2
ARMS = (
  'none',
  'adaptive_bonus',
  'proportional_integral',
  'target_entropy',
  'bonus by c*',
  'detach by c*',
)

QUICK = ('none', 'target_entropy', 'bonus by c*', 'detach by c*')


class Paths(NamedTuple):
  """What became of each arm.

  Attributes:
    arms: which were run.
    steps: updates.
    target: in nats.
    entropy: along the run, mean over seeds.
    error: root mean square distance from the target, over the drop.
    reward: at the end, over the best.
  """

  arms: tuple[str, ...]
  steps: Float[np.ndarray, ' t']
  target: Float[np.ndarray, ' t']
  entropy: Float[np.ndarray, 'A t']
  error: Float[np.ndarray, ' A']
  reward: Float[np.ndarray, ' A']


@functools.cache
def run(lab: Lab) -> Paths:
  """8 seeds of 200 updates, or fewer arms with 2 of 100."""
  arms = QUICK if lab.quick else ARMS
  seeds, steps = lab.size(8, 2), lab.size(200, 100)
  random = lab.random()
  tree = trees.random_tree(random, prompts=PROMPTS, depth=1, actions=ACTIONS)
  logits = jnp.asarray(0.5 * random.normal(size=tree.rewards.shape))
  best = float(tree.rewards.max(-1).mean())
  first = float(trees.mean_entropy(tree, logits))
  target = first - DROP * np.minimum(np.arange(steps) / (0.6 * steps), 1)

  def trace(arm: str) -> tuple[Array, Array]:
    # No control: nothing is ever below a target of −∞. One program fewer.
    free = np.full(steps, -np.inf)
    name, wanted = (ARMS[-1], free) if arm == 'none' else (arm, target)
    return _train(tree, logits, lab.key(), jnp.asarray(wanted), name, seeds)

  traces = [trace(arm) for arm in arms]
  entropy = np.array([np.asarray(h, float) for h, _ in traces])
  reward = np.array([np.asarray(r, float).mean() for _, r in traces])
  off = entropy - target
  return Paths(
    arms=arms,
    steps=np.arange(1.0, steps + 1),
    target=target,
    entropy=entropy.mean(1),
    error=np.sqrt((off**2).mean((1, 2))) / DROP,
    reward=reward / best,
  )


def _chain(name: str, target: Float[Array, ' t']) -> Any:
  """The token chain of an arm."""

  def now(step: Any) -> Array:
    return target[jnp.minimum(step, target.size - 1)]

  match name:
    case 'adaptive_bonus':
      controller = covrl.adaptive_bonus(now, 0.05, maximum=3.0)
    case 'proportional_integral':
      controller = covrl.proportional_integral(
        now, proportional=3.0, integral=0.3, minimum=0.0, maximum=5.0
      )
    case 'target_entropy':
      controller = covrl.target_entropy(
        now, horizon=4.0, momentum=0.0, maximum=5.0
      )
    case 'bonus by c*':
      return foretelling(now, give_back)
    case _:
      return foretelling(now, detach)
  return covrl.entropy_bonus(controller)


def foretelling(
  target: optax.Schedule, edit: Callable[..., covrl.TokenStats]
) -> optax.GradientTransformationExtraArgs:
  """An edit of the updates by what they are going to do to the entropy.

  Each token takes of the mean entropy over equally likely prompts

    η · weight · c* / prompts

  since a token moves its own prompt's logits alone.

  Args:
    target: entropy to have after the update, a schedule of `step`.
    edit: `(updates, effects, excess, stats, context) -> updates`, of what each
      token takes, and all of them too much.
  """

  def update(
    updates: PyTree,
    state: PyTree,
    params: PyTree | None = None,
    **context: Any,
  ) -> tuple[PyTree, PyTree]:
    stats = require_stats(params, edit.__name__)
    weight = context['score_weight'] * context['weights']
    scores = covrl.exact_score(stats, context['moments'], weight)
    effects = RATE * scores.ravel() / PROMPTS
    excess = target(context['step']) - context['entropy'] + jnp.sum(effects)
    return edit(updates, effects, excess, stats, context), state

  return token_transform(optax.init_empty_state, update)


def detach(
  updates: covrl.TokenStats,
  effects: Float[Array, ' N'],
  excess: Float[Array, ''],
  stats: covrl.TokenStats,
  context: dict[str, Any],
) -> covrl.TokenStats:
  """No gradient from the prefix of tokens that takes what is too much."""
  del stats, context
  order = jnp.argsort(-effects)
  largest = jnp.maximum(effects[order], 0)
  before = jnp.cumsum(largest) - largest
  share = jnp.clip((excess - before) / jnp.maximum(largest, 1e-12), 0, 1)
  share = jnp.where(largest > 0, share, 0)
  kept = jnp.zeros_like(effects).at[order].set(1 - share)
  kept = kept.reshape(updates.logprobs.shape)
  return jax.tree.map(lambda u: (u * kept).astype(u.dtype), updates)


def give_back(
  updates: covrl.TokenStats,
  effects: Float[Array, ' N'],
  excess: Float[Array, ''],
  stats: covrl.TokenStats,
  context: dict[str, Any],
) -> covrl.TokenStats:
  """A bonus that restores what is too much: α η Σ π² f² of each token."""
  del effects
  h, moments = stats.entropy, context['moments']
  restored = moments.square_log_square + h * (
    2 * moments.square_log + h * moments.square
  )
  weights = context['weights']
  unit = RATE * jnp.sum(weights * restored) / PROMPTS
  alpha = jnp.maximum(excess, 0) / unit
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
  """Entropy along the run, and reward at its end, of every seed."""
  chain = _chain(name, target)

  def update(
    state: tuple[Array, PyTree], step: Array, noise: Array
  ) -> tuple[Array, PyTree]:
    table, token_state = state
    made = tk.update(
      table,
      tk.sampled(tree, table, noise, scale=None),
      chain,
      token_state,
      learning_rate=RATE,
      step=step,
      entropy=trees.mean_entropy(tree, table),
    )
    return made.logits, made.token_state

  def once(
    states: tuple[Array, PyTree], step: Array
  ) -> tuple[tuple[Array, PyTree], Array]:
    draw = jax.random.fold_in(key, step)
    noise = tk.noise(draw, seeds, tree=tree, responses=RESPONSES)
    states = jax.vmap(update, (0, None, 0))(states, step, noise)
    return states, jax.vmap(trees.mean_entropy, (None, 0))(tree, states[0])

  starts = jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (seeds, *leaf.shape)),
    (logits, init_token_state(chain)),
  )
  (ends, _), entropy = jax.lax.scan(once, starts, jnp.arange(target.size))
  return entropy.T, jax.vmap(trees.objective, (None, 0))(tree, ends)
