# SPDX-License-Identifier: Apache-2.0
"""Section IV, foundations: the entropy change caused by a change of logits."""

from __future__ import annotations

import jax
import numpy as np

from covrl.theory import categorical, trees
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

SECTION = Section('IV. Foundations of entropy dynamics')
claim = SECTION.claim


@claim(
  'Lemma IV.1 (7)',
  printed='∂H_s/∂z_{s,a} = −π(a) (log π(a) − E log π).',
  corrected='As printed.',
  verdict='holds',
  formula=lambda pi, f: -pi * f,
)
def entropy_gradient(settings: Settings, formula: Formula) -> Evidence:
  """Compares with autodiff for 2, 10 and 1000 actions."""
  autodiff = jax.jit(jax.vmap(jax.grad(trees.state_entropy)))
  worst = 0.0
  for actions in (2, 10, 1000):
    z = categorical.random_logits(settings.rng(), 60, actions)
    pi = categorical.softmax(z)
    error = formula(pi, categorical.centred_logprobs(pi)) - autodiff(z)
    worst = max(worst, float(abs(error).max()))
  return Evidence(
    printed=[at_most('error against autodiff', worst, EXACT_TOLERANCE)]
  )


@claim(
  'Lemma IV.2 (8)',
  printed='H(z + Δz) − H(z) = −Cov(log π, Δz) + o(‖Δz‖).',
  corrected='As printed. More precisely, the remainder is −½ E[(Δz − E Δz)² (1 + f)] '
  '+ O(‖Δz‖³) with f = log π + H, and is at most log K ‖Δz‖².',
  verdict='holds',
  formula=lambda pi, u: (
    -0.5
    * categorical.expectation(
      pi,
      categorical.centred(pi, u) ** 2 * (1 + categorical.centred_logprobs(pi)),
    )
  ),
  wrong_formulas=(
    lambda pi, u: (
      -0.5
      * categorical.expectation(
        pi,
        categorical.centred(pi, u) ** 2
        * (1 - categorical.centred_logprobs(pi)),
      )
    ),
    lambda pi, u: (
      -0.5
      * categorical.expectation(
        pi, u**2 * (1 + categorical.centred_logprobs(pi))
      )
    ),
  ),
)
def entropy_change(settings: Settings, formula: Formula) -> Evidence:
  """Fits the exponents of the remainders after one and after two terms."""
  z = categorical.random_logits(
    settings.rng(), settings.choose(400, 100), 6, (0.5, 1.0, 2.0)
  )
  pi = categorical.softmax(z)
  u = settings.rng().normal(size=z.shape)
  u /= np.linalg.norm(u, axis=-1, keepdims=True)
  steps = np.logspace(-3, -1, 9)
  first_order, second_order = [], []
  for step in steps:
    change = categorical.entropy(
      categorical.softmax(z + step * u)
    ) - categorical.entropy(pi)
    remainder = change + step * categorical.covariance(pi, np.log(pi), u)
    first_order.append(abs(remainder).mean())
    second_order.append(abs(remainder - formula(pi, step * u)).mean())
  first_order_exponent = categorical.power_law_exponent(
    steps, np.array(first_order)
  )
  second_order_exponent = categorical.power_law_exponent(
    steps, np.array(second_order)
  )
  return Evidence(
    printed=[at_least('exponent of the remainder', first_order_exponent, 1.9)],
    corrected=[
      close_to('exponent after the first order', first_order_exponent, 2, 0.05),
      close_to(
        'exponent after the second order', second_order_exponent, 3, 0.05
      ),
      at_most(
        'largest |remainder| / (log K ‖Δz‖²)', _worst_remainder(settings), 1
      ),
    ],
    plots=[
      Plot(
        'Remainder of the first-order entropy change',
        'size of the update ‖Δz‖',
        'mean |remainder|, nats',
        [
          Curve(
            'after the covariance', steps, np.array(first_order), points=True
          ),
          Curve(
            'after the next term', steps, np.array(second_order), points=True
          ),
          Curve(
            'slope 2',
            steps,
            2.5 * first_order[0] * (steps / steps[0]) ** 2,
            dashed=True,
          ),
          Curve(
            'slope 3',
            steps,
            2.5 * second_order[0] * (steps / steps[0]) ** 3,
            dashed=True,
          ),
        ],
        caption='Lemma IV.2. The covariance gives the first order: its error '
        'falls with the square of the update. With the second-order term the '
        'error falls with the cube. The dashed guides are shifted upwards.',
        log_x=True,
        log_y=True,
      )
    ],
  )


def _worst_remainder(settings: Settings) -> float:
  """Largest remainder relative to its bound, for updates of any size.

  d²H/dt² = E[ũ² |log π|] − (1 + H) E[ũ²] with ũ = u − E u. Both terms are
  non-negative, and at most 2 H ‖u‖² and ½ (1 + H) ‖u‖², since |ũ_a| ≤ √2 ‖u‖
  and E[ũ²] ≤ ½ ‖u‖². Hence |d²H/dt²| ≤ 2 log K ‖u‖², and the remainder after
  the first order is half of a second derivative on the path.
  """
  rng, worst = settings.rng(), 0.0
  for actions in (2, 3, 6, 50):
    z = categorical.random_logits(rng, 2000, actions, (0.0, 0.5, 2.0, 8.0))
    pi = categorical.softmax(z)
    u = rng.normal(size=z.shape) * np.resize([0.01, 1.0, 10.0], (2000, 1))
    change = categorical.entropy(
      categorical.softmax(z + u)
    ) - categorical.entropy(pi)
    remainder = change + categorical.covariance(pi, np.log(pi), u)
    bound = np.log(actions) * (u**2).sum(-1)
    worst = max(worst, float(abs(remainder / bound).max()))
  return worst
