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
from covrl.entropy.base import init_token_state, update_signal
from covrl.theory import softmax as sm
from covrl.theory import tokens as tk
from covrl.theory import tree as trees
from covrl.theory.claims import (
  EXACT,
  Curve,
  Evidence,
  Formula,
  Lab,
  Picture,
  Section,
  above,
  below,
  near,
)

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
  """Policies linear in features, shared and one-hot: a push on one state."""
  random = lab.random()
  weights, features = random.normal(size=(5, 3)), random.normal(size=(2, 3))
  pi = sm.softmax(features @ weights.T)
  push = 0.7 * (np.eye(5)[2] - pi[0])

  def carried(features: Float[np.ndarray, '2 D']) -> Float[np.ndarray, ' K']:
    return np.outer(push, features[0]) @ features[1]

  kernel = features[0] @ features[1]
  stats = covrl.TokenStats(
    logprobs=jnp.asarray([[-1.0, -2.0]]), entropy=jnp.ones((1, 2))
  )
  chain = covrl.token_masked(
    optax.set_to_zero(), lambda stats, **_: stats.logprobs > -1.5
  )
  edited, _ = update_signal(chain, stats, init_token_state(chain), stats)
  return Evidence(
    printed=[below('push on another state', abs(carried(features)).max(), 0.0)],
    given=[
      below(
        'push on another state of a table', abs(carried(np.eye(2))).max(), 0.0
      )
    ],
    holds=[
      below(
        'that push less the kernel’s',
        abs(carried(features) - formula(kernel, push)).max(),
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
  'over n responses that has variance α² ρ (1 − ρ)(π f)²/n. (24) lacks η.',
  verdict='fails',
  formula=lambda rho, n, push: rho * (1 - rho) * push**2 / n,
  slips=(lambda rho, n, push: rho * push**2 / n,),
)
def dense_bias(lab: Lab, formula: Formula) -> Evidence:
  """Enumerates what covrl's bonus does to pairs of responses."""
  logits = jnp.asarray(lab.random().normal(size=(1, 4, 3)))
  pi = sm.softmax(np.asarray(logits)[0])
  pairs = [(a, b) for a in range(3) for b in range(3)]
  chances = np.array([pi[0, a] * pi[0, b] for a, b in pairs])
  moves = np.asarray(_bonus_moves(logits, jnp.asarray(pairs)))[:, 0]
  first = _covariance(chances, moves[:, 1])  # Of the state after action 0.
  push = pi[1] * sm.surprise(pi[1])
  predicted = formula(pi[0, 0], 2, push)
  uniform = np.full((1, 4), 0.25)
  return Evidence(
    printed=[
      above(
        'least |∂H/∂z| at a uniform state',
        abs(uniform * sm.surprise(uniform)).min(),
        1e-15,
      ),
      below('variance that the bonus adds', np.diag(first).max(), 0.0),
    ],
    holds=[
      below(
        'relative error of ρ (1 − ρ)(π f)²/n, α = 1',
        abs(predicted / np.diag(first) - 1).max(),
        1e-9,
      ),
    ],
  )


@jax.jit
def _bonus_moves(logits: jax.Array, pairs: jax.Array) -> jax.Array:
  """Logits moved by the bonus alone, for each pair of first actions."""
  chain = covrl.entropy_bonus(1.0)

  def move(pair: jax.Array) -> jax.Array:
    root, last = jnp.zeros_like(pair), jnp.zeros_like(pair)
    tokens = tk.Tokens(
      states=jnp.stack([root, 1 + pair], 1),
      actions=jnp.stack([pair, last], 1),
      mask=jnp.ones((2, 2), bool),
      weights=jnp.full((2, 2), 0.5),
      advantages=jnp.zeros((2, 2)),
      rewards=jnp.zeros(2),
    )
    state = init_token_state(chain)
    made = tk.update(logits, tokens, chain, state, learning_rate=1.0)
    return made.logits - logits

  return jax.vmap(move)(pairs)


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
  printed='Var((Δθ_cov)_j) ≤ Var((Δθ_pg)_j) for all j, strictly for Clip-Cov '
  'where a token can be selected.',
  holds='Detaching with probability p gives (1 − p) σ² + p (1 − p) μ²: at most '
  'σ² only if (1 − p) μ² ≤ σ². The proof takes the variance of the conditional '
  'mean for 0.',
  verdict='fails',
  formula=lambda p, mu, sigma: (1 - p) * sigma**2 + p * (1 - p) * mu**2,
  slips=(
    lambda p, mu, sigma: (1 - p) * sigma**2,
    lambda p, mu, sigma: (1 - p) * sigma**2 + p * mu**2,
  ),
)
def detached_variance(lab: Lab, formula: Formula) -> Evidence:
  """A detached two-point variable, enumerated; and the real method."""
  p, mu, sigma = 0.3, 1.0, 0.3
  values = np.array([mu - sigma, mu + sigma, 0.0])
  chances = np.array([(1 - p) / 2, (1 - p) / 2, p])
  variance = chances @ values**2 - (chances @ values) ** 2
  ratios = _variance_ratios(lab)
  rises = (ratios > 1.01).mean()
  means, spreads = np.linspace(0, 3, 31), 1.0
  return Evidence(
    printed=[
      below('variance over σ²: μ = 1, σ = .3, p = .3', variance / sigma**2, 1.0)
    ],
    holds=[
      below(
        'error of the formula', abs(formula(p, mu, sigma) - variance), EXACT
      ),
      above('greatest ratio under covrl.clip_cov', ratios.max(), 1.05),
      above('share of components whose variance it raises', rises, 0.02),
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
  'where (1 − p) μᵀ Σ⁻¹ μ > 1; under Clip-Cov it fails as well.',
  verdict='fails',
  formula=lambda p, sigma, mu: (1 - p) * sigma + p * (1 - p) * np.outer(mu, mu),
  slips=(lambda p, sigma, mu: (1 - p) * sigma,),
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
  edges = np.arange(np.floor(10 * least.min()) / 10, 0.75, 0.1)
  counts = np.histogram(least, edges)[0] / least.size
  example = np.linalg.eigvalsh(np.eye(2) - np.array([[0.9, 0.5], [0.5, 0.9]]))
  return Evidence(
    printed=[above('least λ_min/λ_max of Σ_pg − Σ_cov', least.min(), -0.01)],
    holds=[
      below(
        'error of the formula, enumerated',
        abs(predicted - detached).max(),
        EXACT,
      ),
      above('share of bandits where it fails', (least < -0.01).mean(), 0.1),
      near(
        'least eigenvalue of I − [[.9, .5], [.5, .9]]', example[0], -0.4, EXACT
      ),
    ],
    pictures=[
      Picture(
        'How often the Loewner order fails',
        'least eigenvalue of the difference, over the largest of Σ',
        'of random bandits, %',
        [Curve('bandits', (edges[1:] + edges[:-1]) / 2, 100 * counts)],
        caption=CAPTION,
        bars=True,
      )
    ],
  )


CAPTION = (
  'Theorem VII.1, (28): batches of 32 tokens, a quarter of them detached by '
  'Clip-Cov. The theorem puts all bars at or above 0.'
)


@functools.cache
def _update_covariances(lab: Lab) -> Float[np.ndarray, 'N 2 K K']:
  """Of the plain update and of Clip-Cov's, for random bandits."""
  bandits, batches = lab.size(100, 40), lab.size(1000, 300)
  random = lab.random()
  rewards, logits = random.normal(size=(2, bandits, 1, 1, 5))
  moves = np.asarray(_moves(rewards, logits, lab.key(), batches))
  moves = moves - moves.mean(1, keepdims=True)
  return np.einsum('bnci,bncj->bcij', moves, moves) / batches


@functools.partial(jax.jit, static_argnums=3)
def _moves(
  rewards: Float[jax.Array, 'N 1 1 K'],
  logits: Float[jax.Array, 'N 1 1 K'],
  key: jax.Array,
  batches: int,
) -> Float[jax.Array, 'N M 2 K']:
  """Updates of bandits, plain and under Clip-Cov, from many batches of 32."""

  def one(
    rewards: jax.Array, logits: jax.Array, noise: jax.Array, batch: jax.Array
  ) -> jax.Array:
    tree = trees.full_tree(rewards[:, 0], 1)
    tokens = tk.sampled(tree, logits, noise, scale=None)

    def move(fraction: jax.Array) -> jax.Array:
      chain = covrl.clip_cov(fraction, 0.1, 50.0, allow_large=True)
      made = tk.update(
        logits,
        tokens,
        chain,
        init_token_state(chain),
        learning_rate=1.0,
        step=jnp.zeros((), int),
        key=key,
        sequence_ids=tk.names(tokens, batch),
      )
      return (made.logits - logits)[0, 0]

    return jax.vmap(move)(jnp.array([0.0, 0.25]))

  bandits = len(rewards)
  draw, key = jax.random.split(key)
  alike = trees.full_tree(rewards[0, :, 0], 1)
  noise = tk.noise(draw, bandits, batches, tree=alike, responses=32)
  which = jnp.arange(bandits * batches).reshape(bandits, batches)
  over_batches = jax.vmap(one, (None, None, 0, 0))
  return jax.vmap(over_batches)(rewards, logits, noise, which)


def _variance_ratios(lab: Lab) -> Float[np.ndarray, 'N K']:
  """Of each component, under Clip-Cov over plain."""
  plain, detached = np.moveaxis(
    np.diagonal(_update_covariances(lab), axis1=-2, axis2=-1), 1, 0
  )
  return detached / plain


def _least_eigenvalues(lab: Lab) -> Float[np.ndarray, ' N']:
  """Least of the difference over the largest of the plain.

  Within the directions in which logits move: their sum does not.
  """
  covariances = _update_covariances(lab)
  basis = np.linalg.qr(np.eye(5)[:, :4] - 0.2)[0]  # Of vectors that sum to 0.
  plain, detached = np.moveaxis(basis.T @ covariances @ basis, 1, 0)
  least = np.linalg.eigvalsh(plain - detached)[:, 0]
  return least / np.linalg.eigvalsh(plain)[:, -1]
