# SPDX-License-Identifier: Apache-2.0
"""Tabular policies trained with covrl's own losses and token chains.

A token is a state and the action taken in it. `sample_tokens` draws responses
and gives them group-relative advantages, as the trainer does. `all_pairs` lists
every pair of state and action, weighted by ρ(s) π(a|s), with the policy's own
advantages, so that the same chain computes exact expectations. `update` is the
trainer's step without sharding: statistics, loss, token chain, pull-back.
Arguments of another type, shape or range are refused with `TypeError` or
`ValueError`; the values of traced arrays are not checked.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.array_checks import check_array, check_integer, check_number
from covrl.entropy.base import update_signal
from covrl.objectives import group_relative, policy_gradient, token_weights
from covrl.statistics.reference import token_stats_from_logits
from covrl.theory import trees
from covrl.theory.argument_checks import (
  check_finite,
  check_indices,
  check_logits,
)
from covrl.types import TokenMoments, TokenStats


class Tokens(NamedTuple):
  """State-action pairs in rows, as a token chain expects them.

  Attributes:
    states: row of the table of logits.
    actions: action taken in the state.
    mask: true for tokens, false for padding.
    weights: weight of each token in the objective.
    advantages: advantage A of each token.
    rewards: reward of each row's response.
  """

  states: Int[Array, 'B T']
  actions: Int[Array, 'B T']
  mask: Bool[Array, 'B T']
  weights: Float[Array, 'B T']
  advantages: Float[Array, 'B T']
  rewards: Float[Array, ' B']


class UpdateResult(NamedTuple):
  """Logits and state of the token chain after an update."""

  logits: Float[Array, 'P S K']
  token_state: PyTree


def gumbel_noise(
  key: Array,
  *policies: int,
  tree: trees.Tree,
  responses: int,
) -> Float[Array, '*policies D B K']:
  """Noise from which `sample_tokens` draws responses.

  Drawn as a vector: XLA takes twenty times as long to compile the same draw
  with four axes.

  Args:
    key: PRNG key.
    *policies: leading axes, such as the number of policies.
    tree: the tree of the prompts.
    responses: number of responses G per prompt.
  """
  for count in (*policies, responses):
    check_integer('policies and responses', count, 1)
  shape = (*policies, tree.depth, tree.prompts * responses, tree.actions)
  flat = jax.random.gumbel(key, (math.prod(shape),), tree.rewards.dtype)
  return flat.reshape(shape)


def sample_tokens(
  tree: trees.Tree,
  logits: Float[Array, 'P S K'],
  noise: Float[Array, 'D B K'],
  *,
  scale: Literal['std'] | None = 'std',
) -> Tokens:
  """Samples responses to every prompt, with group-relative advantages.

  Args:
    tree: the tree of the prompts.
    logits: logits of the sampling policy.
    noise: from `gumbel_noise`.
    scale: normalisation of advantages, see `covrl.group_relative`.
  """
  check_logits('logits', logits, tree.rewards.shape)
  check_finite('noise', noise, 'D B K')
  responses = noise.shape[1] // tree.prompts
  rows = responses * tree.prompts
  if not rows or noise.shape != (tree.depth, rows, tree.actions):
    raise ValueError(
      f'noise must be [{tree.depth}, G * {tree.prompts}, {tree.actions}], got'
      f' {noise.shape}'
    )
  prompts = jnp.repeat(jnp.arange(tree.prompts), responses)
  node = jnp.zeros_like(prompts)
  unfinished = jnp.ones(prompts.shape, bool)
  rewards = jnp.zeros(prompts.shape, logits.dtype)
  columns = []
  for level_noise in noise:
    action = jnp.argmax(logits[prompts, node] + level_noise, axis=-1)
    columns.append((prompts * tree.nodes + node, action, unfinished))
    rewards += jnp.where(unfinished, tree.rewards[prompts, node, action], 0)
    unfinished &= ~tree.terminal[prompts, node, action]
    node = jnp.where(unfinished, node * tree.actions + 1 + action, 0)
  states, actions, mask = (
    jnp.stack(column, axis=1) for column in zip(*columns, strict=True)
  )
  advantages = group_relative(rewards, prompts, scale=scale)
  return Tokens(
    states=states,
    actions=actions,
    mask=mask,
    weights=token_weights(mask, 'sequence-mean-token-sum'),
    advantages=jnp.where(mask, advantages[:, None], 0),
    rewards=rewards,
  )


def sequence_ids(tokens: Tokens, batch: ArrayLike) -> Int[Array, 'B T']:
  """Sequence ids of a batch's tokens that differ from those of other batches.

  Random selections depend on them, so batches that share a PRNG key draw
  independently.
  """
  check_indices('batch', batch, 2**31 // len(tokens.rewards))
  rows = jnp.arange(len(tokens.rewards))[:, None]
  ids = jnp.asarray(batch, jnp.int32) * len(tokens.rewards) + rows
  return jnp.broadcast_to(ids, tokens.states.shape)


def all_pairs(tree: trees.Tree, logits: Float[Array, 'P S K']) -> Tokens:
  """Every state-action pair, weighted by its expected number of occurrences.

  With these tokens the gradient of the loss is the exact policy gradient.
  """
  check_logits('logits', logits, tree.rewards.shape)
  pi = jax.nn.softmax(logits)
  rho = trees.visit_frequencies(tree, pi)
  count = tree.prompts * tree.nodes
  shape = (count, tree.actions)
  advantages = trees.advantages(tree, pi, tree.rewards)
  weights = (rho[..., None] * pi).reshape(shape)
  return Tokens(
    states=jnp.broadcast_to(jnp.arange(count)[:, None], shape),
    actions=jnp.broadcast_to(jnp.arange(tree.actions), shape),
    mask=weights > 0,
    weights=weights,
    advantages=advantages.reshape(shape),
    rewards=jnp.zeros(count, logits.dtype),
  )


def token_statistics(
  logits: Float[Array, 'P S K'],
  tokens: Tokens,
  old_logits: Float[Array, 'P S K'] | None = None,
) -> TokenStats:
  """Log-probability and entropy of each token under the policy.

  Args:
    logits: logits of the policy.
    tokens: state-action pairs.
    old_logits: if given, the statistics include the full KL(π_old ‖ π) of each
      token's state.
  """
  table = _table(logits, tokens)
  stats = token_stats_from_logits(table[tokens.states], tokens.actions)
  if old_logits is None:
    return stats
  check_logits('old_logits', old_logits, logits.shape)
  old = jax.nn.log_softmax(old_logits.reshape(table.shape))
  ratio = old - jax.nn.log_softmax(table)
  divergence = jnp.sum(jnp.exp(old) * ratio, axis=-1)
  return dataclasses.replace(stats, divergence=divergence[tokens.states])


def token_moments(
  logits: Float[Array, 'P S K'], tokens: Tokens
) -> TokenMoments:
  """Moments of π such as Σ π², of each token's state."""
  table = _table(logits, tokens)
  return token_stats_from_logits(
    table[tokens.states], tokens.actions, moments=True
  )[1]


def token_context(
  logits: Float[Array, 'P S K'],
  tokens: Tokens,
  old_logits: Float[Array, 'P S K'],
  **extra: Any,
) -> dict[str, Any]:
  """Context of a token chain, with the entries that the trainer provides.

  Args:
    logits: logits of the policy.
    tokens: the tokens of the update.
    old_logits: logits of the policy that sampled the tokens.
    **extra: further entries such as `step` and `key`.
  """
  old = token_statistics(old_logits, tokens)
  stats = token_statistics(logits, tokens)
  weights = tokens.weights
  return {
    'advantages': tokens.advantages,
    'old_logprobs': old.logprobs,
    'old_entropy': old.entropy,
    'old_moments': token_moments(old_logits, tokens),
    'moments': token_moments(logits, tokens),
    'mask': tokens.mask,
    'weights': weights,
    'entropy': jnp.sum(stats.entropy * weights) / jnp.sum(weights),
    **extra,
  }


def update(
  logits: Float[Array, 'P S K'],
  tokens: Tokens,
  token_tx: optax.GradientTransformation,
  token_state: PyTree | None = None,
  *,
  learning_rate: ArrayLike,
  old_logits: Float[Array, 'P S K'] | None = None,
  full_divergence: bool = False,
  **context: Any,
) -> UpdateResult:
  """Updates a tabular policy in the same way as the trainer.

  Args:
    logits: logits of the policy.
    tokens: the tokens of the update.
    token_tx: the token chain.
    token_state: state of the chain; the initial one by default.
    learning_rate: η of plain gradient descent.
    old_logits: logits of the policy that sampled the tokens; `logits` by
      default.
    full_divergence: whether the statistics include the full KL(π_old ‖ π).
    **context: further entries of the chain's context, such as `step` and `key`.
  """
  check_array('learning_rate', learning_rate, 'real', '')
  check_number('learning_rate', learning_rate, 0)
  old_logits = logits if old_logits is None else old_logits
  check_logits('old_logits', old_logits, logits.shape)
  reference = old_logits if full_divergence else None
  stats, pull_back = jax.vjp(
    lambda table: token_statistics(table, tokens, reference), logits
  )
  if token_state is None:
    token_state = token_tx.init(TokenStats.template())
  entries = token_context(logits, tokens, old_logits, **context)
  loss = jax.value_and_grad(policy_gradient, has_aux=True)
  (_, aux), signal = loss(stats, **entries)
  signal, token_state = update_signal(
    token_tx, signal, token_state, stats, **(entries | aux.for_selection)
  )
  (gradient,) = pull_back(signal)
  return UpdateResult(logits - learning_rate * gradient, token_state)


def _table(
  logits: Float[Array, 'P S K'], tokens: Tokens
) -> Float[Array, 'N K']:
  """Logits of every state; the tokens' states and actions must be in it."""
  check_logits('logits', logits)
  table = logits.reshape(-1, logits.shape[-1])
  check_indices('states', tokens.states, table.shape[0])
  check_indices('actions', tokens.actions, table.shape[1])
  return table
