# SPDX-License-Identifier: Apache-2.0
"""Trees of responses to prompts, small enough to enumerate.

A state is a prompt and a prefix, as in a language model: the root of a tree
and a path in it. Nodes are numbered like a heap: action a in node s leads to
node K s + 1 + a, so a level is a slice and no transition table is needed.
Quantities are exact sums over the whole tree instead of averages over samples,
and differentiable in the logits.

Shapes: `P` prompts, `S` nodes of a tree, `K` actions. Functions refuse, with
`TypeError` or `ValueError`, policies of another shape than the tree, and
probabilities that are negative or do not sum to 1, unless they are traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from covrl.array_checks import (
  check_array,
  check_integer,
  check_number,
  concrete_array,
)
from covrl.theory.argument_checks import (
  check_finite,
  check_logits,
  check_probabilities,
)
from covrl.types import Scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
  """Rewards and terminal actions of one tree per prompt.

  Trees of vectorised runs are stacked along leading axes.

  Attributes:
    rewards: reward of each action in each node.
    terminal: whether an action ends the response; true on the last level.
    depth: maximum response length.
  """

  rewards: Float[Array, '*runs P S K']
  terminal: Bool[Array, '*runs P S K']
  depth: int = dataclasses.field(metadata={'static': True})

  @property
  def prompts(self) -> int:
    """Number of trees P."""
    return self.rewards.shape[0]

  @property
  def actions(self) -> int:
    """Number of actions K."""
    return self.rewards.shape[-1]

  @property
  def nodes(self) -> int:
    """Number of nodes S per tree."""
    return self.rewards.shape[1]

  def levels(self) -> Iterator[slice]:
    """Yields the nodes of each level, starting from the root."""
    start, width = 0, 1
    for _ in range(self.depth):
      yield slice(start, start + width)
      start, width = start + width, width * self.actions


def count_nodes(depth: int, actions: int) -> int:
  """Number of inner nodes of a full tree.

  >>> count_nodes(3, 2)
  7
  """
  check_integer('depth', depth, 0)
  check_integer('actions', actions, 1)
  return sum(actions**level for level in range(depth))


def full_tree(outcomes: Float[Array, 'P L'], depth: int) -> Tree:
  """A tree in which all responses have `depth` tokens and a final reward.

  Args:
    outcomes: rewards of the K**depth responses to each prompt.
    depth: tokens per response.
  """
  check_integer('depth', depth, 1)
  check_finite('outcomes', outcomes, 'P L')
  prompts, leaves = outcomes.shape
  actions = round(leaves ** (1 / depth))
  if not prompts or not leaves or actions**depth != leaves:
    raise ValueError(
      f'outcomes of trees of depth {depth} must be [P, K**{depth}], got'
      f' {outcomes.shape}'
    )
  inner = count_nodes(depth - 1, actions)
  inner_rewards = jnp.zeros((prompts, inner, actions), outcomes.dtype)
  last = outcomes.reshape(prompts, -1, actions)
  is_last = jnp.arange(count_nodes(depth, actions)) >= inner
  return Tree(
    rewards=jnp.concatenate([inner_rewards, last], axis=1),
    terminal=jnp.broadcast_to(
      is_last[None, :, None], (prompts, is_last.size, actions)
    ),
    depth=depth,
  )


def random_tree(
  rng: np.random.Generator,
  *,
  prompts: int,
  depth: int,
  actions: int,
  end_fraction: float = 0.0,
) -> Tree:
  """A tree with normally distributed rewards of all actions.

  Args:
    rng: random number generator.
    prompts: number of prompts P.
    depth: maximum response length.
    actions: number of actions K.
    end_fraction: fraction of choices before the last level that end the response.
  """
  check_integer('prompts', prompts, 1)
  check_integer('depth', depth, 1)
  check_number('end_fraction', end_fraction, 0, 1)
  shape = (prompts, count_nodes(depth, actions), actions)
  is_last = np.arange(shape[1]) >= count_nodes(depth - 1, actions)
  terminal = (rng.random(shape) < end_fraction) | is_last[None, :, None]
  rewards = jnp.asarray(rng.normal(size=shape))
  return Tree(rewards=rewards, terminal=jnp.asarray(terminal), depth=depth)


def visit_frequencies(
  tree: Tree, pi: Float[Array, 'P S K']
) -> Float[Array, 'P S']:
  """ρ(s): expected visits of each state by a response to a random prompt.

  A response visits a state at most once; ρ sums to the mean length T.
  """
  check_probabilities('pi', pi, tree.rewards.shape)
  rho = jnp.full((tree.prompts, 1), 1 / tree.prompts, pi.dtype)
  levels = []
  for nodes in tree.levels():
    levels.append(rho)
    continues = pi[:, nodes] * ~tree.terminal[:, nodes]
    rho = (rho[:, :, None] * continues).reshape(tree.prompts, -1)
  return jnp.concatenate(levels, axis=1)


def response_probabilities(
  tree: Tree, pi: Float[Array, 'P S K']
) -> Float[Array, 'P L']:
  """Probabilities of the K**depth responses of full trees.

  Raises:
    ValueError: a response of the tree ends before the last level.
  """
  check_probabilities('pi', pi, tree.rewards.shape)
  *earlier, _ = tree.levels()
  terminal = concrete_array(tree.terminal)
  if earlier and terminal is not None and terminal[:, : earlier[-1].stop].any():
    raise ValueError(
      f'responses must have {tree.depth} tokens each, got one that ends earlier'
    )
  probabilities = jnp.ones((tree.prompts, 1), pi.dtype)
  for nodes in tree.levels():
    probabilities = probabilities[:, :, None] * pi[:, nodes]
    probabilities = probabilities.reshape(tree.prompts, -1)
  return probabilities


def action_values(
  tree: Tree, pi: Float[Array, 'P S K'], rewards: Float[Array, 'P S K']
) -> Float[Array, 'P S K']:
  """Q(s, a): expected sum of rewards from choosing a in s until the end.

  Args:
    tree: terminal actions.
    pi: the policy that continues the response.
    rewards: reward of each choice; any additive quantity, not only the tree's.
  """
  check_probabilities('pi', pi, tree.rewards.shape)
  check_array('rewards', rewards, 'float', 'P S K', tree.rewards.shape)
  following = jnp.zeros((tree.prompts, pi.shape[-1] ** tree.depth), pi.dtype)
  levels = []
  for nodes in reversed(list(tree.levels())):
    later = following.reshape(rewards[:, nodes].shape)
    values = rewards[:, nodes] + jnp.where(tree.terminal[:, nodes], 0, later)
    levels.append(values)
    following = jnp.sum(pi[:, nodes] * values, axis=-1)
  return jnp.concatenate(levels[::-1], axis=1)


def advantages(
  tree: Tree, pi: Float[Array, 'P S K'], rewards: Float[Array, 'P S K']
) -> Float[Array, 'P S K']:
  """A(s, a) = Q(s, a) − V(s) under the policy itself."""
  values = action_values(tree, pi, rewards)
  return values - jnp.sum(pi * values, axis=-1, keepdims=True)


def objective(tree: Tree, logits: Float[Array, 'P S K']) -> Scalar:
  """J(θ), equation (1): Σ_s ρ(s) Σ_a π(a|s) r(s, a)."""
  check_logits('logits', logits, tree.rewards.shape)
  pi = jax.nn.softmax(logits)
  return jnp.sum(visit_frequencies(tree, pi)[..., None] * pi * tree.rewards)


def state_entropy(logits: Float[Array, '*B K']) -> Float[Array, '*B']:
  """H(π(·|s)), equation (3), in nats."""
  check_logits('logits', logits)
  log_pi = jax.nn.log_softmax(logits)
  return -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1)


def mean_entropy(tree: Tree, logits: Float[Array, 'P S K']) -> Scalar:
  """H(π_θ), equation (4): the mean entropy per token of the responses.

  Σ_s ρ(s) H(s) / T,    T = Σ_s ρ(s)
  """
  check_logits('logits', logits, tree.rewards.shape)
  rho = visit_frequencies(tree, jax.nn.softmax(logits))
  return jnp.sum(rho * state_entropy(logits)) / jnp.sum(rho)
