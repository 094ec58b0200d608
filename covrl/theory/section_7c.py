# SPDX-License-Identifier: Apache-2.0
"""Sections VII.C and D: stability margins, and what the methods cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import covrl
from covrl.theory import softmax as sm
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

SECTION = Section('VII.C–D Stability and cost')
claim = SECTION.claim

Many = Float[np.ndarray, '... K']


def ray_divergence(
  pi: Many, u: Many, rate: Float[np.ndarray, '...']
) -> Float[np.ndarray, '...']:
  """KL(π ‖ π_η) after moving the logits by η u: log E e^{ηv}, v = u − E u."""
  v = rate[..., None] * sm.centred(pi, u)
  return np.log1p(sm.mean(pi, np.expm1(v)))


def margin(
  pi: Float[np.ndarray, '*n S K'],
  u: Float[np.ndarray, '*n S K'],
  epsilon: float,
) -> Float[np.ndarray, '*n']:
  """γ: the step at which the KL, summed over states, reaches ε; (32).

  Found by bisection in the logarithm, around the quadratic's √(2ε)/‖u‖_F: the
  KL grows along the ray.
  """
  guess = np.sqrt(2 * epsilon / fisher(pi, u, u))
  low, high = 1e-3 * guess, 1e3 * guess
  for _ in range(70):
    middle = np.sqrt(low * high)
    with np.errstate(over='ignore', invalid='ignore'):
      total = ray_divergence(pi, u, middle[..., None]).sum(-1)
    within = total <= epsilon
    low, high = np.where(within, middle, low), np.where(within, high, middle)
  return np.asarray(low)


def fisher(
  pi: Float[np.ndarray, '*n S K'],
  u: Float[np.ndarray, '*n S K'],
  v: Float[np.ndarray, '*n S K'],
) -> Float[np.ndarray, '*n']:
  """⟨u, v⟩ in the Fisher metric: Σ_s Cov(u, v)."""
  return np.asarray(sm.covariance(pi, u, v).sum(-1))


@claim(
  'Def. VII.2 (32)',
  printed='γ = max{η > 0: KL(π_old ‖ π_new) ≤ ε}.',
  holds='Well defined: along a ray the KL is log E e^{ηu} − η E u, convex and '
  'increasing, so bisection finds γ.',
  verdict='holds',
  formula=lambda log_mean, mean: log_mean - mean,
)
def stability_margin(lab: Lab, formula: Formula) -> Evidence:
  """Follows random rays."""
  random = lab.random()
  z, u = random.normal(size=(2, 200, 1, 6))
  pi = sm.softmax(z)
  rates = np.linspace(0, 3, 61)[:, None, None]
  moved = sm.softmax(z + rates[..., None] * u)
  along = sm.kl(np.broadcast_to(pi, moved.shape), moved)
  log_mean = np.log(sm.mean(pi, np.exp(rates[..., None] * u)))
  closed = formula(log_mean, rates * sm.mean(pi, u))
  gamma = margin(pi, u, 0.1)
  at = ray_divergence(pi, u, gamma[:, None])
  return Evidence(
    printed=[
      above('least growth between steps', np.diff(along, axis=0).min(), 0.0),
      above('least second difference', np.diff(along, 2, axis=0).min(), -EXACT),
      below('|KL − ε| at γ', abs(at - 0.1).max(), 1e-10),
    ],
    holds=[below('error of the closed form', abs(along - closed).max(), EXACT)],
  )


@claim(
  'Thm VII.4 (33)',
  printed='γ_reg ≤ γ_base/(1 + α κ), κ = ‖∇H‖_F/‖∇J‖_F.',
  holds='γ_reg/γ_base = 1/√(1 + 2 α κ c + α² κ²), c the Fisher cosine of ∇H and '
  '∇J: between 1/(1 + ακ), reached at c = 1, and 1/|1 − ακ|. What is printed as '
  'an upper bound is the lower one. The margin grows where 2c + ακ < 0, which is '
  'most of the cases of entropy collapse. The proof’s ‖∇J + α∇H‖ ≥ ‖∇J‖ is no '
  'triangle inequality.',
  verdict='fails',
  formula=lambda x, c: 1 / np.sqrt(1 + 2 * x * c + x**2),
  slips=(
    lambda x, c: 1 / np.sqrt(1 + x * c + x**2),
    lambda x, c: 1 / (1 + x),
  ),
)
def margin_of_bonus(lab: Lab, formula: Formula) -> Evidence:
  """Random states and advantages, α = 0.3, ε = 1e-8."""
  random = lab.random()
  n, alpha = lab.size(4000, 1000), 0.3
  pi = sm.softmax(sm.random_logits(random, n, 6, (0.5, 1.0, 2.0)))[:, None]
  g = pi * sm.centred(pi, random.normal(size=pi.shape))
  h = -pi * sm.surprise(pi)
  size, other = np.sqrt(fisher(pi, g, g)), np.sqrt(fisher(pi, h, h))
  cosine = fisher(pi, g, h) / (size * other)
  ratio = margin(pi, g + alpha * h, 1e-8) / margin(pi, g, 1e-8)
  x = alpha * other / size
  collapse = sm.covariance(pi, np.log(pi), g)[:, 0] > 0
  error = abs(ratio / formula(x, cosine) - 1)
  return Evidence(
    printed=[
      below(
        'share that violates it', (ratio > (1 + 1e-3) / (1 + x)).mean(), 0.0
      )
    ],
    holds=[
      below('median relative error of the formula', np.median(error), 1e-4),
      below('the same, 99 of 100 below', np.quantile(error, 0.99), 0.01),
      below('share outside the two envelopes', _outside(ratio, x).mean(), 0.0),
      above(
        'share of collapses where the margin grows',
        (ratio[collapse] > 1).mean(),
        0.6,
      ),
    ],
    pictures=[_envelopes(lab, formula)],
  )


def _outside(
  ratio: Float[np.ndarray, ' n'], x: Float[np.ndarray, ' n']
) -> Float[np.ndarray, ' n']:
  """1 where a margin is not between 1/(1 + x) and 1/|1 − x|, to 1 in 1000."""
  low, high = (1 - 1e-3) / (1 + x), (1 + 1e-3) / abs(1 - x)
  return np.where((ratio < low) | (ratio > high), 1.0, 0.0)


def _envelopes(lab: Lab, formula: Formula) -> Picture:
  """Measured margins for given cosines, between the two envelopes."""
  random = lab.random()
  pi = sm.softmax(random.normal(size=(1, 8)))
  g, w = (sm.centred(pi, random.normal(size=(1, 8))) for _ in range(2))
  g = g / np.sqrt(fisher(pi, g, g))
  w = w - fisher(pi, g, w) * g
  w = w / np.sqrt(fisher(pi, w, w))
  alphas = np.linspace(0, 2.5, 51)
  base = margin(pi, g, 1e-8)
  curves = []
  for cosine in (1.0, 0.5, 0.0, -0.5, -0.8):
    h = cosine * g + np.sqrt(1 - cosine**2) * w
    rays = g + alphas[:, None, None] * h
    steps = margin(np.broadcast_to(pi, rays.shape), rays, 1e-8) / base
    curves.append(Curve(f'c = {cosine:g}'.replace('-', '−'), alphas, steps))
  curves.append(
    Curve('lower envelope, c = 1', alphas, formula(alphas, 1.0), dashed=True)
  )
  for name, part in (
    ('upper envelope, c = −1', alphas[alphas < 0.65]),
    ('the same, beyond its pole', alphas[alphas > 1.42]),
  ):
    curves.append(Curve(name, part, formula(part, -1.0), dashed=True, color=6))
  return Picture(
    'A bonus can widen the stability margin',
    'α κ, size of the bonus relative to the gradient',
    'margin, relative to no bonus',
    curves,
    caption='Theorem VII.4, measured by bisection; c is the Fisher cosine of ∇H '
    'and ∇J. The theorem puts every curve at or below the lower envelope. The '
    'upper one has its pole at ακ = 1.',
  )


@claim(
  'Thm VII.4 (34)',
  printed='γ_KL-Cov = γ_base + O(kβ), so γ_KL-Cov ≈ γ_base for small k.',
  holds='To first order γ_KL/γ − 1 = β ⟨g, q⟩_F/‖g‖²_F, q the selected penalty '
  '(0 at the first update): O(kβ) relative to the size of the gradient, hence '
  'not uniform as the gradient vanishes.',
  verdict='holds if the constant is relative to ‖∇J‖',
  formula=lambda inner, square: inner / square,
)
def margin_of_penalty(lab: Lab, formula: Formula) -> Evidence:
  """Four hundred states, the penalty on one of them, or on more at random."""
  random = lab.random()
  z = random.normal(size=(400, 6))
  old = sm.softmax(z)
  own = sm.centred(old, random.normal(size=old.shape))
  pi = sm.softmax(z + 2 * old * own)
  g = pi * sm.centred(pi, own)
  shift = pi - old
  worst = abs(shift).sum(-1).argmax()
  q = np.where(np.arange(400)[:, None] == worst, shift, 0)
  betas = np.array([0.001, 0.01, 0.1])
  base = margin(pi, g, 1e-8)
  moved = np.array([margin(pi, g - b * q, 1e-8) / base - 1 for b in betas])
  predicted = formula(fisher(pi, g, q), fisher(pi, g, g)) * betas
  faint = margin(pi, g / 100 - 0.01 * q, 1e-8) / margin(pi, g / 100, 1e-8) - 1
  counts, means = np.array([4, 20, 100]), []
  for count in counts:
    chosen = random.random((30, 400, 1)).argsort(1) < count
    rays = g - 0.01 * np.where(chosen, shift, 0)
    many = margin(np.broadcast_to(pi, rays.shape), rays, 1e-8)
    means.append(abs(many / base - 1).mean())
  return Evidence(
    printed=[
      below('deviation at ‖g‖/100 over that at ‖g‖', abs(faint / moved[1]), 2.0)
    ],
    given=[
      near('exponent in β', sm.slope(betas, abs(moved)), 1, 0.02),
      near(
        'exponent in k, states at random',
        sm.slope(counts.astype(float), np.array(means)),
        1,
        0.1,
      ),
    ],
    holds=[
      near(
        'deviation over its prediction, β = .01',
        moved[1] / predicted[1],
        1,
        0.01,
      ),
    ],
  )


@claim(
  'Prop. VII.1',
  printed='A bonus costs O(N), covariance methods O(N log N).',
  holds='The entropy needs a sum over the vocabulary: O(N V). The k best are '
  'found by counting, in O(N) with no sort: O(N log N) is only an upper bound.',
  verdict='holds if V is a constant, as an upper bound',
  formula=lambda per_logit, n, v: per_logit * n * v,
)
def cost(lab: Lab, formula: Formula) -> Evidence:
  """Counts operations in compiled programs; nothing is timed."""
  del lab

  def entropies(logits: jax.Array) -> jax.Array:
    log_pi = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1)

  def select(scores: jax.Array) -> jax.Array:
    mask = jnp.ones(scores.shape, bool)
    return covrl.select_top(scores, mask, fraction=0.01)

  small, _ = _operations(entropies, (64, 256))
  large, _ = _operations(entropies, (128, 1024))
  long, _ = _operations(entropies, (128, 256))
  wide, _ = _operations(entropies, (64, 512))
  few, text = _operations(select, (8, 512))
  many, _ = _operations(select, (8, 1024))
  return Evidence(
    printed=[
      below(
        'growth of the entropy’s cost as V doubles, N as it is',
        wide / small,
        1.05,
      )
    ],
    given=[
      near('growth of its cost as N doubles', long / small, 2, 0.05),
      below('growth of a pass of the selection as N doubles', many / few, 2.16),
    ],
    holds=[
      near(
        'cost at (2N, 4V) over prediction',
        large / formula(small / (64 * 256), 128, 1024),
        1,
        0.03,
      ),
      near('growth of a pass of the selection', many / few, 2, 0.1),
      below('sorts in the selection’s program', text.count(' sort('), 0),
    ],
  )


def _operations(
  function: Callable[[jax.Array], Any], shape: tuple[int, int]
) -> tuple[float, str]:
  """Floating-point operations of a compiled function, and its program."""
  argument = jax.ShapeDtypeStruct(shape, jnp.float32)
  compiled = jax.jit(function).lower(argument).compile()
  analysis = compiled.cost_analysis() or {}
  return float(analysis['flops']), str(compiled.as_text())
