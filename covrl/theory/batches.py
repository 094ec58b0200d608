# SPDX-License-Identifier: Apache-2.0
"""One batch of sampled tokens, and what updates of it do to entropy."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float

import covrl
from covrl.entropy.base import init_token_state
from covrl.theory import softmax as sm
from covrl.theory import tokens as tk
from covrl.theory import tree as trees
from covrl.theory.claims import Lab

RATE = 1e-5  # η of an update: small, as first order wants


class Batch(NamedTuple):
  """Sampled tokens of a few bandits, and scores of each.

  Attributes:
    tree: one node per prompt.
    logits: of the policy that sampled them.
    tokens: one a response.
    exact: c* of each.
    covariance: (log π − mean)(A − mean), as published.
  """

  tree: trees.Tree
  logits: jax.Array
  tokens: tk.Tokens
  exact: Float[np.ndarray, 'B T']
  covariance: Float[np.ndarray, 'B T']


@functools.cache
def sampled_bandit(lab: Lab) -> Batch:
  """64 responses of one token to each of four prompts, the same for all."""
  random = lab.random()
  tree = trees.random_tree(random, prompts=4, depth=1, actions=8)
  logits = jnp.asarray(1.5 * random.normal(size=tree.rewards.shape))
  tokens, *scores = _sampled(tree, logits, lab.key())
  return Batch(tree, logits, tokens, *map(np.asarray, scores))


@jax.jit
def _sampled(
  tree: trees.Tree, logits: jax.Array, key: jax.Array
) -> tuple[tk.Tokens, jax.Array, jax.Array]:
  noise = tk.noise(key, tree=tree, responses=64)
  tokens = tk.sampled(tree, logits, noise)
  stats = tk.statistics(logits, tokens)
  moments = tk.moments(logits, tokens)
  return (
    tokens,
    covrl.exact_score(stats, moments, tokens.advantages),
    covrl.token_covariance(stats.logprobs, tokens.advantages, tokens.mask),
  )


def top(
  scores: Float[np.ndarray, 'B T'], fraction: float
) -> Bool[np.ndarray, 'B T']:
  """The tokens of highest score."""
  return np.asarray(_top(jnp.asarray(scores), fraction))


@jax.jit
def _top(scores: jax.Array, fraction: jax.Array) -> jax.Array:
  mask = jnp.ones(scores.shape, bool)
  return covrl.select_top(scores, mask, fraction=fraction)


DRAWS = 64  # of Clip-Cov


@functools.cache
def clipped(
  lab: Lab, low: float, high: float
) -> tuple[covrl.Selection, Float[np.ndarray, 'D P K']]:
  """What covrl.clip_cov draws of the batch, and the logits after its update.

  Args:
    lab: which lab.
    low: lower edge of the band.
    high: upper edge.

  Returns:
    So many selections, as NumPy arrays, and logits.
  """
  batch = sampled_bandit(lab)
  made = _clipped(batch.logits, batch.tokens, lab.key(), low, high)
  selection, logits = jax.tree.map(np.asarray, made)
  return selection, logits[:, :, 0]


@jax.jit
def _clipped(
  logits: jax.Array,
  tokens: tk.Tokens,
  key: jax.Array,
  low: jax.Array,
  high: jax.Array,
) -> tuple[covrl.Selection, jax.Array]:
  chain = covrl.clip_cov(0.1, low, high, allow_large=True)

  def draw(which: jax.Array) -> tuple[covrl.Selection, jax.Array]:
    plan = covrl.Plan()
    made = tk.update(
      logits,
      tokens,
      chain,
      init_token_state(chain),
      learning_rate=RATE,
      step=jnp.zeros((), int),
      key=key,
      sequence_ids=tk.names(tokens, which),
      plan=plan,
    )
    return plan.selections()[0], made.logits

  return jax.vmap(draw)(jnp.arange(DRAWS))


def updated(
  batch: Batch, kept: Float[np.ndarray, 'B T'] | float = 1.0
) -> Float[np.ndarray, 'P K']:
  """The logits after one update, its tokens' weights multiplied by `kept`."""
  weights = batch.tokens.weights * kept
  tokens = batch.tokens._replace(weights=weights)
  return np.asarray(_updated(batch.logits, tokens))[:, 0]


@jax.jit
def _updated(logits: jax.Array, tokens: tk.Tokens) -> jax.Array:
  chain = optax.identity()
  state = init_token_state(chain)
  return tk.update(logits, tokens, chain, state, learning_rate=RATE).logits


def entropy_taken(
  batch: Batch, kept: Float[np.ndarray, 'B T'] | float = 1.0
) -> float:
  """−ΔH/η of such an update, summed over prompts.

  The sum, since each prompt has its share of the weight: 1/N Σ c* foretells it.
  """
  before = sm.entropy(sm.softmax(np.asarray(batch.logits)[:, 0]))
  after = sm.entropy(sm.softmax(updated(batch, kept)))
  return float((before - after).sum() / RATE)
