# SPDX-License-Identifier: Apache-2.0
"""Random trees and policies in them, whose responses can be enumerated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from covrl.theory import tree as trees
from covrl.theory.claims import Lab


class World(NamedTuple):
  """A random tree and a random policy in it, as NumPy arrays."""

  tree: trees.Tree
  logits: jax.Array
  pi: Float[np.ndarray, 'P S K']
  rho: Float[np.ndarray, 'P S']
  advantages: Float[np.ndarray, 'P S K']


@jax.jit
def _described(
  tree: trees.Tree, logits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  pi = jax.nn.softmax(logits)
  own = trees.advantages(tree, pi, tree.rewards)
  return pi, trees.visits(tree, pi), own


def random_world(
  lab: Lab,
  *,
  prompts: int = 3,
  depth: int = 3,
  actions: int = 4,
  early: float = 0.2,
  scale: float = 1.0,
) -> World:
  """A world with responses of different lengths, the same for every claim."""
  random = lab.random()
  tree = trees.random_tree(
    random, prompts=prompts, depth=depth, actions=actions, early=early
  )
  logits = jnp.asarray(scale * random.normal(size=tree.rewards.shape))
  return World(tree, logits, *map(np.asarray, _described(tree, logits)))


def responses(
  tree: trees.Tree, pi: Float[np.ndarray, 'P S K']
) -> Iterator[tuple[float, float]]:
  """Every response there is: its probability and what it is paid."""
  ends, rewards = np.asarray(tree.ends), np.asarray(tree.rewards)

  def follow(
    prompt: int, node: int, chance: float, paid: float
  ) -> Iterator[tuple[float, float]]:
    for action in range(tree.actions):
      here = prompt, node, action
      so_far = chance * pi[here], paid + rewards[here]
      if ends[here]:
        yield so_far
      else:
        yield from follow(prompt, node * tree.actions + 1 + action, *so_far)

  for prompt in range(tree.prompts):
    yield from follow(prompt, 0, 1 / tree.prompts, 0.0)


def one_state(lab: Lab) -> World:
  """A bandit: the one case in which no state's visits matter."""
  return random_world(lab, prompts=1, depth=1)


def transitions(
  world: World,
) -> tuple[Float[np.ndarray, 'N N'], Float[np.ndarray, 'N N']]:
  """Transition matrices of the prefixes: going on, and beginning anew."""
  tree, nodes = world.tree, world.tree.nodes
  size = tree.prompts * nodes
  ends = np.asarray(tree.ends)
  stays, restarts = np.zeros((size, size)), np.zeros((size, size))
  for prompt, node, action in np.ndindex(*world.pi.shape):
    chance = world.pi[prompt, node, action]
    here = prompt * nodes + node
    if ends[prompt, node, action]:
      restarts[here, ::nodes] += chance / tree.prompts
    else:
      child = node * tree.actions + 1 + action
      stays[here, prompt * nodes + child] += chance
  return stays, restarts


def gradient(world: World) -> Float[np.ndarray, 'P S K']:
  """∇J, by autodiff."""
  return np.asarray(_gradient(world.tree, world.logits))


@jax.jit
def _gradient(tree: trees.Tree, logits: jax.Array) -> jax.Array:
  return jax.grad(trees.objective, 1)(tree, logits)
