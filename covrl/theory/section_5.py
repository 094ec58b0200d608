# SPDX-License-Identifier: Apache-2.0
"""Section V, traditional entropy regularisation."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

import covrl
from covrl.entropy.chain import init_token_state
from covrl.theory import decisive
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
  near,
)
from covrl.theory.section_3 import EXACT, random_world

SECTION = Section('V. Traditional entropy regularisation')
claim = SECTION.claim


@claim(
  'Prop. V.1 (11)–(12)',
  printed='∇J_reg = ∇J + α ∇H(π_θ), and ∂H/∂z_{s,a} is that of Lemma IV.1.',
  holds='∇H = (ρ/T) π (−f + A^H − H(π) A^T): policies also choose which '
  'states they visit (A^H, the advantage of entropy to come) and how long '
  'they speak (A^T, of length). Code that detaches its samples follows '
  'ρ (−π f) alone, a semi-gradient.',
  verdict='holds if there is one state',
  formula=lambda rho, length, pi, rest: (rho / length)[..., None] * pi * rest,
)
def regularised_gradient(lab: Lab, formula: Formula) -> Evidence:
  """Compares with autodiff of the mean entropy over tokens, (4)."""
  world = random_world(lab)
  gradient, of_entropy, of_length = map(
    np.asarray, _entropy_parts(world.tree, world.logits)
  )
  length = world.rho.sum()
  f = sm.surprise(world.pi)
  average = (world.rho * sm.entropy(world.pi)).sum() / length

  def error(rest: Float[np.ndarray, 'P S K']) -> float:
    found = formula(world.rho, length, world.pi, rest)
    return float(abs(found - gradient).max())

  lemma = -world.pi * f
  return Evidence(
    printed=[
      below('error against autodiff', abs(lemma - gradient).max(), EXACT)
    ],
    holds=[
      below(
        'error of the full formula',
        error(-f + of_entropy - average * of_length),
        EXACT,
      ),
      above('error without A^T', error(-f + of_entropy), 1e-3),
      above('error of the semi-gradient', error(-f), 1e-3),
    ],
  )


@jax.jit
def _entropy_parts(
  tree: trees.Tree, logits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """∇H by autodiff, and the advantages of entropy and of length to come."""
  pi = jax.nn.softmax(logits)
  paid = trees.state_entropy(logits)[..., None] + 0 * pi
  return (
    jax.grad(trees.mean_entropy, 1)(tree, logits),
    trees.advantages(tree, pi, paid),
    trees.advantages(tree, pi, jax.numpy.ones_like(pi)),
  )


@claim(
  '(13)',
  printed='Δz_{s,a} = η (π A − α π (log π − E log π)).',
  holds='With ρ(s) in front, and as the semi-gradient: it is what '
  'covrl.entropy_bonus does, and not the gradient of (11).',
  verdict='holds if there is one state',
  formula=lambda rho, pi, own, f: rho[..., None] * pi * (own - 0.3 * f),
)
def regularised_update(lab: Lab, formula: Formula) -> Evidence:
  """Runs the trainer's bonus, α = 0.3, on every state-action pair."""
  world = random_world(lab)
  f = sm.surprise(world.pi)
  moved = _bonus_step(world.tree, world.logits, 0.3)
  update = np.asarray(moved) - np.asarray(world.logits)
  printed = world.pi * (world.advantages - 0.3 * f)
  predicted = formula(world.rho, world.pi, world.advantages, f)
  return Evidence(
    printed=[
      below("error of covrl's update", abs(printed - update).max(), EXACT)
    ],
    holds=[below('error with ρ(s)', abs(predicted - update).max(), EXACT)],
  )


@jax.jit
def _bonus_step(
  tree: trees.Tree, logits: jax.Array, coefficient: Any
) -> jax.Array:
  chain = covrl.entropy_bonus(coefficient)
  pairs = tk.expected(tree, logits)
  state = init_token_state(chain)
  return tk.update(logits, pairs, chain, state, learning_rate=1.0).logits


def almost_certain(
  eps: Float[np.ndarray, ' n'], actions: int
) -> Float[np.ndarray, 'n K']:
  """One action of probability 1 − ε; the others share ε."""
  rare = np.repeat(eps[:, None] / (actions - 1), actions - 1, axis=1)
  return np.concatenate([1 - eps[:, None], rare], axis=1)


@claim(
  'Thm V.1 (14)',
  printed='The bonus adds α η Var(log π) to ΔH_s, accurately so when the '
  'policy is nearly deterministic.',
  holds='It adds α η Σ π² f². With ε the mass off the likeliest action that is '
  'Θ(ε² log² ε), and Var is Θ(ε log² ε): the restoring force dies '
  'quadratically, in the very regime. Var is exact for the natural gradient.',
  verdict='fails',
  formula=lambda pi, f: (pi**2 * f**2).sum(-1),
)
def restoring_force(lab: Lab, formula: Formula) -> Evidence:
  """Measures what the bonus alone does to entropy as ε falls."""
  eps = np.logspace(-6, -1.5, 16)
  pi = almost_certain(eps, 10)
  f = sm.surprise(pi)
  variance = sm.mean(pi, f**2)
  true = formula(pi, f)
  logs = np.log(eps) ** 2
  at = int(abs(np.log10(eps) + 4).argmin())
  z = sm.random_logits(lab.random(), 200, 6, (0.3, 1.0, 2.0))
  p, g = sm.softmax(z), sm.surprise(sm.softmax(z))
  return Evidence(
    printed=[
      below('error of Var at ε = 1e-4', abs(variance / true - 1)[at], 0.1)
    ],
    holds=[
      below(
        'error of Σ π² f² against measured ΔH',
        abs(entropy_slope(z, -p * g) - formula(p, g)).max(),
        1e-8,
      ),
      below(
        'error of Var for the natural gradient',
        abs(entropy_slope(z, -g) - sm.mean(p, g**2)).max(),
        1e-7,
      ),
      near('exponent of Σ π² f² in ε', sm.slope(eps, true / logs), 2, 0.1),
      near('exponent of Var in ε', sm.slope(eps, variance / logs), 1, 0.1),
      near(
        'their ratio over ε K/(K − 1)',
        (true / variance / eps)[at],
        10 / 9,
        0.02,
      ),
    ],
    pictures=[
      Picture(
        'The restoring force dies quadratically',
        'ε, probability off the likeliest action',
        'dH/dη per unit of α, nats',
        [
          Curve('as printed, Var(log π)', eps, variance, points=True),
          Curve('what the bonus does, Σ π² f²', eps, true, points=True),
        ],
        caption='Theorem V.1, ten actions. As a policy collapses (to the left) '
        'the printed term overstates the bonus by 1/ε: a collapsed token is '
        'beyond its rescue.',
        log_x=True,
        log_y=True,
      )
    ],
  )


def entropy_slope(
  z: Float[np.ndarray, '*#B K'], direction: Float[np.ndarray, '*#B K']
) -> Float[np.ndarray, '...']:
  """dH/dη along a direction in logits, by central differences."""
  h = 1e-5
  up, down = (sm.entropy(sm.softmax(z + s * direction)) for s in (h, -h))
  return (up - down) / (2 * h)


@claim(
  'Thm V.1, remark',
  printed='Var(log π) increases as the policy becomes more deterministic.',
  holds='Var = ε (1 − ε) log²((1 − ε)(K − 1)/ε) → 0: it rises to a peak and '
  'then falls to nothing.',
  verdict='fails',
  formula=lambda eps, k: (
    eps * (1 - eps) * np.log((1 - eps) * (k - 1) / eps) ** 2
  ),
)
def variance_of_logprobs(lab: Lab, formula: Formula) -> Evidence:
  """Follows the variance towards determinism."""
  del lab
  eps = np.logspace(-8, -0.5, 40)
  pi = almost_certain(eps, 10)
  variance = sm.mean(pi, sm.surprise(pi) ** 2)
  return Evidence(
    printed=[
      above(
        'least ratio of Var to that of ten times ε',
        (variance[:-6] / variance[6:]).min(),
        1.0,
      )
    ],
    holds=[
      below(
        'error of the closed form',
        abs(formula(eps, 10) - variance).max(),
        EXACT,
      ),
      below('Var at ε = 1e-8', variance[0], 1e-5),
    ],
  )


@claim(
  'Thm V.2 (15)',
  printed='E[r] under π*_reg = argmax E[r] + α H is at most that under π*.',
  holds='As printed. In a bandit π*_reg = softmax(r/α).',
  verdict='holds',
  formula=lambda rewards, alpha: rewards / alpha,
)
def regularised_optimum(lab: Lab, formula: Formula) -> Evidence:
  """Random bandits, with the optimum in closed form."""
  rewards, alpha = _bandits(lab)
  pi = sm.softmax(formula(rewards, alpha))
  marginal = rewards - alpha * np.log(pi)
  return Evidence(
    printed=[
      above('least gap', (rewards.max(-1) - sm.mean(pi, rewards)).min(), 0)
    ],
    holds=[
      below(
        'spread of r − α log π*_reg over actions',
        np.ptp(marginal, axis=-1).max(),
        1e-10,
      )
    ],
  )


def _bandits(
  lab: Lab,
) -> tuple[Float[np.ndarray, 'n K'], Float[np.ndarray, 'n 1']]:
  """Rewards of random bandits, and a coefficient for each."""
  random = lab.random()
  trials = lab.size(5000, 2000)
  return random.normal(size=(trials, 5)), random.uniform(0.1, 2, (trials, 1))


@claim(
  'Thm V.2, strictness',
  printed='If π* is not a maximum-entropy policy among the optimal ones, the '
  'inequality is strict.',
  holds='It is strict if and only if r is not constant, whatever π*. With a '
  'unique optimum, ahead by Δ, the gap is (K − 1) Δ e^{−Δ/α} / (1 + (K − 1) '
  'e^{−Δ/α}): exponentially small.',
  verdict='fails',
  formula=lambda d, alpha, k: (
    (k - 1) * d * np.exp(-d / alpha) / (1 + (k - 1) * np.exp(-d / alpha))
  ),
)
def strictness(lab: Lab, formula: Formula) -> Evidence:
  """A constant reward, whose optima include vertices; and a unique optimum."""
  del lab
  alpha = np.array([0.05, 0.1, 0.2, 0.5, 1.0])
  rewards = np.eye(4)[:1].repeat(5, 0)
  pi = sm.softmax(rewards / alpha[:, None])
  gap = 1 - sm.mean(pi, rewards)
  constant = 1 - sm.mean(sm.softmax(np.ones((1, 4)) / 0.5), np.ones((1, 4)))
  return Evidence(
    printed=[above('gap of a vertex π* under constant r', constant[0], 1e-15)],
    holds=[
      below(
        'relative error of the closed form',
        abs(formula(1.0, alpha, 4) / gap - 1).max(),
        1e-6,
      ),
      below('gap at α = 0.05, Δ = 1', gap[0], 1e-8),
      above('gap of a unique (hence maximum-entropy) optimum', gap[-1], 0.1),
    ],
  )


@claim(
  'Thm V.2 (16)',
  printed='E*[r] − E_reg[r] ≥ α (H(π*_reg) − H(π*)).',
  holds='The inequality is reversed, as in the appendix’s own proof: the gap is '
  'α [H(π*_reg) − H(π*) − KL(π* ‖ π*_reg)] ≤ α (H(π*_reg) − H(π*)).',
  verdict='fails',
  formula=lambda alpha, h_reg, h_star, kl: alpha * (h_reg - h_star - kl),
)
def suboptimality(lab: Lab, formula: Formula) -> Evidence:
  """Random bandits."""
  rewards, alpha = _bandits(lab)
  pi = sm.softmax(rewards / alpha)
  star = np.eye(5)[rewards.argmax(-1)]
  gap = rewards.max(-1) - sm.mean(pi, rewards)
  entropies = sm.entropy(pi), sm.entropy(star)
  bound = alpha[:, 0] * (entropies[0] - entropies[1])
  identity = formula(alpha[:, 0], *entropies, sm.kl(star, pi))
  return Evidence(
    printed=[
      below(
        'share of bandits that violate it', (gap < bound - EXACT).mean(), 0.0
      )
    ],
    holds=[
      below('error of the identity', abs(gap - identity).max(), 1e-11),
      below(
        'greatest excess over the reversed bound', (gap - bound).max(), EXACT
      ),
    ],
  )


@claim(
  'Cor. V.1',
  printed='Only a narrow range of α yields near-optimal performance: too small '
  'and entropy collapses, too large and the bias dominates.',
  holds='So it is in sampled training of finite length: prompts get stuck '
  'without a bonus, reward is lost to a large one. The optimum of (11) itself '
  'only gets better as α falls, and exact ascent reaches it.',
  verdict='holds if training is sampled and finite',
  formula=lambda rewards, alpha: (
    rewards.max(-1) - sm.mean(sm.softmax(rewards / alpha), rewards)
  ),
)
def sensitivity(lab: Lab, formula: Formula) -> Evidence:
  """The optimum's gap over α; and the decisive test's four coefficients."""
  outcome = decisive.run(lab)
  lost = dict(zip(decisive.ARMS, outcome.gap[:, 0].mean(-1), strict=True))
  rewards = outcome.outcomes[0]
  alphas = np.array([0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
  gaps = np.array([formula(rewards, alpha).mean() for alpha in alphas])
  third = rewards - 3.0 * np.log(sm.softmax(rewards / 3.0))
  entropy = sm.entropy(sm.softmax(rewards / 3.0))
  identity = rewards.max(-1) - third[:, 0] + 3.0 * entropy
  return Evidence(
    printed=[
      above(
        'gap at the optimum of α = .01 over that of α = .1',
        gaps[0] / gaps[2],
        1.0,
      )
    ],
    holds=[
      above(
        'least growth of the optimum’s gap with α', np.diff(gaps).min(), 0.0
      ),
      below(
        'gap at the optimum, α = 3, less max r − α log Z + α H',
        abs(gaps[-1] - identity.mean()),
        EXACT,
      ),
      below(
        'sampled: gap of α = .3 over none', lost['bonus .3'] / lost['none'], 0.7
      ),
      above(
        'sampled: gap of α = 3 over none', lost['bonus 3'] / lost['none'], 2.0
      ),
    ],
  )
