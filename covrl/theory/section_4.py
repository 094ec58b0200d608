# SPDX-License-Identifier: Apache-2.0
"""Section IV, foundations: how entropy moves when logits do."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float

from covrl.theory import softmax as sm
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

SECTION = Section('IV. Foundations of entropy dynamics')
claim = SECTION.claim


@claim(
  'Lemma IV.1 (7)',
  printed='∂H_s/∂z_{s,a} = −π(a) (log π(a) − E log π).',
  holds='As printed.',
  verdict='holds',
  formula=lambda pi, f: -pi * f,
)
def entropy_gradient(lab: Lab, formula: Formula) -> Evidence:
  """Compares with autodiff, from 2 to 1000 actions."""
  autodiff = jax.jit(jax.vmap(jax.grad(trees.state_entropy)))
  worst = 0.0
  for actions in (2, 10, 1000):
    z = sm.random_logits(lab.random(), 60, actions)
    pi = sm.softmax(z)
    error = formula(pi, sm.surprise(pi)) - autodiff(z)
    worst = max(worst, float(abs(error).max()))
  return Evidence(printed=[below('error against autodiff', worst, EXACT)])


@claim(
  'Lemma IV.2 (8)',
  printed='H(z + Δz) − H(z) = −Cov(log π, Δz) + o(‖Δz‖).',
  holds='As printed, and sharper: the remainder is −½ E[(Δz − E Δz)² (1 + f)] '
  '+ O(‖Δz‖³) with f = log π + H, at most (½ + 2.5 log K) ‖Δz‖²/2.',
  verdict='holds',
  formula=lambda pi, u: (
    -0.5 * sm.mean(pi, sm.centred(pi, u) ** 2 * (1 + sm.surprise(pi)))
  ),
)
def entropy_change(lab: Lab, formula: Formula) -> Evidence:
  """Fits the exponents of the remainders after one term and after two."""
  z = sm.random_logits(lab.random(), lab.size(400, 100), 6, (0.5, 1.0, 2.0))
  pi = sm.softmax(z)
  u = lab.random().normal(size=z.shape)
  u /= np.linalg.norm(u, axis=-1, keepdims=True)
  steps = np.logspace(-3, -1, 9)
  first, second = [], []
  for step in steps:
    change = sm.entropy(sm.softmax(z + step * u)) - sm.entropy(pi)
    rest = change + step * sm.covariance(pi, np.log(pi), u)
    first.append(abs(rest).mean())
    second.append(abs(rest - formula(pi, step * u)).mean())
  of_first = sm.slope(steps, np.array(first))
  of_second = sm.slope(steps, np.array(second))
  curvature = abs(2 * formula(pi, u)).max()
  return Evidence(
    printed=[above('exponent of the remainder', of_first, 1.9)],
    holds=[
      near('exponent after the first order', of_first, 2, 0.05),
      near('exponent after the second order', of_second, 3, 0.05),
      below('largest |d²H|/‖Δz‖²', curvature, 0.5 + 2.5 * np.log(6)),
    ],
    pictures=[
      Picture(
        'What the lemma leaves out',
        'size of the update ‖Δz‖',
        'mean |remainder|, nats',
        [
          Curve('after the covariance', steps, np.array(first), points=True),
          Curve('after the next term', steps, np.array(second), points=True),
          Curve(
            'slope 2', steps, first[0] * (steps / steps[0]) ** 2, dashed=True
          ),
          Curve(
            'slope 3', steps, second[0] * (steps / steps[0]) ** 3, dashed=True
          ),
        ],
        caption='Lemma IV.2. “Governed by the covariance” is a statement of '
        'first order: its error falls with the square of the step. With the '
        'closed second-order term it falls with the cube.',
        log_x=True,
        log_y=True,
      )
    ],
  )


@claim(
  'Prop. IV.1 (9)',
  printed='The policy gradient update is Δz_{s,a} = η π(a|s) A(s, a).',
  holds='Δz_{s,a} = η ρ(s) π(a|s) A(s, a), ρ(s) the expected visits of s; '
  'and that is the expected update. One sample gives η A (e_a − π); the '
  'natural gradient gives η A.',
  verdict='holds if there is one state, and in expectation',
  formula=lambda rho, pi, own: rho[..., None] * pi * own,
)
def logit_update(lab: Lab, formula: Formula) -> Evidence:
  """Compares with autodiff of J in a tree of many states."""
  world = random_world(lab)
  gradient = np.asarray(
    jax.jit(jax.grad(trees.objective, 1))(world.tree, world.logits)
  )
  printed = world.pi * world.advantages
  update = formula(world.rho, world.pi, world.advantages)
  return Evidence(
    printed=[
      below('error against autodiff', abs(printed - gradient).max(), EXACT)
    ],
    holds=[
      below('error with ρ(s)', abs(update - gradient).max(), EXACT),
      below('cosine of the printed update', _cosine(printed, gradient), 0.95),
    ],
  )


def _cosine(x: Float[np.ndarray, '...'], y: Float[np.ndarray, '...']) -> float:
  return float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))


@claim(
  'Thm IV.1 (10)',
  printed='ΔH_s ≈ −η Cov(log π, π A) under the policy gradient.',
  holds='ΔH_s = −η ρ(s) Cov(log π, π A) + O(η²).',
  verdict='holds if there is one state',
  formula=lambda rho, covariance: -rho * covariance,
)
def entropy_dynamics(lab: Lab, formula: Formula) -> Evidence:
  """Takes exact gradient steps and compares every state's entropy."""
  world = random_world(lab)
  covariance = sm.covariance(
    world.pi, np.log(world.pi), world.pi * world.advantages
  )
  gradient = world.rho[..., None] * world.pi * world.advantages
  rates = np.logspace(-4, -1, 7)
  with_rho, without = [], []
  for rate in rates:
    moved = sm.softmax(np.asarray(world.logits) + rate * gradient)
    change = (sm.entropy(moved) - sm.entropy(world.pi)) / rate
    scale = np.linalg.norm(change)
    predicted = formula(world.rho, covariance)
    with_rho.append(np.linalg.norm(predicted - change) / scale)
    without.append(np.linalg.norm(-covariance - change) / scale)
  return Evidence(
    printed=[below('relative error at η = 1e-4', without[0], 1e-3)],
    holds=[
      below('relative error with ρ(s) at η = 1e-4', with_rho[0], 1e-3),
      near(
        'exponent of that error in η',
        sm.slope(rates, np.array(with_rho)),
        1,
        0.05,
      ),
    ],
    pictures=[
      Picture(
        'The entropy theorem, with and without visits',
        'learning rate η',
        'relative error of predicted ΔH',
        [
          Curve('−η ρ(s) Cov', rates, np.array(with_rho), points=True),
          Curve('as printed, −η Cov', rates, np.array(without), points=True),
        ],
        caption='Theorem IV.1 on a tree. The printed form omits how often a '
        'state is visited; its error does not shrink with the step.',
        log_x=True,
        log_y=True,
      )
    ],
  )


@claim(
  'Remark IV.1',
  printed='If high-probability actions also have high advantage, the '
  'covariance is positive and entropy falls monotonically.',
  holds='Cov(log π, π A) ≥ 0 if A is non-decreasing in π. That the likeliest '
  'action has A > 0 is not enough; and even where the covariance is positive '
  'a large step can raise entropy.',
  verdict='holds if A is non-decreasing in π, and steps are small',
  formula=lambda pi, a: sm.covariance(pi, np.log(pi), pi * a),
)
def calibrated_policies(lab: Lab, formula: Formula) -> Evidence:
  """Draws policies whose advantages are ordered as their probabilities."""
  random = lab.random()
  pi = sm.softmax(
    sm.random_logits(random, lab.size(20_000, 4000), 5, (1.0, 2.0))
  )
  any_order = sm.centred(pi, random.normal(size=pi.shape))
  likeliest = np.take_along_axis(any_order, pi.argmax(-1)[:, None], 1)[:, 0]
  ranks = pi.argsort(-1).argsort(-1)
  ordered = np.take_along_axis(np.sort(any_order, -1), ranks, -1)
  ordered = sm.centred(pi, ordered)
  loosely = formula(pi, any_order)[likeliest > 0]
  h = 1e-5
  ends = [np.log(pi) + sign * h * pi * ordered for sign in (1, -1)]
  up, down = (sm.entropy(sm.softmax(end)) for end in ends)
  strictly = formula(pi, ordered)
  leap = np.log(pi) + 100 * pi * any_order
  rises = sm.entropy(sm.softmax(leap)) > sm.entropy(pi)
  return Evidence(
    printed=[
      below(
        'share of negative covariances where the likeliest action has A > 0',
        (loosely < 0).mean(),
        0.0,
      )
    ],
    holds=[
      above('least covariance, A ordered as π', strictly.min(), -1e-15),
      below(
        'covariance less −dH/dη',
        abs(strictly + (up - down) / (2 * h)).max(),
        1e-7,
      ),
      above(
        'share of rises at η = 100 among positive covariances',
        rises[formula(pi, any_order) > 0].mean(),
        0.001,
      ),
    ],
  )
