# SPDX-License-Identifier: Apache-2.0
"""A batch of sampled tokens, and the entropy change of updates on it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float

import covrl
from covrl.array_checks import check_array, check_number
from covrl.entropy import DecisionCache
from covrl.theory import categorical, tabular, trees
from covrl.theory.argument_checks import check_finite
from covrl.theory.claim import Settings
from covrl.theory.float64 import cached_in_float64

LEARNING_RATE = 1e-5  # small enough for the first order to be accurate
CLIP_COV_DRAWS = 64


class Batch(NamedTuple):
  """Tokens sampled in a few bandits, with their scores.

  Attributes:
    tree: one bandit per prompt.
    logits: logits of the policy that sampled the tokens.
    tokens: one token per response.
    exact_scores: exact score c* of each token.
    covariance: (log π − mean)(A − mean), the published score of each token.
  """

  tree: trees.Tree
  logits: jax.Array
  tokens: tabular.Tokens
  exact_scores: Float[np.ndarray, 'B T']
  covariance: Float[np.ndarray, 'B T']


@cached_in_float64
def sample_bandit_batch(settings: Settings) -> Batch:
  """Samples 64 responses of one token to each of four prompts."""
  rng = settings.rng()
  tree = trees.random_tree(rng, prompts=4, depth=1, actions=8)
  logits = jnp.asarray(1.5 * rng.normal(size=tree.rewards.shape))
  tokens, *scores = _sample(tree, logits, settings.key())
  return Batch(tree, logits, tokens, *map(np.asarray, scores))


@jax.jit
def _sample(
  tree: trees.Tree, logits: jax.Array, key: jax.Array
) -> tuple[tabular.Tokens, jax.Array, jax.Array]:
  """Samples tokens and computes their scores, compiled."""
  noise = tabular.gumbel_noise(key, tree=tree, responses=64)
  tokens = tabular.sample_tokens(tree, logits, noise)
  stats = tabular.token_statistics(logits, tokens)
  moments = tabular.token_moments(logits, tokens)
  return (
    tokens,
    covrl.exact_score(stats, moments, tokens.advantages),
    covrl.token_covariance(stats.logprobs, tokens.advantages, tokens.mask),
  )


def top_tokens(
  scores: Float[np.ndarray, 'B T'], fraction: float
) -> Bool[np.ndarray, 'B T']:
  """Mask of the tokens with the highest scores.

  Raises:
    ValueError: a score is not finite, or the fraction is outside [0, 1].
  """
  check_finite('scores', scores, 'B T')
  check_number('fraction', fraction, 0, 1)
  return np.asarray(_top_tokens(jnp.asarray(scores), fraction))


@jax.jit
def _top_tokens(scores: jax.Array, fraction: jax.Array) -> jax.Array:
  """Selects the tokens with the highest scores, compiled."""
  mask = jnp.ones(scores.shape, bool)
  return covrl.select_top(scores, mask, fraction=fraction)


@cached_in_float64
def draw_clip_cov(
  settings: Settings, low: float, high: float
) -> tuple[covrl.Selection, Float[np.ndarray, 'D P K']]:
  """Applies `covrl.clip_cov` to the batch, with independent random draws.

  Args:
    settings: settings of the run.
    low: lower end of the covariances from which tokens are drawn.
    high: upper end.

  Returns:
    `CLIP_COV_DRAWS` selections as NumPy arrays, and the logits after an update
    with each of them.

  Raises:
    ValueError: the ends are NaN, or the upper one is below the lower one.
  """
  if not low <= high:
    raise ValueError(f'high must be at least low, {low:g}, got {high:g}')
  batch = sample_bandit_batch(settings)
  drawn = _draw_clip_cov(batch.logits, batch.tokens, settings.key(), low, high)
  selection, logits = jax.tree.map(np.asarray, drawn)
  return selection, logits[:, :, 0]


@jax.jit
def _draw_clip_cov(
  logits: jax.Array,
  tokens: tabular.Tokens,
  key: jax.Array,
  low: jax.Array,
  high: jax.Array,
) -> tuple[covrl.Selection, jax.Array]:
  """Selections and updated logits of `draw_clip_cov`, compiled."""
  chain = covrl.clip_cov(0.1, low, high, allow_large=True)

  def draw(index: jax.Array) -> tuple[covrl.Selection, jax.Array]:
    cache = DecisionCache()
    updated = tabular.update(
      logits,
      tokens,
      chain,
      learning_rate=LEARNING_RATE,
      step=jnp.zeros((), int),
      key=key,
      sequence_ids=tabular.sequence_ids(tokens, index),
      decisions=cache,
    )
    return cache.selections()[0], updated.logits

  return jax.vmap(draw)(jnp.arange(CLIP_COV_DRAWS))


def updated_logits(
  batch: Batch, weight_factors: Float[np.ndarray, 'B T'] | float = 1.0
) -> Float[np.ndarray, 'P K']:
  """Logits after one policy gradient update on the batch.

  Args:
    batch: the batch.
    weight_factors: factors of the tokens' weights; 0 detaches a token.

  Raises:
    ValueError: the factors are not finite, or not one per token.
  """
  if np.ndim(weight_factors):
    check_array(
      'weight_factors',
      weight_factors,
      'float',
      'B T',
      batch.tokens.weights.shape,
    )
  check_finite('weight_factors', weight_factors)
  weights = batch.tokens.weights * weight_factors
  tokens = batch.tokens._replace(weights=weights)
  return np.asarray(_updated_logits(batch.logits, tokens))[:, 0]


@jax.jit
def _updated_logits(logits: jax.Array, tokens: tabular.Tokens) -> jax.Array:
  """Logits after an update on weighted tokens, compiled."""
  return tabular.update(
    logits, tokens, optax.identity(), learning_rate=LEARNING_RATE
  ).logits


def entropy_decrease(
  batch: Batch, weight_factors: Float[np.ndarray, 'B T'] | float = 1.0
) -> float:
  """−ΔH/η of the update of `updated_logits`, summed over prompts.

  The tokens' weights sum to 1 over all prompts together, so the prediction of this
  sum is the mean 1/N Σ c* over tokens.
  """
  before = categorical.softmax(np.asarray(batch.logits)[:, 0])
  after = categorical.softmax(updated_logits(batch, weight_factors))
  decrease = categorical.entropy(before) - categorical.entropy(after)
  return float(decrease.sum() / LEARNING_RATE)
