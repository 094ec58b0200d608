# SPDX-License-Identifier: Apache-2.0
"""Section V.D, the limits of the bonus: its reward gap and the choice of α."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from covrl.theory import categorical, method_study
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

SECTION = Section('V.D Limits of the bonus')
claim = SECTION.claim


class Bandits(NamedTuple):
  """Random bandits of five actions, half of them with two tied optima.

  Attributes:
    rewards: rewards of the actions.
    alpha: coefficient of the bonus for each bandit.
    star: an optimal policy; a random mixture of tied optima.
  """

  rewards: Float[np.ndarray, 'n K']
  alpha: Float[np.ndarray, 'n 1']
  star: Float[np.ndarray, 'n K']

  @property
  def reward_gap(self) -> Float[np.ndarray, ' n']:
    """max r − E r under softmax(r/α)."""
    pi = categorical.softmax(self.rewards / self.alpha)
    return categorical.expectation(
      pi, self.rewards.max(-1, keepdims=True) - self.rewards
    )


def random_bandits(settings: Settings) -> Bandits:
  """Bandits for the claims of this section."""
  rng = settings.rng()
  trials = settings.choose(5000, 2000)
  rewards = rng.normal(size=(trials, 5))
  rewards[::2, 1] = rewards[::2, 0] = rewards[::2].max(-1)
  best = rewards == rewards.max(-1, keepdims=True)
  star = np.where(best, rng.uniform(size=rewards.shape), 0)
  star /= star.sum(-1, keepdims=True)
  return Bandits(rewards, rng.uniform(0.1, 2, (trials, 1)), star)


@claim(
  'Thm V.2 (15)',
  printed='E[r] under π*_reg = argmax E[r] + α H is at most that under π*.',
  corrected='As printed. In a bandit π*_reg = softmax(r/α).',
  verdict='holds',
  formula=lambda rewards, alpha: rewards / alpha,
)
def regularised_optimum(settings: Settings, formula: Formula) -> Evidence:
  """Computes the optimum of random bandits in closed form."""
  bandits = random_bandits(settings)
  pi = categorical.softmax(formula(bandits.rewards, bandits.alpha))
  reward_gap = categorical.expectation(
    pi, bandits.rewards.max(-1, keepdims=True) - bandits.rewards
  )
  marginal = bandits.rewards - bandits.alpha * np.log(pi)
  return Evidence(
    printed=[at_least('least gap', reward_gap.min(), 0)],
    corrected=[
      at_most(
        'range of r − α log π*_reg over actions',
        np.ptp(marginal, axis=-1).max(),
        1e-10,
      )
    ],
  )


@claim(
  'Thm V.2, strictness',
  printed='If π* is not a maximum-entropy policy among the optimal ones, the '
  'inequality is strict.',
  corrected='It is strict if and only if r is not constant, for every π*. If one '
  'action is better than K − 1 equal ones by Δ, the gap is (K − 1) Δ e^{−Δ/α} / '
  '(1 + (K − 1) e^{−Δ/α}): exponentially small.',
  verdict='fails',
  formula=lambda d, alpha, k: (
    (k - 1) * d * np.exp(-d / alpha) / (1 + (k - 1) * np.exp(-d / alpha))
  ),
  wrong_formulas=(lambda d, alpha, k: (k - 1) * d * np.exp(-d / alpha),),
)
def strictness(settings: Settings, formula: Formula) -> Evidence:
  """Computes gaps for a constant reward and for a unique optimum."""
  alpha = np.array([0.05, 0.1, 0.2, 0.5, 1.0])
  rewards = np.eye(4)[:1].repeat(5, 0)
  gap = categorical.expectation(
    categorical.softmax(rewards / alpha[:, None]), 1 - rewards
  )
  uniform = np.full((1, 4), 0.25)  # π*_reg for a constant reward.
  constant = 1 - categorical.expectation(uniform, np.ones((1, 4)))
  return Evidence(
    printed=[
      at_least('gap for constant r and deterministic π*', constant[0], 1e-15)
    ],
    corrected=[
      at_most(
        'relative error of the closed form',
        abs(formula(1.0, alpha, 4) / gap - 1).max(),
        1e-12,
      ),
      at_most('gap at α = 0.05, Δ = 1', gap[0], 1e-8),
      at_least(
        'least gap for non-constant rewards',
        random_bandits(settings).reward_gap.min(),
        1e-300,
      ),
      at_least(
        'gap for a unique (hence maximum-entropy) π*, α = 1', gap[-1], 0.1
      ),
    ],
  )


@claim(
  'Thm V.2 (16)',
  printed='E*[r] − E_reg[r] ≥ α (H(π*_reg) − H(π*)).',
  corrected='The inequality is reversed, as in the proof in the appendix, (35): '
  'the gap is α [H(π*_reg) − H(π*) − KL(π* ‖ π*_reg)] ≤ α (H(π*_reg) − H(π*)). '
  'As printed it fails for every non-constant reward. The bound that Corollary '
  'V.1 uses, α (H(π*) − H(π*_reg)), is never positive.',
  verdict='fails',
  formula=lambda alpha, h_reg, h_star, kl: alpha * (h_reg - h_star - kl),
  wrong_formulas=(
    lambda alpha, h_reg, h_star, kl: alpha * (h_reg + h_star - kl),
    lambda alpha, h_reg, h_star, kl: alpha * (h_reg - h_star + kl),
  ),
)
def suboptimality(settings: Settings, formula: Formula) -> Evidence:
  """Computes gaps of random bandits with unique and with tied optima."""
  bandits = random_bandits(settings)
  pi = categorical.softmax(bandits.rewards / bandits.alpha)
  alpha, gap = bandits.alpha[:, 0], bandits.reward_gap
  entropies = categorical.entropy(pi), categorical.entropy(bandits.star)
  bound = alpha * (entropies[0] - entropies[1])
  identity = formula(alpha, *entropies, categorical.kl(bandits.star, pi))
  violated = (gap < bound - EXACT_TOLERANCE).mean()
  return Evidence(
    printed=[at_most('fraction of bandits that violate it', violated, 0.0)],
    corrected=[
      at_most(
        'error of the identity', abs(gap - identity).max(), EXACT_TOLERANCE
      ),
      at_most(
        'largest excess over the reversed bound',
        (gap - bound).max(),
        EXACT_TOLERANCE,
      ),
      at_least('fraction of bandits that violate it', violated, 0.99),
      at_most('largest α (H(π*) − H(π*_reg))', -bound.min(), 0),
    ],
  )


@claim(
  'Cor. V.1',
  printed='Only a narrow range of α yields near-optimal performance: too small '
  'and entropy collapses, too large and the bias dominates.',
  corrected='This holds for sampled training of finite length: prompts get stuck '
  'without a bonus, and a large bonus costs reward. The optimum of (11) improves '
  'monotonically as α falls, and exact gradient ascent reaches it. Item 2 uses '
  '(16) and (33), which do not hold.',
  verdict='holds if training is sampled and finite',
  formula=lambda rewards, alpha: (
    rewards.max(-1)
    - categorical.expectation(categorical.softmax(rewards / alpha), rewards)
  ),
)
def sensitivity(settings: Settings, formula: Formula) -> Evidence:
  """Compares the optimum's gap with sampled training for several α."""
  results = method_study.run_methods(settings)
  reward_gap = dict(
    zip(method_study.METHODS, results.reward_gap[:, 0].mean(-1), strict=True)
  )
  sampled = {
    alpha: reward_gap[f'bonus {alpha:g}'] for alpha in method_study.BONUSES
  }
  rewards = results.rewards[0]
  alphas = np.logspace(-2, 0.5, 11)
  gaps = np.array([formula(rewards, alpha).mean() for alpha in alphas])
  best = min(sampled.values())
  return Evidence(
    printed=[
      at_least(
        'gap of the optimum for α = 0.01 divided by that for α = 0.1',
        gaps[0] / gaps[4],
        1.0,
      )
    ],
    conditional=[
      at_least(
        'gap without a bonus divided by the best of five α',
        reward_gap['none'] / best,
        2,
      ),
      at_least(
        'gap for α = 3 divided by the best of five α', sampled[3.0] / best, 10
      ),
    ],
    corrected=[
      at_least(
        'least increase of the optimum’s gap with α', np.diff(gaps).min(), 0.0
      ),
      close_to(
        'gap of the optimum for α = √10 divided by its Gibbs form',
        gaps[-1] / _gibbs(rewards, alphas[-1]),
        1,
        EXACT_TOLERANCE,
      ),
    ],
    plots=[
      Plot(
        'Reward gap by coefficient of the bonus',
        'coefficient α',
        'reward gap',
        [
          Curve(
            'sampled training',
            np.array(list(sampled)),
            np.array(list(sampled.values())),
            points=True,
          ),
          Curve(
            'sampled training, no bonus',
            alphas,
            np.full(alphas.size, reward_gap['none']),
            dashed=True,
          ),
          Curve('the optimum of (11), a bandit', alphas, gaps),
        ],
        caption='Corollary V.1. Sampled training is that of the comparison of '
        f'methods, single optimum, {results.reward_gap.shape[-1]} seeds. Its '
        'advantages are divided by the standard deviation of their group, about '
        '0.25.',
        log_x=True,
        log_y=True,
      )
    ],
  )


def _gibbs(rewards: Float[np.ndarray, 'n K'], alpha: float) -> float:
  """The mean reward gap of softmax(r/α) as max r − α log Z + α H."""
  log_z = np.log(np.exp(rewards / alpha).sum(-1))
  entropy = categorical.entropy(categorical.softmax(rewards / alpha))
  return float((rewards.max(-1) - alpha * log_z + alpha * entropy).mean())
