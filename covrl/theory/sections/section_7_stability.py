# SPDX-License-Identifier: Apache-2.0
"""Sections VII.C and D: stability margins and computational cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import covrl
from covrl.array_checks import check_number
from covrl.theory import categorical
from covrl.theory.argument_checks import check_finite
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

SECTION = Section('VII.C–D Stability and cost')
claim = SECTION.claim

Vectors = Float[np.ndarray, '... K']


def ray_divergence(
  pi: Vectors, u: Vectors, rate: Float[np.ndarray, '...']
) -> Float[np.ndarray, '...']:
  """KL(π ‖ π_η) after moving the logits by η u: log E e^{ηv}, v = u − E u."""
  check_finite('rate', rate)
  v = rate[..., None] * categorical.centred(pi, u)
  return np.log1p(categorical.expectation(pi, np.expm1(v)))


def margin(
  pi: Float[np.ndarray, '*n S K'],
  u: Float[np.ndarray, '*n S K'],
  epsilon: float,
) -> Float[np.ndarray, '*n']:
  """γ of (32): the step at which the KL, summed over states, reaches ε.

  Found by bisection in the logarithm around the quadratic approximation
  √(2ε)/‖u‖_F, since the KL grows along the ray.

  Raises:
    ValueError: ε is not positive, or the logits do not move.
  """
  check_number('epsilon', epsilon, 0, is_open=True)
  squared_norm = fisher(pi, u, u)
  if not (squared_norm > 0).all():
    raise ValueError(
      f'u must change the policy, got the squared norm {squared_norm.min():g}'
    )
  guess = np.sqrt(2 * epsilon / squared_norm)
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
  return np.asarray(categorical.covariance(pi, u, v).sum(-1))


@claim(
  'Def. VII.2 (32)',
  printed='γ = max{η > 0: KL(π_old ‖ π_new) ≤ ε}.',
  corrected='As printed. Along a ray the KL is log E e^{ηu} − η E u, which is '
  'convex and increasing, so bisection finds γ.',
  verdict='holds',
  formula=lambda log_mean, mean: log_mean - mean,
)
def stability_margin(settings: Settings, formula: Formula) -> Evidence:
  """Computes the KL along random rays."""
  rng = settings.rng()
  z, u = rng.normal(size=(2, 200, 1, 6))
  pi = categorical.softmax(z)
  rates = np.linspace(0, 3, 61)[:, None, None]
  updated = categorical.softmax(z + rates[..., None] * u)
  ray_kl = categorical.kl(np.broadcast_to(pi, updated.shape), updated)
  log_mean = np.log(categorical.expectation(pi, np.exp(rates[..., None] * u)))
  closed_form = formula(log_mean, rates * categorical.expectation(pi, u))
  gamma = margin(pi, u, 0.1)
  divergences = ray_divergence(pi, u, gamma[:, None])
  return Evidence(
    printed=[
      at_least(
        'least growth between steps', np.diff(ray_kl, axis=0).min(), 0.0
      ),
      at_least(
        'least second difference',
        np.diff(ray_kl, 2, axis=0).min(),
        -EXACT_TOLERANCE,
      ),
      at_most('|KL − ε| at γ', abs(divergences - 0.1).max(), 1e-10),
    ],
    corrected=[
      at_most(
        'error of the closed form',
        abs(ray_kl - closed_form).max(),
        EXACT_TOLERANCE,
      )
    ],
  )


@claim(
  'Thm VII.4 (33)',
  printed='γ_reg ≤ γ_base/(1 + α κ), κ = ‖∇H‖_F/‖∇J‖_F.',
  corrected='γ_reg/γ_base = 1/√(1 + 2 α κ c + α² κ²), with c the Fisher cosine of '
  '∇H and ∇J. It lies between 1/(1 + ακ), reached for c = 1, and 1/|1 − ακ|: the '
  'printed upper bound is the lower bound. The margin grows if 2c + ακ < 0, as '
  'in most cases of entropy collapse. ‖∇J + α∇H‖ ≥ ‖∇J‖ in the proof does not '
  'follow from the triangle inequality.',
  verdict='fails',
  formula=lambda x, c: 1 / np.sqrt(1 + 2 * x * c + x**2),
  wrong_formulas=(
    lambda x, c: 1 / np.sqrt(1 + x * c + x**2),
    lambda x, c: 1 / (1 + x),
  ),
)
def margin_of_bonus(settings: Settings, formula: Formula) -> Evidence:
  """Measures margins for random states and advantages, α = 0.3, ε = 1e-8."""
  rng = settings.rng()
  n, alpha = settings.choose(4000, 1000), 0.3
  pi = categorical.softmax(
    categorical.random_logits(rng, n, 6, (0.5, 1.0, 2.0))
  )[:, None]
  g = pi * categorical.centred(pi, rng.normal(size=pi.shape))
  h = -pi * categorical.centred_logprobs(pi)
  g_norm, h_norm = np.sqrt(fisher(pi, g, g)), np.sqrt(fisher(pi, h, h))
  cosine = fisher(pi, g, h) / (g_norm * h_norm)
  ratio = margin(pi, g + alpha * h, 1e-8) / margin(pi, g, 1e-8)
  x = alpha * h_norm / g_norm
  collapse = categorical.covariance(pi, np.log(pi), g)[:, 0] > 0
  error = abs(ratio / formula(x, cosine) - 1)
  return Evidence(
    printed=[
      at_most(
        'fraction that violates it', (ratio > (1 + 1e-3) / (1 + x)).mean(), 0.0
      )
    ],
    corrected=[
      at_most('median relative error of the formula', np.median(error), 1e-4),
      at_most(
        '99 % quantile of the relative error', np.quantile(error, 0.99), 0.01
      ),
      at_most(
        'fraction outside the two envelopes', _is_outside(ratio, x).mean(), 0.0
      ),
      at_least(
        'fraction of collapses where the margin grows',
        (ratio[collapse] > 1).mean(),
        0.6,
      ),
    ],
    plots=[_envelope_plot(settings, formula)],
  )


def _is_outside(
  ratio: Float[np.ndarray, ' n'], x: Float[np.ndarray, ' n']
) -> Float[np.ndarray, ' n']:
  """1 for margins outside [1/(1 + x), 1/|1 − x|], widened by 0.1 %."""
  low, high = (1 - 1e-3) / (1 + x), (1 + 1e-3) / abs(1 - x)
  return np.where((ratio < low) | (ratio > high), 1.0, 0.0)


def _envelope_plot(settings: Settings, formula: Formula) -> Plot:
  """Plot of measured margins for given cosines and the two envelopes."""
  rng = settings.rng()
  pi = categorical.softmax(rng.normal(size=(1, 8)))
  g, w = (categorical.centred(pi, rng.normal(size=(1, 8))) for _ in range(2))
  g = g / np.sqrt(fisher(pi, g, g))
  w = w - fisher(pi, g, w) * g
  w = w / np.sqrt(fisher(pi, w, w))
  alphas = np.linspace(0, 2.5, 51)
  base = margin(pi, g, 1e-8)
  curves = []
  for cosine in (1.0, 0.5, 0.0, -0.5, -0.8):
    h = cosine * g + np.sqrt(1 - cosine**2) * w
    rays = g + alphas[:, None, None] * h
    margins = margin(np.broadcast_to(pi, rays.shape), rays, 1e-8) / base
    curves.append(Curve(f'c = {cosine:g}'.replace('-', '−'), alphas, margins))
  curves.append(
    Curve('lower envelope, c = 1', alphas, formula(alphas, 1.0), dashed=True)
  )
  for name, branch in (
    ('upper envelope, c = −1', alphas[alphas < 0.65]),
    ('upper envelope beyond its pole', alphas[alphas > 1.42]),
  ):
    curves.append(
      Curve(name, branch, formula(branch, -1.0), dashed=True, color=6)
    )
  return Plot(
    'A bonus can widen the stability margin',
    'α κ, size of the bonus relative to the gradient',
    'margin relative to no bonus',
    curves,
    caption='Theorem VII.4, measured by bisection; c is the Fisher cosine of ∇H '
    'and ∇J. According to the theorem every curve is at or below the lower '
    'envelope. The upper envelope has a pole at ακ = 1.',
  )


@claim(
  'Thm VII.4 (34)',
  printed='γ_KL-Cov = γ_base + O(kβ), so γ_KL-Cov ≈ γ_base for small k.',
  corrected='To first order γ_KL/γ − 1 = β ⟨g, q⟩_F/‖g‖²_F, with q the selected '
  'penalty (0 at the first update): O(kβ) relative to the norm of the gradient, '
  'hence not uniform as the gradient vanishes.',
  verdict='holds if the constant is relative to ‖∇J‖',
  formula=lambda inner, squared_norm: inner / squared_norm,
)
def margin_of_penalty(settings: Settings, formula: Formula) -> Evidence:
  """Penalises one of 400 states, or several random ones."""
  rng = settings.rng()
  z = rng.normal(size=(400, 6))
  old = categorical.softmax(z)
  advantages = categorical.centred(old, rng.normal(size=old.shape))
  pi = categorical.softmax(z + 2 * old * advantages)
  g = pi * categorical.centred(pi, advantages)
  shift = pi - old
  worst_state = abs(shift).sum(-1).argmax()
  q = np.where(np.arange(400)[:, None] == worst_state, shift, 0)
  betas = np.array([0.001, 0.01, 0.1])
  base = margin(pi, g, 1e-8)
  margin_changes = np.array(
    [margin(pi, g - b * q, 1e-8) / base - 1 for b in betas]
  )
  predicted = formula(fisher(pi, g, q), fisher(pi, g, g)) * betas
  small_gradient = (
    margin(pi, g / 100 - 0.01 * q, 1e-8) / margin(pi, g / 100, 1e-8) - 1
  )
  counts, means = np.array([4, 20, 100]), []
  for count in counts:
    chosen = rng.random((30, 400, 1)).argsort(1) < count
    rays = g - 0.01 * np.where(chosen, shift, 0)
    many = margin(np.broadcast_to(pi, rays.shape), rays, 1e-8)
    means.append(abs(many / base - 1).mean())
  return Evidence(
    printed=[
      at_most(
        'deviation at ‖g‖/100 divided by that at ‖g‖',
        abs(small_gradient / margin_changes[1]),
        2.0,
      )
    ],
    conditional=[
      close_to(
        'exponent in β',
        categorical.power_law_exponent(betas, abs(margin_changes)),
        1,
        0.02,
      ),
      close_to(
        'exponent in k, random states',
        categorical.power_law_exponent(counts.astype(float), np.array(means)),
        1,
        0.1,
      ),
    ],
    corrected=[
      close_to(
        'deviation divided by its prediction, β = 0.01',
        margin_changes[1] / predicted[1],
        1,
        0.01,
      ),
    ],
  )


@claim(
  'Prop. VII.1',
  printed='A bonus costs O(N), covariance methods O(N log N).',
  corrected='The entropy needs a sum over the vocabulary: O(N V). The k largest '
  'scores are found by counting in O(N) without sorting: O(N log N) is only an '
  'upper bound.',
  verdict='holds if V is a constant, as an upper bound',
  formula=lambda per_logit, n, v: per_logit * n * v,
)
def cost(settings: Settings, formula: Formula) -> Evidence:
  """Counts operations in compiled programs, without timing them."""
  del settings

  def entropies(logits: jax.Array) -> jax.Array:
    log_pi = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1)

  def select(scores: jax.Array) -> jax.Array:
    mask = jnp.ones(scores.shape, bool)
    return covrl.select_top(scores, mask, fraction=0.01)

  small_flops, _ = _operations(entropies, (64, 256))
  large_flops, _ = _operations(entropies, (128, 1024))
  long_flops, _ = _operations(entropies, (128, 256))
  wide_flops, _ = _operations(entropies, (64, 512))
  selection_flops, program_text = _operations(select, (8, 512))
  doubled_selection_flops, _ = _operations(select, (8, 1024))
  return Evidence(
    printed=[
      at_most(
        'growth of the cost of the entropy as V doubles',
        wide_flops / small_flops,
        1.05,
      )
    ],
    conditional=[
      close_to(
        'growth of the cost of the entropy as N doubles',
        long_flops / small_flops,
        2,
        0.05,
      ),
      at_most(
        'growth of the cost of the selection as N doubles',
        doubled_selection_flops / selection_flops,
        2.16,
      ),
    ],
    corrected=[
      close_to(
        'cost for (2N, 4V) divided by its prediction',
        large_flops / formula(small_flops / (64 * 256), 128, 1024),
        1,
        0.03,
      ),
      close_to(
        'growth of the cost of the selection',
        doubled_selection_flops / selection_flops,
        2,
        0.1,
      ),
      at_most(
        'sorts in the program of the selection', program_text.count(' sort('), 0
      ),
    ],
  )


def _operations(
  function: Callable[[jax.Array], Any], shape: tuple[int, int]
) -> tuple[float, str]:
  """Floating-point operations and program text of a compiled function."""
  argument = jax.ShapeDtypeStruct(shape, jnp.float32)
  compiled = jax.jit(function).lower(argument).compile()
  analysis = compiled.cost_analysis() or {}
  return float(analysis['flops']), str(compiled.as_text())
