# SPDX-License-Identifier: Apache-2.0
"""Section IV, foundations: how entropy moves when logits do."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float

from covrl.theory import softmax as sm
from covrl.theory import tree as trees
from covrl.theory import worlds
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
  '+ O(‖Δz‖³) with f = log π + H, and never exceeds log K ‖Δz‖².',
  verdict='holds',
  formula=lambda pi, u: (
    -0.5 * sm.mean(pi, sm.centred(pi, u) ** 2 * (1 + sm.surprise(pi)))
  ),
  slips=(
    lambda pi, u: (
      -0.5 * sm.mean(pi, sm.centred(pi, u) ** 2 * (1 - sm.surprise(pi)))
    ),
    lambda pi, u: -0.5 * sm.mean(pi, u**2 * (1 + sm.surprise(pi))),
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
  return Evidence(
    printed=[above('exponent of the remainder', of_first, 1.9)],
    holds=[
      near('exponent after the first order', of_first, 2, 0.05),
      near('exponent after the second order', of_second, 3, 0.05),
      below('largest |remainder| / (log K ‖Δz‖²)', _worst_remainder(lab), 1),
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
            'slope 2',
            steps,
            2.5 * first[0] * (steps / steps[0]) ** 2,
            dashed=True,
          ),
          Curve(
            'slope 3',
            steps,
            2.5 * second[0] * (steps / steps[0]) ** 3,
            dashed=True,
          ),
        ],
        caption='Lemma IV.2. “Governed by the covariance” is a statement of '
        'first order: its error falls with the square of the step. With the '
        'closed second-order term it falls with the cube. Guides, dashed, are '
        'drawn above the curves.',
        log_x=True,
        log_y=True,
      )
    ],
  )


def _worst_remainder(lab: Lab) -> float:
  """Over the remainder's bound, for updates of any size.

  d²H/dt² = E[ũ² |log π|] − (1 + H) E[ũ²], ũ = u − E u: the difference of two
  terms that are not negative, at most 2 H ‖u‖² and ½ (1 + H) ‖u‖², since no
  |ũ_a| exceeds √2 ‖u‖ and E[ũ²] is at most ½ ‖u‖². Either is at most 2 log K
  ‖u‖², and a remainder of first order is half a second derivative on the way.
  """
  random, worst = lab.random(), 0.0
  for actions in (2, 3, 6, 50):
    z = sm.random_logits(random, 2000, actions, (0.0, 0.5, 2.0, 8.0))
    pi = sm.softmax(z)
    u = random.normal(size=z.shape) * np.resize([0.01, 1.0, 10.0], (2000, 1))
    change = sm.entropy(sm.softmax(z + u)) - sm.entropy(pi)
    rest = change + sm.covariance(pi, np.log(pi), u)
    bound = np.log(actions) * (u**2).sum(-1)
    worst = max(worst, float(abs(rest / bound).max()))
  return worst


@claim(
  'Prop. IV.1 (9)',
  printed='The policy gradient update is Δz_{s,a} = η π(a|s) A(s, a).',
  holds='Δz_{s,a} = η ρ(s) π(a|s) A(s, a), ρ(s) the expected visits of s; '
  'and that is the expected update. One sample gives η A (e_a − π); the '
  'natural gradient gives η A, wherever it is visited.',
  verdict='holds if there is one state, and in expectation',
  formula=lambda rho, pi, own: rho[..., None] * pi * own,
)
def logit_update(lab: Lab, formula: Formula) -> Evidence:
  """Compares with autodiff of J in a tree of many states, and of one."""
  world, single = worlds.random_world(lab), worlds.one_state(lab)
  gradient = worlds.gradient(world)
  update = formula(world.rho, world.pi, world.advantages)
  fisher = (np.eye(world.tree.actions) - world.pi[..., None, :]) * world.pi[
    ..., :, None
  ]
  fisher = world.rho[..., None, None] * fisher
  natural = np.linalg.pinv(fisher, hermitian=True) @ gradient[..., None]
  beyond = natural[..., 0] - world.advantages  # A constant of each state.
  return Evidence(
    printed=[
      below(
        'error against autodiff',
        abs(world.pi * world.advantages - gradient).max(),
        EXACT,
      )
    ],
    given=[
      below(
        'error against autodiff',
        abs(single.pi * single.advantages - worlds.gradient(single)).max(),
        EXACT,
      )
    ],
    holds=[
      below('error with ρ(s)', abs(update - gradient).max(), EXACT),
      below(
        'cosine of the printed update with ∇J',
        _cosine(world.pi * world.advantages, gradient),
        0.95,
      ),
      below(
        'natural gradient less A, spread over actions',
        np.ptp(beyond[world.rho > 0], axis=-1).max(),
        1e-9,
      ),
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
  rates = np.logspace(-4, -1, 7)

  def errors(world: worlds.World, predict: Formula) -> Float[np.ndarray, ' n']:
    predicted = predict(world.rho, _covariance(world))
    found = []
    for rate in rates:
      change = _change(world, rate)
      found.append(np.linalg.norm(predicted - change) / np.linalg.norm(change))
    return np.array(found)

  world = worlds.random_world(lab)
  with_rho, without = errors(world, formula), errors(world, _as_printed)
  single = errors(worlds.one_state(lab), _as_printed)
  return Evidence(
    printed=[below('relative error at η = 1e-4', without[0], 1e-3)],
    given=[
      below('relative error at η = 1e-4', single[0], 1e-3),
      near('exponent of that error in η', sm.slope(rates, single), 1, 0.05),
    ],
    holds=[
      below('relative error with ρ(s) at η = 1e-4', with_rho[0], 1e-3),
      near('exponent of that error in η', sm.slope(rates, with_rho), 1, 0.05),
    ],
    pictures=[
      Picture(
        'The entropy theorem, with and without visits',
        'learning rate η',
        'relative error of the predicted ΔH',
        [
          Curve('−η ρ(s) Cov', rates, with_rho, points=True),
          Curve('as printed, −η Cov', rates, without, points=True),
        ],
        caption='Theorem IV.1 on a tree. The printed form omits how often a '
        'state is visited; its error does not shrink with the step.',
        log_x=True,
        log_y=True,
      )
    ],
  )


def _as_printed(
  rho: Float[np.ndarray, 'P S'], covariance: Float[np.ndarray, 'P S']
) -> Float[np.ndarray, 'P S']:
  del rho
  return -covariance


def _covariance(world: worlds.World) -> Float[np.ndarray, 'P S']:
  """Cov(log π, π A) of every state."""
  return sm.covariance(world.pi, np.log(world.pi), world.pi * world.advantages)


def _change(world: worlds.World, rate: float) -> Float[np.ndarray, 'P S']:
  """ΔH/η of every state under an exact step of the policy gradient."""
  gradient = world.rho[..., None] * world.pi * world.advantages
  moved = sm.softmax(np.asarray(world.logits) + rate * gradient)
  return (sm.entropy(moved) - sm.entropy(world.pi)) / rate


@claim(
  'Remark IV.1',
  printed='If high-probability actions also have high advantage, the '
  'covariance is positive and entropy falls monotonically.',
  holds='If A is non-decreasing in π, then Cov(log π, π A) ≥ 0, and more: the '
  'updated policy majorises the old one, so entropy falls at every step size. '
  'That the likeliest action has A > 0 is not enough, and where only the '
  'covariance is positive a large step can raise entropy.',
  verdict='holds if A is non-decreasing in π',
  formula=lambda pi, a: sm.covariance(pi, np.log(pi), pi * a),
)
def calibrated_policies(lab: Lab, formula: Formula) -> Evidence:
  """Draws policies whose advantages are ordered as their probabilities.

  Why they majorise: of the k likeliest actions U, E[e^{ηπA}|U] is at least that
  of the others. If A ≥ 0 on all of U, each of its πA is at least each of the
  others'. If not, the others have A < 0, so theirs is below 1, while the mean
  over all is at least e^{η E πA} ≥ 1, since E πA = Cov(π, A) ≥ 0. So the k
  likeliest gain mass, for every k.
  """
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
  up, down = (_entropy_after(pi, step, ordered) for step in (h, -h))
  strictly = formula(pi, ordered)
  rises = [
    (_entropy_after(pi, rate, ordered) - sm.entropy(pi)).max()
    for rate in (0.01, 1.0, 10.0, 100.0)
  ]
  leaps = _entropy_after(pi, 100.0, any_order) > sm.entropy(pi)
  return Evidence(
    printed=[
      below(
        'share of negative covariances where the likeliest action has A > 0',
        (loosely < 0).mean(),
        0.0,
      )
    ],
    given=[
      above('least covariance', strictly.min(), -EXACT),
      below('largest rise of entropy, η from 0.01 to 100', max(rises), EXACT),
    ],
    holds=[
      below(
        'covariance less −dH/dη',
        abs(strictly + (up - down) / (2 * h)).max(),
        1e-8,
      ),
      above(
        'share of rises at η = 100 among positive covariances',
        leaps[formula(pi, any_order) > 0].mean(),
        0.001,
      ),
    ],
  )


def _entropy_after(
  pi: Float[np.ndarray, 'n K'],
  rate: float,
  a: Float[np.ndarray, 'n K'],
) -> Float[np.ndarray, ' n']:
  """Of policies after a step of the policy gradient."""
  return sm.entropy(sm.softmax(np.log(pi) + rate * pi * a))
