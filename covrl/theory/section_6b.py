# SPDX-License-Identifier: Apache-2.0
"""Section VI.C–D, KL-Cov: what it selects, and what its penalty does."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

import covrl
from covrl.entropy.base import init_token_state
from covrl.objectives import divergence_gradient
from covrl.theory import batches
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

SECTION = Section('VI.C–D KL-Cov')
claim = SECTION.claim


@claim(
  'Def. VI.3 (20)',
  printed='I_KL, the tokens that drive the collapse, are the top k ranked by '
  '|C(s, a)|.',
  holds='Ranked by |c*|, or by the size of the batch’s covariance, many of '
  'them raise entropy, and penalising those costs it. Ranked by signed c* none '
  'does; detaching a set I saves (η/N) Σ_I c*. The published code ranks by '
  'sign, and so does covrl.',
  verdict='holds if ranked by signed c*',
  formula=lambda scores, n: scores.sum() / n,
)
def kl_operator(lab: Lab, formula: Formula) -> Evidence:
  """Selects a fifth by sign and by size, detaches it, measures entropy."""
  batch = batches.sampled_bandit(lab)
  masks = [
    batches.top(scores, 0.2)
    for scores in (batch.exact, abs(batch.exact), abs(batch.covariance))
  ]
  plain = batches.entropy_taken(batch)
  saved = [plain - batches.entropy_taken(batch, 1.0 - mask) for mask in masks]
  raising = [(batch.exact[mask] < 0).mean() for mask in masks]
  misses = [
    abs(formula(batch.exact[mask], batch.exact.size) / gain - 1)
    for mask, gain in zip(masks, saved, strict=True)
  ]
  return Evidence(
    printed=[
      below('share of the chosen that raise entropy, |c*|', raising[1], 0.0),
      below('the same, |covariance| of the batch', raising[2], 0.0),
    ],
    given=[below('share of the chosen that raise entropy', raising[0], 0.0)],
    holds=[
      above('entropy saved, by sign over by size', saved[0] / saved[1], 1.5),
      below('relative error of (η/N) Σ_I c*', max(misses), 0.01),
    ],
  )


@claim(
  'Thm VI.1 (21)',
  printed='Δz = η π A − η β ∂KL(π_old ‖ π)/∂z, the last proportional to π − '
  'π_old.',
  holds='As printed: ∂KL/∂z = π − π_old, for the KL of the whole state, and '
  'with ρ(s) in front of both terms.',
  verdict='holds',
  formula=lambda pi, old: pi - old,
)
def penalty_gradient(lab: Lab, formula: Formula) -> Evidence:
  """Compares with covrl's update, β = 1, away from the policy that sampled."""
  random = lab.random()
  tree = trees.random_tree(random, prompts=5, depth=1, actions=6)
  old = jnp.asarray(random.normal(size=tree.rewards.shape))
  new = old + jnp.asarray(random.normal(size=tree.rewards.shape))
  update = np.asarray(_penalised(tree, old, new) - new)
  pi, before = sm.softmax(np.asarray(new)), sm.softmax(np.asarray(old))
  gain = pi * sm.centred(pi, np.asarray(tree.rewards))
  expected = (gain - formula(pi, before)) / tree.prompts
  return Evidence(
    printed=[
      below("error of covrl's update", abs(update - expected).max(), EXACT)
    ]
  )


@jax.jit
def _penalised(tree: trees.Tree, old: jax.Array, new: jax.Array) -> jax.Array:
  chain = covrl.add_divergence_penalty(1.0, 'full')
  return tk.update(
    new,
    tk.expected(tree, old),
    chain,
    init_token_state(chain),
    learning_rate=1.0,
    old_logits=old,
    full_divergence=True,
  ).logits


@claim(
  'Thm VI.1, reading',
  printed='That term opposes updates that would increase covariance.',
  holds='It opposes every displacement, ⟨Δz, π − π_old⟩ ≥ 0, whatever that did '
  'to covariance; of those that increased it, it increases some further. It is '
  '0 at π = π_old, so the first update of a rollout is untouched, and it acts '
  'on all logits of a state. On entropy it acts as η β Cov(log π, π − π_old): '
  'mostly downwards after a rise.',
  verdict='fails',
  formula=lambda pi, old: sm.covariance(pi, np.log(pi), pi - old),
)
def penalty_reading(lab: Lab, formula: Formula) -> Evidence:
  """Takes policy gradient steps, then a small one along the penalty."""
  random, h = lab.random(), 1e-5
  z = sm.random_logits(random, 20_000, 6, (0.5, 1.0, 2.0))
  old = sm.softmax(z)
  reward = random.normal(size=z.shape)
  moved = z + 0.3 * old * sm.centred(old, reward)
  pi = sm.softmax(moved)
  pull = -(pi - old)

  def driver(logits: Float[np.ndarray, 'n K']) -> Float[np.ndarray, ' n']:
    p = sm.softmax(logits)
    return sm.covariance(p, np.log(p), p * sm.centred(p, reward))

  of_driver = (driver(moved + h * pull) - driver(moved - h * pull)) / (2 * h)
  increased = driver(moved) > driver(z)
  effect = sm.entropy_slope(moved, pull)
  rose = sm.entropy(pi) > sm.entropy(old)
  return Evidence(
    printed=[
      below(
        'share of increased covariances that it increases further',
        (of_driver[increased] > 0).mean(),
        0.0,
      ),
    ],
    holds=[
      above(
        'least ⟨Δz, π − π_old⟩', ((moved - z) * (pi - old)).sum(-1).min(), 0.0
      ),
      below(
        'Cov(log π, π − π_old) less the measured dH/dη',
        abs(formula(pi, old) - effect).max(),
        1e-8,
      ),
      below('the same at π = π_old', abs(formula(old, old)).max(), 0.0),
      above(
        'share that pulls down after a rise', (effect[rose] < 0).mean(), 0.5
      ),
      above('share of a state’s logits it moves', (pi != old).mean(), 1.0),
    ],
  )


@claim(
  'Thm VI.2 (22)',
  printed='δ = η Cov(log π, π − π_old) > 0 whenever the selected tokens have '
  'positive covariance.',
  holds='Not always: with π_old = (.2425, .6006, .0313, .1256), A = (1.199, '
  '.055, −.796, −2.379) and η = ½ the covariance is positive, entropy falls, '
  'and δ < 0. With two actions δ > 0 whenever entropy fell. And where the '
  'penalty is on the entries of I_KL alone, as the theorem writes it, δ is η '
  'Σ_I π f (π − π_old), to first order η² Σ_I π² C: of the sign of C, which '
  'ranking by |C| leaves open.',
  verdict='fails',
  formula=lambda pi, shift: sm.covariance(pi, np.log(pi), shift),
)
def kl_dynamics(lab: Lab, formula: Formula) -> Evidence:
  """The counterexample, and how common its kind is."""
  old = np.array([[0.2425, 0.6006, 0.0313, 0.1256]])
  a = sm.centred(old, np.array([[1.199, 0.055, -0.796, -2.379]]))
  after = sm.softmax(np.log(old) + 0.5 * old * a)
  covariance = sm.covariance(old, np.log(old), old * a)
  random, shares = lab.random(), {}
  for actions in (2, 4):
    z = sm.random_logits(
      random, lab.size(20_000, 5000), actions, (0.5, 1.0, 2.0)
    )
    p = sm.softmax(z)
    own = sm.centred(p, random.normal(size=p.shape))
    q = sm.softmax(z + 0.5 * p * own)
    fell = (sm.covariance(p, np.log(p), p * own) > 0) & (
      sm.entropy(q) < sm.entropy(p)
    )
    shares[actions] = (formula(q, q - p)[fell] < 0).mean()
  measured = sm.entropy_slope(np.log(after), old - after)
  return Evidence(
    printed=[
      above('δ/η of the counterexample', formula(after, after - old)[0], 0.0)
    ],
    holds=[
      above('its covariance', covariance[0], 0.01),
      below(
        'its change of entropy', (sm.entropy(after) - sm.entropy(old))[0], -0.01
      ),
      above('share of δ < 0, four actions', shares[4], 0.005),
      below('share of δ < 0, two actions', shares[2], 0.0),
      below(
        'δ/η less the measured dH/dη',
        abs(formula(after, after - old) - measured)[0],
        1e-9,
      ),
      below(
        'relative error of η² Σ_I π² C, the top |C| penalised, η = 1e-5',
        _error_of_masked(lab, formula),
        1e-3,
      ),
    ],
  )


def _error_of_masked(lab: Lab, formula: Formula) -> float:
  """Of the first-order δ where one entry of each state is penalised."""
  random, rate = lab.random(), 1e-5
  z = random.normal(size=(200, 6))
  p = sm.softmax(z)
  own = sm.centred(p, random.normal(size=p.shape))
  c = sm.surprise(p) * sm.centred(p, p * own)
  chosen = abs(c) == abs(c).max(-1, keepdims=True)
  q = sm.softmax(z + rate * p * own)
  delta = formula(q, np.where(chosen, q - p, 0)) / rate
  predicted = np.where(chosen, p**2 * c, 0).sum(-1)
  return float(abs(delta / predicted - 1).max())


KINDS = ('full', 'k2', 'k3', 'abs', 'k1')
NAMES = {'full': 'full KL', 'abs': '|log r|'}
RATES, UPDATES = np.logspace(-5, -2, 7), 4


@claim(
  'Thm VI.2, size of βδ',
  printed='β δ counteracts the entropy decrease at first order, its size '
  'controlled by β.',
  holds='π − π_old = O(η), so β δ = O(β η²), the order of the neglected '
  'remainder: after two updates it is β η² Cov(log π, π (u − E u)), u = π A. '
  'k2 and k3 are as small. |log r|, as published, is of first order, since its '
  'pull is β however small the ratio: a soft threshold on the advantage. k1 '
  'pulls a selected token down in full from the start, and over all tokens of a '
  'state pushes away from π_old.',
  verdict='fails',
  formula=lambda pi, u: sm.covariance(pi, np.log(pi), pi * sm.centred(pi, u)),
  slips=(lambda pi, u: sm.covariance(pi, np.log(pi), pi * u),),
)
def estimators(lab: Lab, formula: Formula) -> Evidence:
  """Four updates of one rollout under each estimator of M in (20)."""
  rewards, logits = _one_state(lab)
  plain, *penalised = _entropy_changes(lab)
  relative = {
    kind: abs(changes / plain - 1)[:, -1]
    for kind, changes in zip(KINDS, penalised, strict=True)
  }
  pi = sm.softmax(logits)
  once = (penalised[0] - plain)[:, 1]
  predicted = formula(pi, pi * sm.centred(pi, rewards)) * RATES**2
  exponents = {kind: sm.slope(RATES, relative[kind]) for kind in KINDS}
  away = (penalised[4] - plain)[0, 1] / (penalised[0] - plain)[0, 1]
  pulls = _pulls(np.array([0.0, 1e-4]))
  return Evidence(
    printed=[
      near(
        'exponent in η of the relative effect, full KL',
        exponents['full'],
        0,
        0.2,
      )
    ],
    holds=[
      *(
        near(f'the same, {NAMES.get(kind, kind)}', exponents[kind], order, 0.05)
        for kind, order in zip(KINDS, (1, 1, 1, 0, 1), strict=True)
      ),
      near(
        'β δ over its prediction, two updates, η = 1e-3',
        (once / predicted)[4],
        1,
        0.01,
      ),
      near('effect of k1 over that of the full KL', away, -1, 0.01),
      near('pull of |log r| at log r = 1e-4', pulls['abs'][1], 1, 0),
      near('pull of k1 at π = π_old', pulls['k1'][0], 1, 0),
      below(
        'pull of the others there',
        max(abs(pulls[kind][0]) for kind in ('abs', 'k2', 'k3')),
        0,
      ),
      near('jax.grad(jnp.abs)(0.), a trap', jax.grad(jnp.abs)(0.0), 1, 0),
    ],
    pictures=[
      Picture(
        'What the penalty does to entropy, by estimator',
        'learning rate η',
        'effect on ΔH, relative to no penalty',
        [
          Curve(NAMES.get(kind, kind), RATES, relative[kind], points=True)
          for kind in KINDS
        ],
        caption='Four updates of one rollout, β = 1, every token penalised. '
        'The full KL of the theorem vanishes with the step; |log r|, which is '
        'what was published, does not.',
        log_x=True,
        log_y=True,
      )
    ],
  )


@jax.jit
def _pulls(log_ratio: jax.Array) -> dict[str, jax.Array]:
  """Of each estimator on a token's log-probability, downwards."""
  return {kind: divergence_gradient(log_ratio, kind) for kind in KINDS[1:]}


def _one_state(
  lab: Lab,
) -> tuple[Float[np.ndarray, ' K'], Float[np.ndarray, ' K']]:
  """Rewards and logits of six actions."""
  rewards, logits = lab.random().normal(size=(2, 6))
  return rewards, logits


@functools.cache
def _entropy_changes(lab: Lab) -> Float[np.ndarray, 'Z n U']:
  """ΔH after each update of a rollout, by estimator and learning rate.

  The first is without a penalty; then those of `KINDS`. One chain has them all.
  """
  rewards, start = (x[None, None] for x in _one_state(lab))
  tree = trees.Tree(
    rewards=jnp.asarray(rewards), ends=jnp.ones((1, 1, 6), bool), depth=1
  )
  logits = jnp.asarray(start)

  def run(coefficients: jax.Array, rate: jax.Array) -> jax.Array:
    pairs = tk.expected(tree, logits)
    chain = optax.chain(
      *(
        covrl.add_divergence_penalty(coefficients[place], kind, dead_zone=1e-12)
        for place, kind in enumerate(KINDS)
      )
    )

    def once(state: Any, _: None) -> tuple[Any, jax.Array]:
      made = tk.update(
        state[0],
        pairs,
        chain,
        state[1],
        learning_rate=rate,
        old_logits=logits,
        full_divergence=True,
      )
      return (made.logits, made.token_state), made.logits

    first = (logits, init_token_state(chain))
    return jax.lax.scan(once, first, length=UPDATES)[1]

  over_rates = jax.vmap(run, (None, 0))
  which = np.eye(len(KINDS) + 1)[:, 1:]
  ends = jax.jit(jax.vmap(over_rates, (0, None)))(which, RATES)
  entropy = sm.entropy(sm.softmax(np.asarray(ends)[..., 0, 0, :]))
  return entropy - sm.entropy(sm.softmax(start[0, 0]))
