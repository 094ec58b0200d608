# SPDX-License-Identifier: Apache-2.0
"""Section VII.A, structure: what is sparse, what varies, and by how much."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

import covrl
from covrl.entropy.chain import init_token_state, update_signal
from covrl.theory import softmax as sm
from covrl.theory import tokens as tk
from covrl.theory import tree as trees
from covrl.theory.claims import (
  Curve,
  Evidence,
  Formula,
  Lab,
  Picture,
  Section,
  above,
  below,
)
from covrl.theory.section_3 import EXACT

SECTION = Section('VII.A Structural differences')
claim = SECTION.claim


@claim(
  'Def. VII.1',
  printed='Local regularisation leaves the tokens it does not select '
  'unaffected.',
  holds='True of cotangents always, and of policies in a table. Where '
  'parameters are shared, a push Δz on one state moves another’s logits by '
  'the kernel: ⟨φ, φ′⟩ Δz for features φ.',
  verdict='holds if no parameters are shared',
  formula=lambda kernel, push: kernel * push,
)
def locality(lab: Lab, formula: Formula) -> Evidence:
  """A policy that is linear in features: one token is detached."""
  random = lab.random()
  weights, features = random.normal(size=(5, 3)), random.normal(size=(2, 3))
  pi = sm.softmax(features @ weights.T)
  push = 0.7 * (np.eye(5)[2] - pi[0])
  moved = np.outer(push, features[0]) @ features[1]
  kernel = features[0] @ features[1]
  stats = covrl.TokenStats(
    logprobs=jnp.asarray([[-1.0, -2.0]]), entropy=jnp.ones((1, 2))
  )
  chain = covrl.token_masked(
    optax.set_to_zero(), lambda stats, **_: stats.logprobs > -1.5
  )
  edited, _ = update_signal(chain, stats, init_token_state(chain), stats)
  return Evidence(
    printed=[
      below('push on a state that was not selected', abs(moved).max(), 0.0)
    ],
    holds=[
      below(
        'that push less the kernel’s',
        abs(moved - formula(kernel, push)).max(),
        EXACT,
      ),
      below(
        'change of a cotangent that was not selected',
        abs(edited.logprobs - stats.logprobs)[0, 1],
        0.0,
      ),
    ],
  )


@claim(
  'Thm VII.1 (23)–(25)',
  printed='α ∇H is deterministic and dense (non-zero for all parameters), so '
  'it leaves the covariance Σ_pg of the update as it is.',
  holds='∇H vanishes at a uniform state, wherever log π = −H, and as O(ε log ε) '
  'near determinism. A state’s part of it is added when the state is visited: '
  'over n responses that has variance ρ (1 − ρ) (π f)²/n. (24) lacks η.',
  verdict='fails',
  formula=lambda rho, n, g: rho * (1 - rho) * g**2 / n,
)
def dense_bias(lab: Lab, formula: Formula) -> Evidence:
  """Counts visits of a state in many batches."""
  pi = sm.softmax(np.array([[1.0, 0.2, -0.5, -2.0]]))
  push = -pi * sm.surprise(pi)
  visited = lab.random().binomial(16, 0.3, size=200_000) / 16
  variance = (visited[:, None] * push).var(0)
  predicted = formula(0.3, 16, push[0])
  uniform = np.full((1, 4), 0.25)
  return Evidence(
    printed=[
      above(
        'least |∂H/∂z| at a uniform state',
        abs(uniform * sm.surprise(uniform)).min(),
        1e-15,
      ),
      below('variance the bonus adds', variance.max(), 0.0),
    ],
    holds=[
      below(
        'relative error of ρ (1 − ρ)(π f)²/n',
        abs(predicted / variance - 1).max(),
        0.02,
      )
    ],
  )


@claim(
  'Thm VII.1 (26)',
  printed='The update is Δθ_pg + β B_cov with B_cov deterministic.',
  holds='Which tokens are selected is random, and so is π − π_old, which the '
  'sampled updates before it made: to first order its covariance is J C Jᵀ, '
  'J = diag π − π πᵀ and C that of the sampled update.',
  verdict='fails',
  formula=lambda jacobian, c: jacobian @ c @ jacobian.T,
)
def random_bias(lab: Lab, formula: Formula) -> Evidence:
  """Enumerates the penalty after each possible first sample."""
  random, rate = lab.random(), 1e-4
  pi = sm.softmax(random.normal(size=6))
  own = random.normal(size=6)
  each = own[:, None] * (np.eye(6) - pi)
  moved = sm.softmax(np.log(pi) + rate * each) - pi
  measured = _covariance(pi, moved)
  jacobian = np.diag(pi) - np.outer(pi, pi)
  predicted = formula(jacobian, rate**2 * _covariance(pi, each))
  scale = abs(measured).max()
  return Evidence(
    printed=[below('variance of π − π_old over η²', scale / rate**2, 0.0)],
    holds=[
      below(
        'relative error of J C Jᵀ',
        abs(predicted - measured).max() / scale,
        1e-3,
      )
    ],
  )


def _covariance(
  weights: Float[np.ndarray, ' n'], x: Float[np.ndarray, 'n K']
) -> Float[np.ndarray, 'K K']:
  """Of the rows of x, drawn with these probabilities."""
  deviation = x - weights @ x
  return (weights[:, None] * deviation).T @ deviation


@claim(
  'Thm VII.1 (27)',
  printed='Var((Δθ_cov)_j) ≤ Var((Δθ_pg)_j) for all j.',
  holds='Detaching with probability p gives (1 − p) σ² + p (1 − p) μ²: at most '
  'σ² only if (1 − p) μ² ≤ σ². The proof drops the mean.',
  verdict='fails',
  formula=lambda p, mu, sigma: (1 - p) * sigma**2 + p * (1 - p) * mu**2,
)
def detached_variance(lab: Lab, formula: Formula) -> Evidence:
  """A detached two-point variable, enumerated; and the real method."""
  p, mu, sigma = 0.3, 1.0, 0.3
  values = np.array([mu - sigma, mu + sigma, 0.0])
  chances = np.array([(1 - p) / 2, (1 - p) / 2, p])
  variance = chances @ values**2 - (chances @ values) ** 2
  ratios = _variance_ratios(lab)
  means, spreads = np.linspace(0, 3, 31), 1.0
  return Evidence(
    printed=[
      below('variance over σ²: μ = 1, σ = .3, p = .3', variance / sigma**2, 1.0)
    ],
    holds=[
      below(
        'error of the formula', abs(formula(p, mu, sigma) - variance), EXACT
      ),
      above(
        'largest ratio, a quarter of real batches detached', ratios.max(), 1.05
      ),
    ],
    pictures=[
      Picture(
        'Detaching adds variance where the signal is strong',
        '|μ|/σ of a component of the update',
        'variance, relative to no method',
        [
          Curve(f'p = {q:g}', means, formula(q, means, spreads))
          for q in (0.1, 0.3, 0.6)
        ],
        caption='Inequality (27) says that every curve stays below 1.',
      )
    ],
  )


@claim(
  'Thm VII.1 (28)',
  printed='Cov(Δθ_cov) ⪯ Cov(Δθ_reg) in the Loewner order.',
  holds='Not even an order of all variances would give it. For independent '
  'detaching the covariance is (1 − p) Σ + p (1 − p) μ μᵀ, and the order fails '
  'where (1 − p) μᵀ Σ⁻¹ μ > 1; selection by covariance fails it as well.',
  verdict='fails',
  formula=lambda p, sigma, mu: (1 - p) * sigma + p * (1 - p) * np.outer(mu, mu),
)
def loewner_order(lab: Lab, formula: Formula) -> Evidence:
  """Covariances of the real update, with and without detaching."""
  random, p = lab.random(), 0.3
  pi, own = sm.softmax(random.normal(size=5)), random.normal(size=5)
  each = own[:, None] * (np.eye(5) - pi)
  zeros = np.zeros((1, 5))
  detached = _covariance(
    np.append((1 - p) * pi, p), np.concatenate([each, zeros])
  )
  predicted = formula(p, _covariance(pi, each), pi @ each)
  least = _least_eigenvalues(lab)
  edges = np.linspace(np.floor(5 * least.min()) / 5, 0.2, 15)
  counts = np.histogram(least, edges)[0] / least.size
  example = np.linalg.eigvalsh(np.eye(2) - np.array([[0.9, 0.5], [0.5, 0.9]]))
  return Evidence(
    printed=[
      below('greatest −λ_min/λ_max of Σ_pg − Σ_cov', -least.min(), 1e-9)
    ],
    holds=[
      below(
        'error of the formula, enumerated',
        abs(predicted - detached).max(),
        EXACT,
      ),
      below('least eigenvalue of I − [[.9, .5], [.5, .9]]', example[0], -0.39),
    ],
    pictures=[
      Picture(
        'How often the Loewner order fails',
        'least eigenvalue of the difference, over the largest',
        'of random bandits, %',
        [Curve('bandits', (edges[1:] + edges[:-1]) / 2, 100 * counts)],
        caption='Batches of 32 tokens, the 8 of highest published covariance '
        'detached. The theorem puts all of them at or above 0.',
        bars=True,
      )
    ],
  )


@functools.cache
def _update_covariances(lab: Lab) -> Float[np.ndarray, 'B 2 K K']:
  """Of the plain and of the detached update, for random bandits."""
  bandits, batches = lab.size(60, 16), lab.size(1000, 300)
  random = lab.random()
  rewards = random.normal(size=(bandits, 1, 1, 5))
  logits = random.normal(size=(bandits, 1, 1, 5))
  chains = (
    optax.identity(),
    covrl.token_masked(
      optax.set_to_zero(), covrl.top_score(0.25, allow_large=True)
    ),
  )

  def one(rewards: jax.Array, logits: jax.Array, key: jax.Array) -> jax.Array:
    ends = jnp.ones(rewards.shape, bool)
    tree = trees.Tree(rewards=rewards, ends=ends, depth=1)
    tokens = tk.sampled(tree, logits, key, responses=32, scale=None)
    moved = [
      tk.update(
        logits, tokens, chain, init_token_state(chain), learning_rate=1.0
      ).logits
      for chain in chains
    ]
    return jnp.stack([after - logits for after in moved])[:, 0, 0]

  over_batches = jax.vmap(one, (None, None, 0))
  keys = jax.random.split(lab.key(), (bandits, batches))
  moves = jax.jit(jax.vmap(over_batches))(rewards, logits, keys)
  moves = np.asarray(moves) - np.asarray(moves).mean(1, keepdims=True)
  return np.einsum('bnci,bncj->bcij', moves, moves) / batches


def _variance_ratios(lab: Lab) -> Float[np.ndarray, 'B K']:
  plain, detached = np.moveaxis(
    np.diagonal(_update_covariances(lab), axis1=-2, axis2=-1), 1, 0
  )
  return detached / plain


def _least_eigenvalues(lab: Lab) -> Float[np.ndarray, ' B']:
  """Least over largest eigenvalue of the difference."""
  covariances = _update_covariances(lab)
  values = np.linalg.eigvalsh(covariances[:, 0] - covariances[:, 1])
  largest = np.linalg.eigvalsh(covariances[:, 0])[:, -1]
  return values[:, 0] / largest
