# SPDX-License-Identifier: Apache-2.0
"""Section VI.C–D, KL-Cov: its selection and the effect of its penalty.

In the statements, C is a token's contribution to the covariance, c* its exact score
(`covrl.exact_score`), I_KL the set of selected tokens, and f = log π + H.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import covrl
from covrl.theory import categorical, sampled_batch, tabular, trees
from covrl.theory.claim import Formula, Section, Settings
from covrl.theory.evidence import (
  EXACT_TOLERANCE,
  Evidence,
  at_least,
  at_most,
)

SECTION = Section('VI.C–D KL-Cov')
claim = SECTION.claim


@claim(
  'Def. VI.3 (20)',
  printed='I_KL, the tokens that drive the collapse, are the top k ranked by '
  '|C(s, a)|.',
  corrected='Many of the tokens with the largest |c*|, or the largest absolute '
  'covariance in the batch, raise entropy, and penalising them lowers it. None '
  'of those with the largest signed c* does; detaching a set I saves (η/N) Σ_I '
  'c*. The published code ranks by the signed score, and so does covrl.',
  verdict='holds if ranked by signed c*',
  formula=lambda scores, n: scores.sum() / n,
)
def kl_operator(settings: Settings, formula: Formula) -> Evidence:
  """Detaches a fifth of the tokens by signed and by absolute score."""
  batch = sampled_batch.sample_bandit_batch(settings)
  masks = [
    sampled_batch.top_tokens(scores, 0.2)
    for scores in (
      batch.exact_scores,
      abs(batch.exact_scores),
      abs(batch.covariance),
    )
  ]
  plain = sampled_batch.entropy_decrease(batch)
  saved = [
    plain - sampled_batch.entropy_decrease(batch, 1.0 - mask) for mask in masks
  ]
  raises_entropy = [(batch.exact_scores[mask] < 0).mean() for mask in masks]
  errors = [
    abs(formula(batch.exact_scores[mask], batch.exact_scores.size) / gain - 1)
    for mask, gain in zip(masks, saved, strict=True)
  ]
  return Evidence(
    printed=[
      at_most(
        'fraction of selected tokens that raise entropy, |c*|',
        raises_entropy[1],
        0.0,
      ),
      at_most(
        'the same for the absolute covariance in the batch',
        raises_entropy[2],
        0.0,
      ),
    ],
    conditional=[
      at_most(
        'fraction of selected tokens that raise entropy', raises_entropy[0], 0.0
      )
    ],
    corrected=[
      at_least(
        'entropy saved by the signed score divided by the absolute one',
        saved[0] / saved[1],
        1.5,
      ),
      at_most('relative error of (η/N) Σ_I c*', max(errors), 0.01),
    ],
  )


@claim(
  'Thm VI.1 (21)',
  printed='Δz = η π A − η β ∂KL(π_old ‖ π)/∂z, the last proportional to π − '
  'π_old.',
  corrected='As printed: ∂KL/∂z = π − π_old for the KL of the whole state, with a '
  'factor ρ(s) in both terms.',
  verdict='holds',
  formula=lambda pi, old: pi - old,
)
def penalty_gradient(settings: Settings, formula: Formula) -> Evidence:
  """Compares with covrl's update, β = 1, at a policy other than π_old."""
  rng = settings.rng()
  tree = trees.random_tree(rng, prompts=5, depth=1, actions=6)
  old = jnp.asarray(rng.normal(size=tree.rewards.shape))
  new = old + jnp.asarray(rng.normal(size=tree.rewards.shape))
  update = np.asarray(_penalised_update(tree, old, new) - new)
  pi, old_pi = (
    categorical.softmax(np.asarray(new)),
    categorical.softmax(np.asarray(old)),
  )
  gain = pi * categorical.centred(pi, np.asarray(tree.rewards))
  expected = (gain - formula(pi, old_pi)) / tree.prompts
  return Evidence(
    printed=[
      at_most(
        "error of covrl's update", abs(update - expected).max(), EXACT_TOLERANCE
      )
    ]
  )


@jax.jit
def _penalised_update(
  tree: trees.Tree, old: jax.Array, new: jax.Array
) -> jax.Array:
  chain = covrl.add_divergence_penalty(1.0, 'full')
  return tabular.update(
    new,
    tabular.all_pairs(tree, old),
    chain,
    learning_rate=1.0,
    old_logits=old,
    full_divergence=True,
  ).logits


@claim(
  'Thm VI.1, interpretation',
  printed='That term opposes updates that would increase covariance.',
  corrected='It opposes every displacement, ⟨Δz, π − π_old⟩ ≥ 0, independently of '
  'the covariance; after some updates that increased the covariance it increases '
  'it further. It is 0 at π = π_old, so it does not change the first update of a '
  'rollout, and it acts on all logits of a state. Its effect on entropy is η β '
  'Cov(log π, π − π_old): mostly negative after entropy has risen.',
  verdict='fails',
  formula=lambda pi, old: categorical.covariance(pi, np.log(pi), pi - old),
)
def penalty_interpretation(settings: Settings, formula: Formula) -> Evidence:
  """Takes policy gradient steps, then a small step along the penalty."""
  rng, step = settings.rng(), 1e-5
  z = categorical.random_logits(rng, 20_000, 6, (0.5, 1.0, 2.0))
  old = categorical.softmax(z)
  reward = rng.normal(size=z.shape)
  updated = z + 0.3 * old * categorical.centred(old, reward)
  pi = categorical.softmax(updated)
  direction = -(pi - old)

  def update_covariance(
    logits: Float[np.ndarray, 'n K'],
  ) -> Float[np.ndarray, ' n']:
    p = categorical.softmax(logits)
    return categorical.covariance(
      p, np.log(p), p * categorical.centred(p, reward)
    )

  change = (
    update_covariance(updated + step * direction)
    - update_covariance(updated - step * direction)
  ) / (2 * step)
  increased = update_covariance(updated) > update_covariance(z)
  effect = categorical.entropy_derivative(updated, direction)
  rose = categorical.entropy(pi) > categorical.entropy(old)
  return Evidence(
    printed=[
      at_most(
        'fraction of increased covariances that it increases further',
        (change[increased] > 0).mean(),
        0.0,
      ),
    ],
    corrected=[
      at_least(
        'least ⟨Δz, π − π_old⟩', ((updated - z) * (pi - old)).sum(-1).min(), 0.0
      ),
      at_most(
        'Cov(log π, π − π_old) minus the measured dH/dη',
        abs(formula(pi, old) - effect).max(),
        1e-8,
      ),
      at_most('the same at π = π_old', abs(formula(old, old)).max(), 0.0),
      at_least(
        'fraction with a negative effect after entropy has risen',
        (effect[rose] < 0).mean(),
        0.5,
      ),
      at_least(
        'fraction of a state’s logits that it moves', (pi != old).mean(), 1.0
      ),
    ],
  )


@claim(
  'Thm VI.2 (22)',
  printed='δ = η Cov(log π, π − π_old) > 0 whenever the selected tokens have '
  'positive covariance.',
  corrected='Not always: with π_old = (.2425, .6006, .0313, .1256), A = (1.199, '
  '.055, −.796, −2.379) and η = ½ the covariance is positive, entropy falls, '
  'and δ < 0. With two actions δ > 0 whenever entropy fell. If only the entries '
  'of I_KL are penalised, as the theorem states, δ = η Σ_I π f (π − π_old), to '
  'first order η² Σ_I π² C: it has the sign of C, which ranking by |C| does not '
  'determine.',
  verdict='fails',
  formula=lambda pi, shift: categorical.covariance(pi, np.log(pi), shift),
)
def kl_dynamics(settings: Settings, formula: Formula) -> Evidence:
  """Checks a counterexample and counts similar cases among random policies."""
  old = np.array([[0.2425, 0.6006, 0.0313, 0.1256]])
  a = categorical.centred(old, np.array([[1.199, 0.055, -0.796, -2.379]]))
  after = categorical.softmax(np.log(old) + 0.5 * old * a)
  covariance = categorical.covariance(old, np.log(old), old * a)
  rng, shares = settings.rng(), {}
  for actions in (2, 4):
    z = categorical.random_logits(
      rng, settings.choose(20_000, 5000), actions, (0.5, 1.0, 2.0)
    )
    p = categorical.softmax(z)
    advantages = categorical.centred(p, rng.normal(size=p.shape))
    q = categorical.softmax(z + 0.5 * p * advantages)
    fell = (categorical.covariance(p, np.log(p), p * advantages) > 0) & (
      categorical.entropy(q) < categorical.entropy(p)
    )
    shares[actions] = (formula(q, q - p)[fell] < 0).mean()
  measured = categorical.entropy_derivative(np.log(after), old - after)
  return Evidence(
    printed=[
      at_least('δ/η of the counterexample', formula(after, after - old)[0], 0.0)
    ],
    corrected=[
      at_least('covariance of the counterexample', covariance[0], 0.01),
      at_most(
        'entropy change of the counterexample',
        (categorical.entropy(after) - categorical.entropy(old))[0],
        -0.01,
      ),
      at_least('fraction with δ < 0, four actions', shares[4], 0.005),
      at_most('fraction with δ < 0, two actions', shares[2], 0.0),
      at_most(
        'δ/η minus the measured dH/dη',
        abs(formula(after, after - old) - measured)[0],
        1e-9,
      ),
      at_most(
        'relative error of η² Σ_I π² C, largest |C| penalised, η = 1e-5',
        _masked_penalty_error(settings, formula),
        1e-3,
      ),
    ],
  )


def _masked_penalty_error(settings: Settings, formula: Formula) -> float:
  """Relative error of the first-order δ with one entry per state penalised."""
  rng, rate = settings.rng(), 1e-5
  z = rng.normal(size=(200, 6))
  p = categorical.softmax(z)
  advantages = categorical.centred(p, rng.normal(size=p.shape))
  c = categorical.centred_logprobs(p) * categorical.centred(p, p * advantages)
  chosen = abs(c) == abs(c).max(-1, keepdims=True)
  q = categorical.softmax(z + rate * p * advantages)
  delta = formula(q, np.where(chosen, q - p, 0)) / rate
  predicted = np.where(chosen, p**2 * c, 0).sum(-1)
  return float(abs(delta / predicted - 1).max())
