# SPDX-License-Identifier: Apache-2.0
"""Section VII.A, structure: locality, and randomness of the bias terms.

In the statements, ρ is the probability that a response visits a state, n the number
of responses, and f = log π + H.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

import covrl
from covrl.entropy.base import update_signal
from covrl.theory import categorical, tabular
from covrl.theory.claim import Formula, Section, Settings
from covrl.theory.evidence import (
  EXACT_TOLERANCE,
  Evidence,
  at_least,
  at_most,
)

SECTION = Section('VII.A Structural differences')
claim = SECTION.claim


@claim(
  'Def. VII.1',
  printed='Local regularisation leaves the tokens it does not select '
  'unaffected.',
  corrected='Always true of cotangents, and of tabular policies. If parameters '
  'are shared, an update Δz in one state changes the logits of another state by '
  '⟨φ, φ′⟩ Δz, the kernel of the features φ times Δz.',
  verdict='holds if no parameters are shared',
  formula=lambda kernel, update: kernel * update,
)
def locality(settings: Settings, formula: Formula) -> Evidence:
  """Updates one state of policies linear in shared and in one-hot features."""
  rng = settings.rng()
  weights, features = rng.normal(size=(5, 3)), rng.normal(size=(2, 3))
  pi = categorical.softmax(features @ weights.T)
  update = 0.7 * (np.eye(5)[2] - pi[0])

  def change_elsewhere(
    features: Float[np.ndarray, '2 D'],
  ) -> Float[np.ndarray, ' K']:
    return np.outer(update, features[0]) @ features[1]

  kernel = features[0] @ features[1]
  stats = covrl.TokenStats(
    logprobs=jnp.asarray([[-1.0, -2.0]]), entropy=jnp.ones((1, 2))
  )
  chain = covrl.token_masked(
    optax.set_to_zero(), lambda stats, **_: stats.logprobs > -1.5
  )
  edited, _ = update_signal(
    chain, stats, chain.init(covrl.TokenStats.template()), stats
  )
  return Evidence(
    printed=[
      at_most(
        'change of another state', abs(change_elsewhere(features)).max(), 0.0
      )
    ],
    conditional=[
      at_most(
        'change of another state of a tabular policy',
        abs(change_elsewhere(np.eye(2))).max(),
        0.0,
      )
    ],
    corrected=[
      at_most(
        'this change minus that given by the kernel',
        abs(change_elsewhere(features) - formula(kernel, update)).max(),
        EXACT_TOLERANCE,
      ),
      at_most(
        'change of the cotangent of an unselected token',
        abs(edited.logprobs - stats.logprobs)[0, 1],
        0.0,
      ),
    ],
  )


@claim(
  'Thm VII.1 (23)–(25)',
  printed='α ∇H is deterministic and dense (non-zero for all parameters), so '
  'it does not change the covariance Σ_pg of the update.',
  corrected='∇H vanishes for a uniform policy, wherever log π = −H, and as O(ε log '
  'ε) near determinism. A state contributes only if it is visited: over n '
  'responses its contribution has variance α² ρ (1 − ρ)(π f)²/n. (24) lacks η.',
  verdict='fails',
  formula=lambda rho, n, gradient: rho * (1 - rho) * gradient**2 / n,
  wrong_formulas=(lambda rho, n, gradient: rho * gradient**2 / n,),
)
def dense_bias(settings: Settings, formula: Formula) -> Evidence:
  """Enumerates the updates of covrl's bonus for pairs of responses."""
  logits = jnp.asarray(settings.rng().normal(size=(1, 4, 3)))
  pi = categorical.softmax(np.asarray(logits)[0])
  pairs = [(a, b) for a in range(3) for b in range(3)]
  probabilities = np.array([pi[0, a] * pi[0, b] for a, b in pairs])
  changes = np.asarray(_bonus_changes(logits, jnp.asarray(pairs)))[:, 0]
  covariance = categorical.weighted_covariance(
    probabilities, changes[:, 1]
  )  # For the state after action 0.
  gradient = pi[1] * categorical.centred_logprobs(pi[1])
  predicted = formula(pi[0, 0], 2, gradient)
  uniform = np.full((1, 4), 0.25)
  return Evidence(
    printed=[
      at_least(
        'least |∂H/∂z| for a uniform policy',
        abs(uniform * categorical.centred_logprobs(uniform)).min(),
        1e-15,
      ),
      at_most('variance that the bonus adds', np.diag(covariance).max(), 0.0),
    ],
    corrected=[
      at_most(
        'relative error of ρ (1 − ρ)(π f)²/n, α = 1',
        abs(predicted / np.diag(covariance) - 1).max(),
        1e-9,
      ),
    ],
  )


@jax.jit
def _bonus_changes(logits: jax.Array, pairs: jax.Array) -> jax.Array:
  """Change of the logits by the bonus alone, per pair of first actions."""
  chain = covrl.entropy_bonus(1.0)

  def change(pair: jax.Array) -> jax.Array:
    root, last = jnp.zeros_like(pair), jnp.zeros_like(pair)
    tokens = tabular.Tokens(
      states=jnp.stack([root, 1 + pair], 1),
      actions=jnp.stack([pair, last], 1),
      mask=jnp.ones((2, 2), bool),
      weights=jnp.full((2, 2), 0.5),
      advantages=jnp.zeros((2, 2)),
      rewards=jnp.zeros(2),
    )
    updated = tabular.update(logits, tokens, chain, learning_rate=1.0)
    return updated.logits - logits

  return jax.vmap(change)(pairs)


@claim(
  'Thm VII.1 (26)',
  printed='The update is Δθ_pg + β B_cov with B_cov deterministic.',
  corrected='The selection is random, and so is π − π_old, the result of earlier '
  'sampled updates: to first order its covariance is J C Jᵀ, with J = diag π − π '
  'πᵀ and C the covariance of the sampled update.',
  verdict='fails',
  formula=lambda jacobian, c: jacobian @ c @ jacobian.T,
)
def random_bias(settings: Settings, formula: Formula) -> Evidence:
  """Enumerates the penalty after every possible first sample."""
  rng, rate = settings.rng(), 1e-4
  pi = categorical.softmax(rng.normal(size=6))
  advantages = rng.normal(size=6)
  sampled_updates = advantages[:, None] * (np.eye(6) - pi)
  change = categorical.softmax(np.log(pi) + rate * sampled_updates) - pi
  measured = categorical.weighted_covariance(pi, change)
  jacobian = np.diag(pi) - np.outer(pi, pi)
  predicted = formula(
    jacobian, rate**2 * categorical.weighted_covariance(pi, sampled_updates)
  )
  scale = abs(measured).max()
  return Evidence(
    printed=[
      at_most('variance of π − π_old divided by η²', scale / rate**2, 0.0)
    ],
    corrected=[
      at_most(
        'relative error of J C Jᵀ',
        abs(predicted - measured).max() / scale,
        1e-3,
      )
    ],
  )
