# SPDX-License-Identifier: Apache-2.0
"""Section VII.B, convergence: exact gradient ascent in random bandits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float

from covrl.theory import softmax as sm
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
from covrl.theory.section_3 import EXACT

SECTION = Section('VII.B Convergence')
claim = SECTION.claim

Rewards = Float[np.ndarray, '*n K']


def gradient(z: Rewards, rewards: Rewards, alpha: float = 0.0) -> Rewards:
  """∇(E r + α H) of bandits: π (r − E r − α f)."""
  pi = sm.softmax(z)
  return pi * (sm.centred(pi, rewards) - alpha * sm.surprise(pi))


@claim(
  'Assumption VII.1',
  printed='J is L-smooth.',
  holds='As printed: for a bandit ∇²J = diag(πA) − π(πA)ᵀ − (πA)πᵀ, at most '
  'the range of r; α H adds at most α (½ + 2.5 log K).',
  verdict='holds',
  formula=lambda pi, g: (
    np.eye(5) * g[:, None]
    - pi[:, :, None] * g[:, None]
    - g[:, :, None] * pi[:, None]
  ),
)
def smoothness(lab: Lab, formula: Formula) -> Evidence:
  """Compares the Hessian with autodiff."""
  random = lab.random()
  z = sm.random_logits(random, 300, 5)
  rewards = random.uniform(size=(300, 5))
  autodiff = jax.jit(jax.vmap(jax.hessian(lambda z, r: jax.nn.softmax(z) @ r)))(
    z, rewards
  )
  pi = sm.softmax(z)
  hessian = formula(pi, gradient(z, rewards))
  largest = abs(np.linalg.eigvalsh(np.asarray(autodiff))).max()
  return Evidence(
    printed=[
      below('largest |eigenvalue|, r in [0, 1]', largest, 1.0),
      below('error of the Hessian', abs(hessian - autodiff).max(), EXACT),
    ]
  )


def bandits(lab: Lab) -> tuple[Rewards, Rewards]:
  """Logits to start from, and rewards in [0, 1]."""
  random = lab.random()
  return random.normal(size=(40, 5)), random.uniform(size=(40, 5))


def value(
  z: Rewards, rewards: Rewards, alpha: float
) -> Float[np.ndarray, '*n']:
  """E r + α H."""
  pi = sm.softmax(z)
  return sm.mean(pi, rewards) + alpha * sm.entropy(pi)


@claim(
  'Thm VII.2 (29)',
  printed='min ‖∇J_reg‖² ≤ 2 (J_reg(θ_0) − J*_reg)/(η T).',
  holds='The sign is reversed (as printed a negative number bounds a square): '
  '2 (J*_reg − J_reg(θ_0))/(η T). The bound is loose; the rate is linear.',
  verdict='fails',
  formula=lambda gap, rate, steps: 2 * gap / (rate * steps),
  wrong=(-1.0, 0.1),
)
def regularised_rate(lab: Lab, formula: Formula) -> Evidence:
  """Gradient ascent on E r + α H with η = 1/L."""
  z, rewards = bandits(lab)
  alpha = 0.1
  rate = 1 / (1 + alpha * (0.5 + 2.5 * np.log(5)))
  best = alpha * np.log(np.exp(rewards / alpha).sum(-1))
  gap = best - value(z, rewards, alpha)
  least, excess, printed, products = np.full(40, np.inf), [], [], []
  for step in range(1, lab.size(2000, 400) + 1):
    g = gradient(z, rewards, alpha)
    least = np.minimum(least, (g**2).sum(-1))
    excess.append((least - formula(gap, rate, step)).max())
    printed.append((least > -2 * gap / (rate * step)).mean())
    products.append(step * least.mean())
    z = z + rate * g
  return Evidence(
    printed=[below('share of steps that violate it', np.mean(printed), 0.0)],
    holds=[
      below('largest excess over the corrected bound', max(excess), 0.0),
      below(
        'growth of T · min ‖∇J_reg‖², last ¾ of the run',
        products[-1] / products[len(products) // 4],
        0.5,
      ),
    ],
  )


@claim(
  'Thm VII.2 (30)',
  printed='Limit points satisfy ∇J + α ∇H = 0.',
  holds='As printed; in a bandit the limit is π = softmax(r/α).',
  verdict='holds',
  formula=lambda rewards, alpha: rewards / alpha,
)
def regularised_limit(lab: Lab, formula: Formula) -> Evidence:
  """Gradient ascent on E r + α H for long, α = 0.3."""
  z, rewards = bandits(lab)
  for _ in range(3000):
    z = z + gradient(z, rewards, 0.3)
  end = gradient(z, rewards, 0.3)
  distance = abs(sm.softmax(z) - sm.softmax(formula(rewards, 0.3))).max()
  return Evidence(
    printed=[below('|∇J + α ∇H| at the end', abs(end).max(), 1e-9)],
    holds=[below('distance to softmax(r/α)', distance, 1e-7)],
  )


@claim(
  'Thm VII.3 (31)',
  printed='KL-Cov with β_t → 0 converges to θ* with ∇J(θ*) = 0, and with '
  'η_t = η_0/t at rate O(1/T).',
  holds='‖∇J(θ_t)‖ → 0, but θ_t diverges where the optimum is deterministic, '
  'and η_t = 1/t is not O(1/T). What is true (biased ascent, ‖b_t‖ ≤ C β_t, η '
  '≤ 1/L): J rises by at least η/2 (‖∇J‖² − ‖b‖²) a step, so min ‖∇J‖² ≤ [2 (J* '
  '− J_0) + C² Σ η β²]/Σ η. And the full KL to the rollout’s policy needs no '
  'annealing: it vanishes where π = π_old.',
  verdict='fails',
  formula=lambda rate, g, b: rate / 2 * (g - b),
  wrong=(-1.0, 2.5),
)
def covariance_rate(lab: Lab, formula: Formula) -> Evidence:
  """1/t steps; adversarial biases; a constant full KL."""
  steps = lab.size(20_000, 3000)
  ends = _one_over_t(lab, steps)
  growth = ends[-1] / ends[len(ends) // 4]
  slack, excess = _biased_ascent(lab, formula)
  plain, penalised = (_rollouts(lab, beta, steps) for beta in (0.0, 1.0))
  norms = [abs(z).max() for z in plain]
  return Evidence(
    printed=[
      below('growth of T · min ‖∇J‖² under η = 1/t', growth, 1.05),
      below(
        'growth of the largest logit, last ¾ of the run',
        norms[1] / norms[0],
        1.05,
      ),
    ],
    holds=[
      above('least gain of a step over its bound', slack, -1e-12),
      below('largest excess over the corrected rate', excess, 0.0),
      near(
        'gap under constant β over gap without',
        _gap(lab, penalised[1]) / _gap(lab, plain[1]),
        1,
        0.1,
      ),
    ],
  )


def _one_over_t(lab: Lab, steps: int) -> Float[np.ndarray, ' t']:
  """T · min ‖∇J‖² along a run with η_t = 1/t, mean over bandits."""
  z, rewards = bandits(lab)
  least, product = np.full(40, np.inf), []
  for step in range(1, steps + 1):
    g = gradient(z, rewards)
    least = np.minimum(least, (g**2).sum(-1))
    product.append(step * least.mean())
    z = z + g / step
  return np.array(product)


def _biased_ascent(lab: Lab, formula: Formula) -> tuple[float, float]:
  """Least slack of the per-step gain, and largest excess over the rate."""
  z, rewards = bandits(lab)
  random, rate = lab.random(), 1.0
  gap = rewards.max(-1) - value(z, rewards, 0.0)
  least = np.full(40, np.inf)
  slack, excess, noise = np.inf, -np.inf, 0.0
  for step in range(1, 401):
    g = gradient(z, rewards)
    beta = 0.1 * step**-0.5
    towards = -g if step % 2 else random.normal(size=g.shape)
    bias = beta * towards / np.linalg.norm(towards, axis=-1, keepdims=True)
    before = value(z, rewards, 0.0)
    z = z + rate * (g + bias)
    square = (g**2).sum(-1)
    gain = value(z, rewards, 0.0) - before
    slack = min(slack, (gain - formula(rate, square, beta**2)).min())
    least = np.minimum(least, square)
    noise += rate * beta**2
    excess = max(excess, (least - (2 * gap + noise) / (rate * step)).max())
  return float(slack), float(excess)


@functools.cache
def _rollouts(lab: Lab, beta: float, steps: int) -> tuple[Rewards, Rewards]:
  """Logits a quarter through and at the end, full KL to each rollout's start."""
  z, rewards = bandits(lab)
  middle = z
  for rollout in range(steps // 4):
    old = sm.softmax(z)
    for _ in range(4):
      z = z + gradient(z, rewards) - beta * (sm.softmax(z) - old)
    if rollout == steps // 16:
      middle = z
  return middle, z


def _gap(lab: Lab, z: Rewards) -> float:
  """Mean reward lost."""
  _, rewards = bandits(lab)
  return float((rewards.max(-1) - sm.mean(sm.softmax(z), rewards)).mean())


SCHEDULES: dict[str, Callable[[int], float]] = {
  'none': lambda t: 0.0,
  'exponential': lambda t: 0.3 * np.exp(-t / 300),
  '1/t': lambda t: 0.3 / t,
  '1/√t': lambda t: 0.3 * t**-0.5,
  '1/∜t': lambda t: 0.3 * t**-0.25,
  '1/log t': lambda t: 0.3 / np.log(t + 2),
  'constant': lambda t: 0.3,
}


@claim(
  'Remark VII.1',
  printed='By annealing, covariance methods become asymptotically unbiased, '
  'whereas entropy regularisation biases the solution permanently.',
  holds='An annealed bonus is as asymptotically unbiased as an annealed '
  'penalty. It is a constant coefficient that biases, by max r − E[r] under '
  'softmax(r/α).',
  verdict='fails',
  formula=lambda r, alpha: r.max(-1) - sm.mean(sm.softmax(r / alpha), r),
)
def annealed_bonus(lab: Lab, formula: Formula) -> Evidence:
  """Exact ascent with the bonus under seven schedules."""
  times, gaps = annealed(lab)
  _, rewards = bandits(lab)
  last = {name: gaps[name][-1] for name in SCHEDULES}
  constant = formula(rewards, 0.3).mean()
  return Evidence(
    printed=[
      above(
        'gap of the bonus annealed as 1/√t, over none',
        last['1/√t'] / last['none'],
        10.0,
      )
    ],
    holds=[
      near('the same ratio, 1/t', last['1/t'] / last['none'], 1, 0.2),
      near(
        'gap of the constant bonus over its closed form',
        last['constant'] / constant,
        1,
        1e-3,
      ),
    ],
    pictures=[
      Picture(
        'Annealing unbiases the bonus too',
        'step',
        'reward lost',
        [Curve(name, times, gaps[name]) for name in SCHEDULES],
        caption='Exact gradient ascent with an entropy bonus 0.3 · schedule; '
        'mean over forty bandits. Only the constant one keeps a gap.',
        log_x=True,
        log_y=True,
      )
    ],
  )


@functools.cache
def annealed(
  lab: Lab,
) -> tuple[Float[np.ndarray, ' t'], dict[str, Float[np.ndarray, ' t']]]:
  """Mean reward lost along runs, by schedule."""
  steps = lab.size(30_000, 3000)
  times = np.unique(np.logspace(0, np.log10(steps), 40).astype(int))
  start, rewards = bandits(lab)
  z = np.repeat(start[None], len(SCHEDULES), 0)
  gaps = []
  for step in range(1, steps + 1):
    alpha = np.array([at(step) for at in SCHEDULES.values()])[:, None, None]
    pi = sm.softmax(z)
    z = z + pi * (sm.centred(pi, rewards[None]) - alpha * sm.surprise(pi))
    if step in times:
      lost = rewards.max(-1) - sm.mean(sm.softmax(z), rewards[None])
      gaps.append(lost.mean(-1))
  columns = np.array(gaps).T
  return times.astype(float), dict(zip(SCHEDULES, columns, strict=True))
