# SPDX-License-Identifier: Apache-2.0
"""Tabular policies under the trainer's own loss, token chain and methods.

A token is a state and the action taken in it. `sampled` draws responses and
gives them group-relative advantages, as the trainer does. `expected` has every
pair of state and action once, weighted by ρ(s) π(a|s), with the policy's own
advantages: the same chain then computes exact expectations.

`update` is the trainer's step in small: statistics, loss, chain, pull-back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.entropy.base import update_signal
from covrl.objectives import group_relative, policy_gradient, token_weights
from covrl.statistics.reference import token_stats_from_logits
from covrl.theory import tree as trees
from covrl.types import TokenMoments, TokenStats


class Tokens(NamedTuple):
  """State-action pairs, in rows, as a token chain wants them.

  Attributes:
    states: which row of the table of logits.
    actions: what was chosen there.
    mask: true for tokens; the rest is padding.
    weights: of each token in the objective.
    advantages: A.
    rewards: of each row's response.
  """

  states: Int[Array, 'B T']
  actions: Int[Array, 'B T']
  mask: Bool[Array, 'B T']
  weights: Float[Array, 'B T']
  advantages: Float[Array, 'B T']
  rewards: Float[Array, ' B']


class Updated(NamedTuple):
  """What an update gives.

  Attributes:
    logits: the new ones.
    token_state: of the chain.
    signal: the edited cotangent of the tokens' statistics.
  """

  logits: Float[Array, 'P S K']
  token_state: PyTree
  signal: TokenStats


def noise(
  key: Array,
  *policies: int,
  tree: trees.Tree,
  responses: int,
) -> Float[Array, '*policies D B K']:
  """What `sampled` draws responses by, for as many policies as wanted.

  Drawn in one dimension: in four XLA takes twenty times as long to compile it.

  Args:
    key: PRNG key.
    *policies: how many, in any shape.
    tree: of prompts.
    responses: G, to each prompt.
  """
  shape = (*policies, tree.depth, tree.prompts * responses, tree.actions)
  flat = jax.random.gumbel(key, (math.prod(shape),), tree.rewards.dtype)
  return flat.reshape(shape)


def sampled(
  tree: trees.Tree,
  logits: Float[Array, 'P S K'],
  noise: Float[Array, 'D B K'],
  *,
  scale: str | None = 'std',
) -> Tokens:
  """Responses to every prompt, with the advantages their groups give them.

  Args:
    tree: of prompts.
    logits: of the policy that samples.
    noise: see there.
    scale: see `covrl.group_relative`.
  """
  responses = noise.shape[1] // tree.prompts
  prompts = jnp.repeat(jnp.arange(tree.prompts), responses)
  node = jnp.zeros_like(prompts)
  alive = jnp.ones(prompts.shape, bool)
  rewards = jnp.zeros(prompts.shape, logits.dtype)
  columns = []
  for of_level in noise:
    action = jnp.argmax(logits[prompts, node] + of_level, axis=-1)
    columns.append((prompts * tree.nodes + node, action, alive))
    rewards += jnp.where(alive, tree.rewards[prompts, node, action], 0)
    alive &= ~tree.ends[prompts, node, action]
    node = jnp.where(alive, node * tree.actions + 1 + action, 0)
  states, actions, mask = (
    jnp.stack(column, axis=1) for column in zip(*columns, strict=True)
  )
  each = group_relative(rewards, prompts, scale=scale)
  return Tokens(
    states=states,
    actions=actions,
    mask=mask,
    weights=token_weights(mask, 'sequence-mean-token-sum'),
    advantages=jnp.where(mask, each[:, None], 0),
    rewards=rewards,
  )


def names(tokens: Tokens, batch: ArrayLike) -> Int[Array, 'B T']:
  """Sequence ids of a batch's tokens, that no other batch has.

  Random selections go by them: batches that share a key draw independently.
  """
  rows = jnp.arange(len(tokens.rewards))[:, None]
  ids = jnp.asarray(batch, jnp.int32) * len(tokens.rewards) + rows
  return jnp.broadcast_to(ids, tokens.states.shape)


def expected(tree: trees.Tree, logits: Float[Array, 'P S K']) -> Tokens:
  """Every state-action pair, weighted by how often it occurs.

  With these, the loss's gradient is the policy gradient's expectation.
  """
  pi = jax.nn.softmax(logits)
  rho = trees.visits(tree, pi)
  count = tree.prompts * tree.nodes
  shape = (count, tree.actions)
  own = trees.advantages(tree, pi, tree.rewards)
  weights = (rho[..., None] * pi).reshape(shape)
  return Tokens(
    states=jnp.broadcast_to(jnp.arange(count)[:, None], shape),
    actions=jnp.broadcast_to(jnp.arange(tree.actions), shape),
    mask=weights > 0,
    weights=weights,
    advantages=own.reshape(shape),
    rewards=jnp.zeros(count, logits.dtype),
  )


def statistics(
  logits: Float[Array, 'P S K'],
  tokens: Tokens,
  old_logits: Float[Array, 'P S K'] | None = None,
) -> TokenStats:
  """What the policy thinks of each token.

  Args:
    logits: of the policy.
    tokens: state-action pairs.
    old_logits: if given, the full KL(π_old ‖ π) of each token's state is
      among the statistics.
  """
  table = logits.reshape(-1, logits.shape[-1])
  stats = token_stats_from_logits(table[tokens.states], tokens.actions)
  if old_logits is None:
    return stats
  old = jax.nn.log_softmax(old_logits.reshape(table.shape))
  ratio = old - jax.nn.log_softmax(table)
  divergence = jnp.sum(jnp.exp(old) * ratio, axis=-1)
  return dataclasses.replace(stats, divergence=divergence[tokens.states])


def moments(logits: Float[Array, 'P S K'], tokens: Tokens) -> TokenMoments:
  """Σπ² and its kin, of each token's state."""
  table = logits.reshape(-1, logits.shape[-1])
  return token_stats_from_logits(
    table[tokens.states], tokens.actions, moments=True
  )[1]


def context(
  logits: Float[Array, 'P S K'],
  tokens: Tokens,
  old_logits: Float[Array, 'P S K'] | None = None,
  **more: Any,
) -> dict[str, Any]:
  """Everything a token chain may read, as the trainer provides it.

  Args:
    logits: of the policy.
    tokens: what it is trained on.
    old_logits: of the policy that sampled; the current one if absent.
    **more: entries to add: `step`, `key`, ….
  """
  old_logits = logits if old_logits is None else old_logits
  old = statistics(old_logits, tokens)
  stats = statistics(logits, tokens)
  return {
    'advantages': tokens.advantages,
    'old_logprobs': old.logprobs,
    'old_entropy': old.entropy,
    'old_moments': moments(old_logits, tokens),
    'moments': moments(logits, tokens),
    'mask': tokens.mask,
    'weights': tokens.weights,
    'entropy': weighted_mean(stats.entropy, tokens.weights),
    **more,
  }


def update(
  logits: Float[Array, 'P S K'],
  tokens: Tokens,
  token_tx: optax.GradientTransformation,
  token_state: PyTree,
  *,
  learning_rate: ArrayLike,
  old_logits: Float[Array, 'P S K'] | None = None,
  loss: Callable[..., Any] = policy_gradient,
  full_divergence: bool = False,
  **more: Any,
) -> Updated:
  """One update of a tabular policy, as the trainer makes it.

  Args:
    logits: of the policy.
    tokens: what it is trained on.
    token_tx: the token chain.
    token_state: its state.
    learning_rate: η, of plain gradient descent.
    old_logits: of the policy that sampled; the current one if absent.
    loss: see `covrl.objectives`.
    full_divergence: whether the statistics carry the full KL.
    **more: for the context: `step`, `key`, ….
  """
  old_logits = logits if old_logits is None else old_logits
  reference = old_logits if full_divergence else None
  stats, pull_back = jax.vjp(
    lambda table: statistics(table, tokens, reference), logits
  )
  entries = context(logits, tokens, old_logits, **more)
  (_, aux), signal = jax.value_and_grad(loss, has_aux=True)(stats, **entries)
  signal, token_state = update_signal(
    token_tx, signal, token_state, stats, **(entries | aux.for_selection)
  )
  (gradient,) = pull_back(signal)
  return Updated(logits - learning_rate * gradient, token_state, signal)


def weighted_mean(
  values: Float[Array, 'B T'], weights: Float[Array, 'B T']
) -> Float[Array, '']:
  """A mean over tokens."""
  return jnp.sum(values * weights) / jnp.sum(weights)
