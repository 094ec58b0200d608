# SPDX-License-Identifier: Apache-2.0
"""Section IV, foundations: the entropy change under the policy gradient."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covrl.theory import categorical, tree_policy
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

SECTION = Section('IV. Entropy under the policy gradient')
claim = SECTION.claim


@claim(
  'Prop. IV.1 (9)',
  printed='The policy gradient update is Δz_{s,a} = η π(a|s) A(s, a).',
  corrected='Δz_{s,a} = η ρ(s) π(a|s) A(s, a) with ρ(s) the expected visits of '
  's, and this is the expected update. A single sample gives η A (e_a − π); the '
  'natural gradient gives η A in every visited state.',
  verdict='holds if there is one state, and in expectation',
  formula=lambda rho, pi, advantages: rho[..., None] * pi * advantages,
)
def logit_update(settings: Settings, formula: Formula) -> Evidence:
  """Compares with autodiff of J in a tree with many states and with one."""
  policy, single = (
    tree_policy.random_tree_policy(settings),
    tree_policy.single_state_policy(settings),
  )
  gradient = tree_policy.policy_gradient(policy)
  update = formula(policy.rho, policy.pi, policy.advantages)
  fisher = (np.eye(policy.tree.actions) - policy.pi[..., None, :]) * policy.pi[
    ..., :, None
  ]
  fisher = policy.rho[..., None, None] * fisher
  natural = np.linalg.pinv(fisher, hermitian=True) @ gradient[..., None]
  difference = natural[..., 0] - policy.advantages  # Constant in each state.
  return Evidence(
    printed=[
      at_most(
        'error against autodiff',
        abs(policy.pi * policy.advantages - gradient).max(),
        EXACT_TOLERANCE,
      )
    ],
    conditional=[
      at_most(
        'error against autodiff',
        abs(
          single.pi * single.advantages - tree_policy.policy_gradient(single)
        ).max(),
        EXACT_TOLERANCE,
      )
    ],
    corrected=[
      at_most('error with ρ(s)', abs(update - gradient).max(), EXACT_TOLERANCE),
      at_most(
        'cosine of the printed update with ∇J',
        _cosine(policy.pi * policy.advantages, gradient),
        0.95,
      ),
      at_most(
        'range over actions of the natural gradient minus A',
        np.ptp(difference[policy.rho > 0], axis=-1).max(),
        1e-9,
      ),
    ],
  )


def _cosine(x: Float[np.ndarray, '...'], y: Float[np.ndarray, '...']) -> float:
  """Cosine of the angle between two arrays, as flat vectors."""
  return float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))


@claim(
  'Thm IV.1 (10)',
  printed='ΔH_s ≈ −η Cov(log π, π A) under the policy gradient.',
  corrected='ΔH_s = −η ρ(s) Cov(log π, π A) + O(η²).',
  verdict='holds if there is one state',
  formula=lambda rho, covariance: -rho * covariance,
)
def entropy_dynamics(settings: Settings, formula: Formula) -> Evidence:
  """Compares with the entropy of every state after exact gradient steps."""
  rates = np.logspace(-4, -1, 7)

  def errors(
    policy: tree_policy.TreePolicy, predict: Formula
  ) -> Float[np.ndarray, ' n']:
    predicted = predict(policy.rho, _covariance(policy))
    result = []
    for rate in rates:
      change = _entropy_change(policy, rate)
      result.append(np.linalg.norm(predicted - change) / np.linalg.norm(change))
    return np.array(result)

  policy = tree_policy.random_tree_policy(settings)
  with_rho, without_rho = errors(policy, formula), errors(policy, _as_printed)
  single = errors(tree_policy.single_state_policy(settings), _as_printed)
  return Evidence(
    printed=[at_most('relative error at η = 1e-4', without_rho[0], 1e-3)],
    conditional=[
      at_most('relative error at η = 1e-4', single[0], 1e-3),
      close_to(
        'exponent of that error in η',
        categorical.power_law_exponent(rates, single),
        1,
        0.05,
      ),
    ],
    corrected=[
      at_most('relative error with ρ(s) at η = 1e-4', with_rho[0], 1e-3),
      close_to(
        'exponent of that error in η',
        categorical.power_law_exponent(rates, with_rho),
        1,
        0.05,
      ),
    ],
    plots=[
      Plot(
        'The entropy theorem with and without visit frequencies',
        'learning rate η',
        'relative error of the predicted ΔH',
        [
          Curve('−η ρ(s) Cov', rates, with_rho, points=True),
          Curve('as printed, −η Cov', rates, without_rho, points=True),
        ],
        caption='Theorem IV.1 on a tree. The printed form omits the visit '
        'frequencies ρ(s), so its error does not vanish with the step.',
        log_x=True,
        log_y=True,
      )
    ],
  )


def _as_printed(
  rho: Float[np.ndarray, 'P S'], covariance: Float[np.ndarray, 'P S']
) -> Float[np.ndarray, 'P S']:
  """The printed prediction of ΔH/η, without ρ(s)."""
  del rho
  return -covariance


def _covariance(policy: tree_policy.TreePolicy) -> Float[np.ndarray, 'P S']:
  """Cov(log π, π A) of each state."""
  return categorical.covariance(
    policy.pi, np.log(policy.pi), policy.pi * policy.advantages
  )


def _entropy_change(
  policy: tree_policy.TreePolicy, rate: float
) -> Float[np.ndarray, 'P S']:
  """ΔH/η of each state for an exact policy gradient step."""
  gradient = policy.rho[..., None] * policy.pi * policy.advantages
  updated = categorical.softmax(np.asarray(policy.logits) + rate * gradient)
  return (categorical.entropy(updated) - categorical.entropy(policy.pi)) / rate


@claim(
  'Remark IV.1',
  printed='If high-probability actions also have high advantage, the '
  'covariance is positive and entropy falls monotonically.',
  corrected='If A is non-decreasing in π, then Cov(log π, π A) ≥ 0, and the '
  'updated policy majorises the old one, so entropy falls for every step size. '
  'A > 0 for the most likely action is not sufficient. If only the covariance '
  'is positive, a large step can raise entropy.',
  verdict='holds if A is non-decreasing in π',
  formula=lambda pi, a: categorical.covariance(pi, np.log(pi), pi * a),
)
def calibrated_policies(settings: Settings, formula: Formula) -> Evidence:
  """Draws policies with advantages in the order of their probabilities.

  Proof of majorisation: let U be the k most likely actions. E[e^{ηπA}|U] is at
  least the same expectation over the other actions: if A ≥ 0 on U, every πA in
  U is at least every other πA. If not, the other actions have A < 0, so their
  expectation is below 1, while the mean over all actions is at least
  e^{η E πA} ≥ 1, since E πA = Cov(π, A) ≥ 0. So U gains probability, for every
  k.
  """
  rng = settings.rng()
  pi = categorical.softmax(
    categorical.random_logits(rng, settings.choose(20_000, 4000), 5, (1.0, 2.0))
  )
  any_order = categorical.centred(pi, rng.normal(size=pi.shape))
  most_likely = np.take_along_axis(any_order, pi.argmax(-1)[:, None], 1)[:, 0]
  ranks = pi.argsort(-1).argsort(-1)
  ordered = np.take_along_axis(np.sort(any_order, -1), ranks, -1)
  ordered = categorical.centred(pi, ordered)
  covariances_any_order = formula(pi, any_order)[most_likely > 0]
  h = 1e-5
  up, down = (_entropy_after(pi, step, ordered) for step in (h, -h))
  covariance = formula(pi, ordered)
  rises = [
    (_entropy_after(pi, rate, ordered) - categorical.entropy(pi)).max()
    for rate in (0.01, 1.0, 10.0, 100.0)
  ]
  rises_in_large_step = _entropy_after(
    pi, 100.0, any_order
  ) > categorical.entropy(pi)
  return Evidence(
    printed=[
      at_most(
        'fraction of negative covariances where the most likely action has A > 0',
        (covariances_any_order < 0).mean(),
        0.0,
      )
    ],
    conditional=[
      at_least('least covariance', covariance.min(), -EXACT_TOLERANCE),
      at_most(
        'largest increase of entropy, η from 0.01 to 100',
        max(rises),
        EXACT_TOLERANCE,
      ),
    ],
    corrected=[
      at_most(
        'covariance minus −dH/dη',
        abs(covariance + (up - down) / (2 * h)).max(),
        1e-8,
      ),
      at_least(
        'fraction of entropy increases at η = 100 among positive covariances',
        rises_in_large_step[formula(pi, any_order) > 0].mean(),
        0.001,
      ),
    ],
  )


def _entropy_after(
  pi: Float[np.ndarray, 'n K'],
  rate: float,
  a: Float[np.ndarray, 'n K'],
) -> Float[np.ndarray, ' n']:
  """Entropy of policies after a policy gradient step."""
  return categorical.entropy(categorical.softmax(np.log(pi) + rate * pi * a))
