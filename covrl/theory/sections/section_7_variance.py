# SPDX-License-Identifier: Apache-2.0
"""Section VII.A, structure: the variance of updates under Clip-Cov.

In the statements, μ and σ² (Σ) are mean and variance (covariance) of the update by one
token, and p is the probability that the token is detached.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import covrl
from covrl.theory import categorical, tabular, trees
from covrl.theory.claim import Formula, Section, Settings
from covrl.theory.evidence import (
  EXACT_TOLERANCE,
  Curve,
  Evidence,
  Plot,
  at_least,
  at_most,
  close_to,
)

SECTION = Section('VII.A Variance of the update')
claim = SECTION.claim


@claim(
  'Thm VII.1 (27)',
  printed='Var((Δθ_cov)_j) ≤ Var((Δθ_pg)_j) for all j, strictly for Clip-Cov '
  'if a token can be selected.',
  corrected='Detaching with probability p gives (1 − p) σ² + p (1 − p) μ²: at most '
  'σ² only if (1 − p) μ² ≤ σ². The proof assumes that the variance of the '
  'conditional mean is 0.',
  verdict='fails',
  formula=lambda p, mu, sigma: (1 - p) * sigma**2 + p * (1 - p) * mu**2,
  wrong_formulas=(
    lambda p, mu, sigma: (1 - p) * sigma**2,
    lambda p, mu, sigma: (1 - p) * sigma**2 + p * mu**2,
  ),
)
def detached_variance(settings: Settings, formula: Formula) -> Evidence:
  """Enumerates a detached two-point variable, and samples covrl.clip_cov."""
  p, mu, sigma = 0.3, 1.0, 0.3
  values = np.array([mu - sigma, mu + sigma, 0.0])
  probabilities = np.array([(1 - p) / 2, (1 - p) / 2, p])
  variance = probabilities @ values**2 - (probabilities @ values) ** 2
  ratios = _variance_ratios(settings)
  rises = (ratios > 1.01).mean()
  means, spreads = np.linspace(0, 3, 31), 1.0
  return Evidence(
    printed=[
      at_most(
        'variance divided by σ², μ = 1, σ = 0.3, p = 0.3',
        variance / sigma**2,
        1.0,
      )
    ],
    corrected=[
      at_most(
        'error of the formula',
        abs(formula(p, mu, sigma) - variance),
        EXACT_TOLERANCE,
      ),
      at_least('largest ratio under covrl.clip_cov', ratios.max(), 1.05),
      at_least('fraction of components whose variance it raises', rises, 0.02),
    ],
    plots=[
      Plot(
        'Detaching adds variance for large |μ|/σ',
        '|μ|/σ of a component of the update',
        'variance relative to no method',
        [
          Curve(f'p = {q:g}', means, formula(q, means, spreads))
          for q in (0.1, 0.3, 0.6)
        ],
        caption='According to inequality (27) every curve stays below 1.',
      )
    ],
  )


@claim(
  'Thm VII.1 (28)',
  printed='Cov(Δθ_cov) ⪯ Cov(Δθ_reg) in the Loewner order.',
  corrected='It would not even follow from the order of all variances. For '
  'independent detaching the covariance is (1 − p) Σ + p (1 − p) μ μᵀ, and the '
  'order fails if (1 − p) μᵀ Σ⁻¹ μ > 1; under Clip-Cov it fails as well.',
  verdict='fails',
  formula=lambda p, sigma, mu: (1 - p) * sigma + p * (1 - p) * np.outer(mu, mu),
  wrong_formulas=(lambda p, sigma, mu: (1 - p) * sigma,),
)
def loewner_order(settings: Settings, formula: Formula) -> Evidence:
  """Compares covariances of updates with and without detaching."""
  rng, p = settings.rng(), 0.3
  pi, advantages = categorical.softmax(rng.normal(size=5)), rng.normal(size=5)
  sampled_updates = advantages[:, None] * (np.eye(5) - pi)
  zeros = np.zeros((1, 5))
  detached = categorical.weighted_covariance(
    np.append((1 - p) * pi, p), np.concatenate([sampled_updates, zeros])
  )
  predicted = formula(
    p,
    categorical.weighted_covariance(pi, sampled_updates),
    pi @ sampled_updates,
  )
  least = _least_eigenvalues(settings)
  edges = np.arange(np.floor(10 * least.min()) / 10, 0.75, 0.1)
  counts = np.histogram(least, edges)[0] / least.size
  example = np.linalg.eigvalsh(np.eye(2) - np.array([[0.9, 0.5], [0.5, 0.9]]))
  return Evidence(
    printed=[at_least('least λ_min/λ_max of Σ_pg − Σ_cov', least.min(), -0.01)],
    corrected=[
      at_most(
        'error of the formula, enumerated',
        abs(predicted - detached).max(),
        EXACT_TOLERANCE,
      ),
      at_least(
        'fraction of bandits where it fails', (least < -0.01).mean(), 0.1
      ),
      close_to(
        'least eigenvalue of I − [[.9, .5], [.5, .9]]',
        example[0],
        -0.4,
        EXACT_TOLERANCE,
      ),
    ],
    plots=[
      Plot(
        'Distribution of violations of the Loewner order',
        'least eigenvalue of the difference, divided by the largest of Σ',
        'fraction of random bandits, %',
        [Curve('bandits', (edges[1:] + edges[:-1]) / 2, 100 * counts)],
        caption=CAPTION,
        bars=True,
      )
    ],
  )


CAPTION = (
  'Theorem VII.1, (28): batches of 32 tokens, a quarter of them detached by '
  'Clip-Cov. According to the theorem all bars are at or above 0.'
)


@functools.cache
def _update_covariances(settings: Settings) -> Float[np.ndarray, 'N 2 K K']:
  """Covariances of plain and Clip-Cov updates of random bandits."""
  bandits, batches = settings.choose(100, 40), settings.choose(1000, 300)
  rng = settings.rng()
  rewards, logits = rng.normal(size=(2, bandits, 1, 1, 5))
  updates = np.asarray(
    _sampled_updates(rewards, logits, settings.key(), batches)
  )
  updates = updates - updates.mean(1, keepdims=True)
  return np.einsum('bnci,bncj->bcij', updates, updates) / batches


@functools.partial(jax.jit, static_argnums=3)
def _sampled_updates(
  rewards: Float[jax.Array, 'N 1 1 K'],
  logits: Float[jax.Array, 'N 1 1 K'],
  key: jax.Array,
  batches: int,
) -> Float[jax.Array, 'N M 2 K']:
  """Plain and Clip-Cov updates of bandits, from many batches of 32."""

  def updates_of_batch(
    rewards: jax.Array, logits: jax.Array, noise: jax.Array, batch: jax.Array
  ) -> jax.Array:
    tree = trees.full_tree(rewards[:, 0], 1)
    tokens = tabular.sample_tokens(tree, logits, noise, scale=None)

    def change(fraction: jax.Array) -> jax.Array:
      chain = covrl.clip_cov(fraction, 0.1, 50.0, allow_large=True)
      updated = tabular.update(
        logits,
        tokens,
        chain,
        learning_rate=1.0,
        step=jnp.zeros((), int),
        key=key,
        sequence_ids=tabular.sequence_ids(tokens, batch),
      )
      return (updated.logits - logits)[0, 0]

    return jax.vmap(change)(jnp.array([0.0, 0.25]))

  bandits = len(rewards)
  draw, key = jax.random.split(key)
  tree = trees.full_tree(rewards[0, :, 0], 1)
  noise = tabular.gumbel_noise(draw, bandits, batches, tree=tree, responses=32)
  indices = jnp.arange(bandits * batches).reshape(bandits, batches)
  over_batches = jax.vmap(updates_of_batch, (None, None, 0, 0))
  return jax.vmap(over_batches)(rewards, logits, noise, indices)


def _variance_ratios(settings: Settings) -> Float[np.ndarray, 'N K']:
  """Variance of each component under Clip-Cov divided by the plain one."""
  plain, detached = np.moveaxis(
    np.diagonal(_update_covariances(settings), axis1=-2, axis2=-1), 1, 0
  )
  return detached / plain


def _least_eigenvalues(settings: Settings) -> Float[np.ndarray, ' N']:
  """Least eigenvalue of the difference divided by the largest plain one.

  Restricted to vectors with sum 0, since updates do not change the sum.
  """
  covariances = _update_covariances(settings)
  basis = np.linalg.qr(np.eye(5)[:, :4] - 0.2)[0]  # Vectors with sum 0.
  plain, detached = np.moveaxis(basis.T @ covariances @ basis, 1, 0)
  least = np.linalg.eigvalsh(plain - detached)[:, 0]
  return least / np.linalg.eigvalsh(plain)[:, -1]
