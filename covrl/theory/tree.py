# SPDX-License-Identifier: Apache-2.0
"""Prompts and the trees of their responses, small enough to enumerate.

A state is a prompt and a prefix, as in a language model: the root of a tree
and a path in it. Nodes are numbered like a heap: action a in node s leads to
node K s + 1 + a, so that a level is a slice and no table of transitions is
needed. Everything is exact and differentiable in the logits; quantities are
sums over the whole tree and not over samples.

In shapes, `P` prompts, `S` nodes of a tree and `K` actions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from covrl.types import Scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
  """What is paid for each choice, and which choices end the response.

  Attributes:
    rewards: paid for taking an action in a node.
    ends: actions after which the response is over; all of the last level.
    depth: longest response.

  Where many runs are vectorised their trees are stacked.
  """

  rewards: Float[Array, '*runs P S K']
  ends: Bool[Array, '*runs P S K']
  depth: int = dataclasses.field(metadata={'static': True})

  @property
  def prompts(self) -> int:
    """How many trees there are."""
    return self.rewards.shape[0]

  @property
  def actions(self) -> int:
    """K."""
    return self.rewards.shape[-1]

  @property
  def nodes(self) -> int:
    """S, of each tree."""
    return self.rewards.shape[1]

  def levels(self) -> Iterator[slice]:
    """The nodes of each level, from the root."""
    start, width = 0, 1
    for _ in range(self.depth):
      yield slice(start, start + width)
      start, width = start + width, width * self.actions


def count_nodes(depth: int, actions: int) -> int:
  """Nodes of a full tree that have choices.

  >>> count_nodes(3, 2)
  7
  """
  return sum(actions**level for level in range(depth))


def full_tree(outcomes: Float[Array, 'P L'], depth: int) -> Tree:
  """A tree whose responses all have `depth` tokens and pay at the end.

  Args:
    outcomes: rewards of the K**depth responses to each prompt.
    depth: tokens of a response.
  """
  prompts, leaves = outcomes.shape
  actions = round(leaves ** (1 / depth))
  if actions**depth != leaves:
    raise ValueError(
      f'a tree of depth {depth} needs K**{depth} outcomes, got {leaves}'
    )
  inner = count_nodes(depth - 1, actions)
  early = jnp.zeros((prompts, inner, actions), outcomes.dtype)
  last = outcomes.reshape(prompts, -1, actions)
  is_last = jnp.arange(count_nodes(depth, actions)) >= inner
  return Tree(
    rewards=jnp.concatenate([early, last], axis=1),
    ends=jnp.broadcast_to(
      is_last[None, :, None], (prompts, is_last.size, actions)
    ),
    depth=depth,
  )


def random_tree(
  random: np.random.Generator,
  *,
  prompts: int,
  depth: int,
  actions: int,
  early: float = 0.0,
) -> Tree:
  """A tree of normal rewards on every choice.

  Args:
    random: where the numbers come from.
    prompts: P.
    depth: longest response.
    actions: K.
    early: share of the choices before the last level that end the response.
  """
  shape = (prompts, count_nodes(depth, actions), actions)
  is_last = np.arange(shape[1]) >= count_nodes(depth - 1, actions)
  ends = (random.random(shape) < early) | is_last[None, :, None]
  rewards = jnp.asarray(random.normal(size=shape))
  return Tree(rewards=rewards, ends=jnp.asarray(ends), depth=depth)


def visits(tree: Tree, pi: Float[Array, 'P S K']) -> Float[Array, 'P S']:
  """ρ(s): how often a response to a random prompt passes a node.

  A state is visited at most once; ρ sums to the mean length T.
  """
  here = jnp.full((tree.prompts, 1), 1 / tree.prompts, pi.dtype)
  levels = []
  for nodes in tree.levels():
    levels.append(here)
    goes_on = pi[:, nodes] * ~tree.ends[:, nodes]
    here = (here[:, :, None] * goes_on).reshape(tree.prompts, -1)
  return jnp.concatenate(levels, axis=1)


def response_chances(
  tree: Tree, pi: Float[Array, 'P S K']
) -> Float[Array, 'P L']:
  """Probabilities of the K**depth responses of full trees."""
  chances = jnp.ones((tree.prompts, 1), pi.dtype)
  for nodes in tree.levels():
    chances = (chances[:, :, None] * pi[:, nodes]).reshape(tree.prompts, -1)
  return chances


def action_values(
  tree: Tree, pi: Float[Array, 'P S K'], paid: Float[Array, 'P S K']
) -> Float[Array, 'P S K']:
  """Q(s, a): what is still paid after choosing a in s, this choice included.

  Args:
    tree: which choices end.
    pi: the policy that goes on.
    paid: for each choice; rewards, or anything else that adds up.
  """
  below = jnp.zeros((tree.prompts, pi.shape[-1] ** tree.depth), pi.dtype)
  levels = []
  for nodes in reversed(list(tree.levels())):
    later = below.reshape(paid[:, nodes].shape)
    values = paid[:, nodes] + jnp.where(tree.ends[:, nodes], 0, later)
    levels.append(values)
    below = jnp.sum(pi[:, nodes] * values, axis=-1)
  return jnp.concatenate(levels[::-1], axis=1)


def advantages(
  tree: Tree, pi: Float[Array, 'P S K'], paid: Float[Array, 'P S K']
) -> Float[Array, 'P S K']:
  """A(s, a) = Q(s, a) − V(s), of the policy itself."""
  values = action_values(tree, pi, paid)
  return values - jnp.sum(pi * values, axis=-1, keepdims=True)


def expected(
  tree: Tree, pi: Float[Array, 'P S K'], paid: Float[Array, 'P S K']
) -> Scalar:
  """What a response to a random prompt is paid: Σ ρ(s) Σ π(a|s) paid."""
  return jnp.sum(visits(tree, pi)[..., None] * pi * paid)


def objective(tree: Tree, logits: Float[Array, 'P S K']) -> Scalar:
  """J(θ), equation (1)."""
  return expected(tree, jax.nn.softmax(logits), tree.rewards)


def state_entropy(logits: Float[Array, '*B K']) -> Float[Array, '*B']:
  """H(π(·|s)), equation (3)."""
  log_pi = jax.nn.log_softmax(logits)
  return -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1)


def mean_entropy(tree: Tree, logits: Float[Array, 'P S K']) -> Scalar:
  """H(π_θ), equation (4): the mean over the tokens of responses.

  Σ_s ρ(s) H(s) / T,    T = Σ_s ρ(s)
  """
  rho = visits(tree, jax.nn.softmax(logits))
  return jnp.sum(rho * state_entropy(logits)) / jnp.sum(rho)
