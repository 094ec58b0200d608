# SPDX-License-Identifier: Apache-2.0
"""Section VII.B, convergence of exact gradient ascent in random bandits."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jaxtyping import Float

from covrl.theory import categorical, gradient_ascent
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
from covrl.theory.gradient_ascent import (
  Vectors,
  gradient,
  random_bandits,
  reward_gap,
  squared_norm,
  value,
)

SECTION = Section('VII.B Convergence')
claim = SECTION.claim


@claim(
  'Assumption VII.1',
  printed='r is bounded, J is L-smooth, and η ≤ 1/L.',
  corrected='As printed: for a bandit ∇²J = diag(πA) − π(πA)ᵀ − (πA)πᵀ, so L is at '
  'most half the range of r. α H adds at most 2 α log K (Lemma IV.2).',
  verdict='holds',
  formula=lambda pi, g: (
    np.eye(5) * g[:, None]
    - pi[:, :, None] * g[:, None]
    - g[:, :, None] * pi[:, None]
  ),
  wrong_formulas=(
    lambda pi, g: np.eye(5) * g[:, None] - pi[:, :, None] * g[:, None],
  ),
)
def smoothness(settings: Settings, formula: Formula) -> Evidence:
  """Compares the Hessian with autodiff."""
  rng = settings.rng()
  z = categorical.random_logits(rng, 300, 5)
  rewards = rng.uniform(size=(300, 5))
  autodiff = jax.jit(jax.vmap(jax.hessian(lambda z, r: jax.nn.softmax(z) @ r)))(
    z, rewards
  )
  pi = categorical.softmax(z)
  hessian = formula(pi, gradient(z, rewards))
  largest = abs(np.linalg.eigvalsh(np.asarray(autodiff))).max()
  return Evidence(
    printed=[
      at_most('largest |eigenvalue| divided by the range of r', largest, 0.5),
      at_most(
        'error of the Hessian', abs(hessian - autodiff).max(), EXACT_TOLERANCE
      ),
    ]
  )


@claim(
  'Thm VII.2 (29)',
  printed='min ‖∇J_reg‖² ≤ 2 (J_reg(θ_0) − J*_reg)/(η T).',
  corrected='The sign is reversed (as printed, a negative number bounds a square): '
  '2 (J*_reg − J_reg(θ_0))/(η T). The bound is tight for T = 1; for larger T '
  'convergence is linear and the bound is loose.',
  verdict='fails',
  formula=lambda gap, rate, steps: 2 * gap / (rate * steps),
)
def regularised_rate(settings: Settings, formula: Formula) -> Evidence:
  """Runs gradient ascent on E r + α H with η = 1/L."""
  z, rewards = random_bandits(settings)
  alpha = 0.1
  rate = 1 / (0.5 + 2 * alpha * np.log(5))
  best = alpha * np.log(np.exp(rewards / alpha).sum(-1))
  gap = best - value(z, rewards, alpha)
  least_square, excess, violated = np.full(len(z), np.inf), [], []
  squares = []
  for step in range(1, settings.choose(2000, 400) + 1):
    g = gradient(z, rewards, alpha)
    least_square = np.minimum(least_square, squared_norm(g))
    excess.append((least_square - formula(gap, rate, step)).max())
    violated.append((least_square > -2 * gap / (rate * step)).mean())
    squares.append(np.median(least_square))
    z = z + rate * g
  peak, smoothness, entropy_gap = gradient_ascent.near_entropy_maximum(settings)
  peak_square = squared_norm(gradient(peak, np.zeros((1, 5)), 1.0))[0]
  half = len(squares) // 2
  return Evidence(
    printed=[
      at_most('fraction of steps that violate it', np.mean(violated), 0.0)
    ],
    corrected=[
      at_most('largest excess over the corrected bound', max(excess), 0.0),
      close_to(
        '‖∇H‖² near the maximum of H divided by the bound, T = 1, η = 1/L',
        peak_square / formula(entropy_gap, 1 / smoothness, 1),
        1,
        0.01,
      ),
      at_most(
        'median of min ‖∇J_reg‖² at T divided by that at T/2 (O(1/T): ½)',
        squares[-1] / squares[half],
        0.3,
      ),
    ],
  )


@claim(
  'Thm VII.2 (30)',
  printed='Limit points satisfy ∇J + α ∇H = 0.',
  corrected='As printed; in a bandit the limit is π = softmax(r/α).',
  verdict='holds',
  formula=lambda rewards, alpha: rewards / alpha,
)
def regularised_limit(settings: Settings, formula: Formula) -> Evidence:
  """Runs 3000 steps of gradient ascent on E r + α H with α = 0.3."""
  z, rewards = random_bandits(settings)
  for _ in range(3000):
    z = z + gradient(z, rewards, 0.3)
  end = gradient(z, rewards, 0.3)
  distance = abs(
    categorical.softmax(z) - categorical.softmax(formula(rewards, 0.3))
  ).max()
  return Evidence(
    printed=[at_most('|∇J + α ∇H| at the end', abs(end).max(), 1e-9)],
    corrected=[at_most('distance to softmax(r/α)', distance, 1e-9)],
  )


@claim(
  'Thm VII.3 (31)',
  printed='KL-Cov with β_t → 0 converges to θ* with ∇J(θ*) = 0 at rate O(1/T); '
  'the proof uses η_t = η_0/t.',
  corrected='‖∇J(θ_t)‖ → 0, but θ_t diverges if the optimum is deterministic, and '
  'η_t = 1/t does not give O(1/T). For biased ascent with ‖b_t‖ ≤ C β_t and η ≤ '
  '1/L, J rises by at least η/2 (‖∇J‖² − ‖b‖²) per step, so min ‖∇J‖² ≤ [2 (J* − '
  'J_0) + C² Σ η β²]/Σ η. V = ½ ‖∇J‖² in the proof does not always fall. The '
  'full KL to the policy of the rollout needs no annealing, since it vanishes at '
  'π = π_old.',
  verdict='fails',
  formula=lambda rate, g, b: rate / 2 * (g - b),
  wrong_formulas=(lambda rate, g, b: rate / 2 * (g + b),),
)
def covariance_rate(settings: Settings, formula: Formula) -> Evidence:
  """Runs ascent with steps 1/t, with worst-case biases, and with full KL."""
  steps = settings.choose(20_000, 3000)
  products, grew = _one_over_t(settings, steps)
  slack, excess, tight = _biased_ascent(settings, formula)
  quarter, end = _run_rollouts(settings, 1.0, steps)
  plain_quarter, plain_end = _run_rollouts(settings, 0.0, steps)
  _, rewards = random_bandits(settings)
  logits = [abs(z[:-1]).max() for z in (plain_quarter, plain_end)]
  # The last row is the bandit of two actions, whose gap is 1/(2ηt).
  gap_ratios = [
    2 * steps * reward_gap(z, _append_two_action_rewards(rewards))[-1]
    for z in (plain_end, end)
  ]
  gradients = [
    np.median(squared_norm(gradient(z, _append_two_action_rewards(rewards))))
    for z in (quarter, end)
  ]
  return Evidence(
    printed=[
      at_most(
        'growth of T · min ‖∇J‖² from T/4 to T, η = 1/t',
        products[-1] / products[len(products) // 4],
        1.05,
      ),
      at_most(
        'growth of the largest logit from T/4 to T, η = 1',
        logits[1] / logits[0],
        1.05,
      ),
    ],
    corrected=[
      at_least('least gain of a step minus its bound', slack, -EXACT_TOLERANCE),
      close_to(
        'gain divided by its bound near the maximum of H', tight, 1, 0.01
      ),
      at_most('largest excess over the corrected bound', excess, 0.0),
      at_least('fraction of steps in which ‖∇J‖² grows', grew, 0.01),
      at_most(
        'median ‖∇J‖² at T divided by that at T/4, constant β',
        gradients[1] / gradients[0],
        0.1,
      ),
      close_to(
        'reward gap without β divided by 1/(2ηt), two actions',
        gap_ratios[0],
        1,
        0.02,
      ),
      close_to('the same, constant β = 1', gap_ratios[1], 1, 0.02),
    ],
  )


def _one_over_t(
  settings: Settings, steps: int
) -> tuple[Float[np.ndarray, ' t'], float]:
  """Mean of T · min ‖∇J‖² for η_t = 1/t, and how often ‖∇J‖² grew."""
  z, rewards = random_bandits(settings)
  least_square, product, grew = np.full(len(z), np.inf), [], []
  previous_square = np.inf
  for step in range(1, steps + 1):
    g = gradient(z, rewards)
    square = squared_norm(g)
    grew.append((square > previous_square).mean())
    previous_square, least_square = square, np.minimum(least_square, square)
    product.append(step * least_square.mean())
    z = z + g / step
  return np.array(product), float(np.mean(grew))


def _biased_ascent(
  settings: Settings, formula: Formula
) -> tuple[float, float, float]:
  """Slack of the bound on the gain, excess over the rate, and a tight gain.

  Returns:
    Least gain minus its bound, largest excess over the bound on min ‖∇J‖², and
    the gain divided by its bound where this is tight.
  """
  z, rewards = random_bandits(settings)
  rng, rate = settings.rng(), 2.0  # 1/L for rewards in [0, 1].
  gap = reward_gap(z, rewards)
  least_square = np.full(len(z), np.inf)
  slack, excess, bias_sum = np.inf, -np.inf, 0.0
  for step in range(1, 401):
    g = gradient(z, rewards)
    beta = 0.1 * step**-0.5
    direction = -g if step % 2 else rng.normal(size=g.shape)
    bias = beta * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    before = reward_gap(z, rewards)
    z = z + rate * (g + bias)
    gain = before - reward_gap(z, rewards)
    slack = min(slack, (gain - formula(rate, squared_norm(g), beta**2)).min())
    least_square = np.minimum(least_square, squared_norm(g))
    bias_sum += rate * beta**2
    excess = max(
      excess, (least_square - (2 * gap + bias_sum) / (rate * step)).max()
    )
  peak, smoothness, _ = gradient_ascent.near_entropy_maximum(settings)
  g = gradient(peak, np.zeros((1, 5)), 1.0)
  b = 0.5 * np.roll(g, 1, axis=-1)
  gain = categorical.entropy(
    categorical.softmax(peak + (g + b) / smoothness)
  ) - categorical.entropy(categorical.softmax(peak))
  tight = gain / formula(1 / smoothness, squared_norm(g), squared_norm(b))
  return float(slack), float(excess), float(tight[0])


@functools.cache
def _run_rollouts(
  settings: Settings, beta: float, steps: int
) -> tuple[Vectors, Vectors]:
  """Logits after a quarter of the run and at the end, with a full KL penalty.

  Args:
    settings: settings of the run.
    beta: coefficient of the KL to the policy at the start of each rollout.
    steps: number of updates, four per rollout.

  Returns:
    Logits for the random bandits and, in the last row, for a bandit of two
    actions with rewards 1 and 0.
  """
  start, rewards = random_bandits(settings)
  z, rewards = (
    np.concatenate([start, _TWO_ACTIONS]),
    _append_two_action_rewards(rewards),
  )
  quarter = z
  for rollout in range(steps // 4):
    old = categorical.softmax(z)
    for _ in range(4):
      z = z + gradient(z, rewards) - beta * (categorical.softmax(z) - old)
    if rollout == steps // 16:
      quarter = z
  return quarter, z


_TWO_ACTIONS = np.array([[0.0, 0.0, -1e3, -1e3, -1e3]])


def _append_two_action_rewards(
  rewards: Float[np.ndarray, 'n K'],
) -> Float[np.ndarray, 'm K']:
  """The rewards of the bandits in `_run_rollouts`."""
  return np.concatenate([rewards, np.array([[1.0, 0.0, 0.0, 0.0, 0.0]])])


@claim(
  'Remark VII.1',
  printed='By annealing, covariance methods become asymptotically unbiased, '
  'whereas entropy regularisation biases the solution permanently.',
  corrected='An annealed bonus is as asymptotically unbiased as an annealed '
  'penalty. Only a constant coefficient biases, by max r − E[r] under '
  'softmax(r/α).',
  verdict='fails',
  formula=lambda r, alpha: (
    r.max(-1) - categorical.expectation(categorical.softmax(r / alpha), r)
  ),
)
def annealed_bonus(settings: Settings, formula: Formula) -> Evidence:
  """Compares exact ascent with seven schedules of the bonus."""
  times, gaps = gradient_ascent.annealed_reward_gaps(settings)
  _, rewards = random_bandits(settings)
  last = {name: gaps[name][-1] for name in gaps}
  constant = formula(rewards, 0.3).mean()
  return Evidence(
    printed=[
      at_least(
        'gap for the bonus annealed as 1/√t divided by that without bonus',
        last['1/√t'] / last['none'],
        10.0,
      )
    ],
    corrected=[
      close_to('the same ratio for 1/t', last['1/t'] / last['none'], 1, 0.2),
      close_to(
        'gap for the constant bonus divided by its closed form',
        last['constant'] / constant,
        1,
        1e-3,
      ),
    ],
    plots=[
      Plot(
        'An annealed bonus is unbiased too',
        'step',
        'reward gap',
        [Curve(name, times, gaps[name]) for name in gaps],
        caption='Exact gradient ascent with an entropy bonus 0.3 · schedule; '
        'mean over forty bandits, dominated by the slowest. Only the constant '
        'bonus keeps a gap.',
        log_x=True,
        log_y=True,
      )
    ],
  )
