# SPDX-License-Identifier: Apache-2.0
"""Random policies on random trees, small enough to enumerate all responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from covrl.array_checks import check_number
from covrl.theory import trees
from covrl.theory.argument_checks import check_probabilities
from covrl.theory.claim import Settings


class TreePolicy(NamedTuple):
  """A tree, a policy on it, and the policy's exact statistics.

  Attributes:
    tree: the tree of responses to each prompt.
    logits: logits of the policy.
    pi: probabilities π(a|s).
    rho: expected visits ρ(s).
    advantages: A(s, a) of the policy itself.
  """

  tree: trees.Tree
  logits: jax.Array
  pi: Float[np.ndarray, 'P S K']
  rho: Float[np.ndarray, 'P S']
  advantages: Float[np.ndarray, 'P S K']


def random_tree_policy(
  settings: Settings,
  *,
  prompts: int = 3,
  depth: int = 3,
  actions: int = 4,
  end_fraction: float = 0.2,
  scale: float = 1.0,
) -> TreePolicy:
  """A random policy on a tree with responses of different lengths.

  Args:
    settings: settings of the run; the same seed gives the same policy.
    prompts: number of prompts P.
    depth: maximum response length.
    actions: number of actions K.
    end_fraction: fraction of choices before the last level that end the response.
    scale: standard deviation of the logits.

  Raises:
    TypeError: a number is of another type.
    ValueError: a number is out of range.
  """
  check_number('scale', scale, 0)
  rng = settings.rng()
  tree = trees.random_tree(
    rng,
    prompts=prompts,
    depth=depth,
    actions=actions,
    end_fraction=end_fraction,
  )
  logits = jnp.asarray(scale * rng.normal(size=tree.rewards.shape))
  return TreePolicy(tree, logits, *map(np.asarray, _statistics(tree, logits)))


def single_state_policy(settings: Settings) -> TreePolicy:
  """A bandit: one state, so visit frequencies do not matter."""
  return random_tree_policy(settings, prompts=1, depth=1)


@jax.jit
def _statistics(
  tree: trees.Tree, logits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Probabilities, visit frequencies and advantages of a policy."""
  pi = jax.nn.softmax(logits)
  advantages = trees.advantages(tree, pi, tree.rewards)
  return pi, trees.visit_frequencies(tree, pi), advantages


def enumerate_responses(
  tree: trees.Tree, pi: Float[np.ndarray, 'P S K']
) -> Iterator[tuple[float, float]]:
  """Yields the probability and the total reward of every response.

  Raises:
    ValueError: `pi` is not the probabilities of every action of the tree.
  """
  check_probabilities('pi', pi, tree.rewards.shape)
  terminal, rewards = np.asarray(tree.terminal), np.asarray(tree.rewards)

  def follow(
    prompt: int, node: int, probability: float, total: float
  ) -> Iterator[tuple[float, float]]:
    for action in range(tree.actions):
      index = prompt, node, action
      so_far = probability * pi[index], total + rewards[index]
      if terminal[index]:
        yield so_far
      else:
        yield from follow(prompt, node * tree.actions + 1 + action, *so_far)

  for prompt in range(tree.prompts):
    yield from follow(prompt, 0, 1 / tree.prompts, 0.0)


def transition_matrices(
  policy: TreePolicy,
) -> tuple[Float[np.ndarray, 'N N'], Float[np.ndarray, 'N N']]:
  """Transition matrices between prefixes, of all prompts together.

  Returns:
    Transitions within a response, and from the end of a response to the first
    state of a random prompt.

  Raises:
    ValueError: `policy.pi` is not the probabilities of every action of the tree.
  """
  check_probabilities('policy.pi', policy.pi, policy.tree.rewards.shape)
  tree, nodes = policy.tree, policy.tree.nodes
  size = tree.prompts * nodes
  terminal = np.asarray(tree.terminal)
  within, restarts = np.zeros((size, size)), np.zeros((size, size))
  for prompt, node, action in np.ndindex(*policy.pi.shape):
    probability = policy.pi[prompt, node, action]
    state = prompt * nodes + node
    if terminal[prompt, node, action]:
      restarts[state, ::nodes] += probability / tree.prompts
    else:
      child = node * tree.actions + 1 + action
      within[state, prompt * nodes + child] += probability
  return within, restarts


def policy_gradient(policy: TreePolicy) -> Float[np.ndarray, 'P S K']:
  """∇J with respect to the logits, by automatic differentiation."""
  return np.asarray(_gradient(policy.tree, policy.logits))


@jax.jit
def _gradient(tree: trees.Tree, logits: jax.Array) -> jax.Array:
  """∇J with respect to the logits, compiled."""
  return jax.grad(trees.objective, 1)(tree, logits)
