# SPDX-License-Identifier: Apache-2.0
"""Cross terms of policy gradient and regulariser, conditions on annealing.

Statements from the public review of the paper and from the authors' reply. λ_t is the
coefficient of the bonus in step t, Δ the difference of rewards, and f = log π + H.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covrl.theory import categorical
from covrl.theory.claim import Formula, Section, Settings
from covrl.theory.evidence import (
  Curve,
  Evidence,
  Plot,
  at_least,
  at_most,
  close_to,
)
from covrl.theory.gradient_ascent import BOUNDED_SCHEDULES, run_schedules

SECTION = Section('Cross terms and annealing')
claim = SECTION.claim


@claim(
  'Cross terms',
  printed='Policy gradient and regulariser interact in ΔH (review), in the same '
  'way for bonus and KL-Cov (authors’ reply).',
  corrected='The covariance is linear in Δz, so effects add at first order. The '
  'first cross term of updates u and h is −η² E[ũ h̃ (1 + f)], with ũ and h̃ '
  'centred. Bonus and KL-Cov differ: a penalty h = −β (π − π_old) is itself '
  'O(η), so its cross term is O(η³). With shared parameters states interact at '
  'first order through the kernel (Def. VII.1).',
  verdict='fails',
  formula=lambda pi, u, h: (
    -categorical.expectation(
      pi,
      categorical.centred(pi, u)
      * categorical.centred(pi, h)
      * (1 + categorical.centred_logprobs(pi)),
    )
  ),
  wrong_formulas=(
    lambda pi, u, h: (
      -categorical.expectation(
        pi, categorical.centred(pi, u) * categorical.centred(pi, h)
      )
    ),
    lambda pi, u, h: (
      -categorical.expectation(
        pi,
        categorical.centred(pi, u)
        * categorical.centred(pi, h)
        * (1 - categorical.centred_logprobs(pi)),
      )
    ),
  ),
)
def cross_terms(settings: Settings, formula: Formula) -> Evidence:
  """Compares the effect of both updates with the sum of their effects."""
  rng = settings.rng()
  z = categorical.random_logits(rng, 200, 6, (0.5, 1.0, 2.0))
  pi = categorical.softmax(z)
  rewards = rng.normal(size=pi.shape)
  u = pi * categorical.centred(pi, rewards)
  h = -pi * categorical.centred_logprobs(pi)
  rates = np.logspace(-3, -1, 7)
  bonus_cross_effects = np.array(
    [_cross_effect(z, r * u, r * h) for r in rates]
  )
  kl_cross_effects = []
  for r in rates:
    updated = z + r * u
    p = categorical.softmax(updated)
    kl_cross_effects.append(
      _cross_effect(
        updated, r * p * categorical.centred(p, rewards), -r * (p - pi)
      )
    )
  sizes = [
    abs(np.array(x)).mean(1) for x in (bonus_cross_effects, kl_cross_effects)
  ]
  bonus_exponent, kl_exponent = (
    categorical.power_law_exponent(rates, size) for size in sizes
  )
  predicted = formula(pi, u, h)
  error = abs(bonus_cross_effects[0] / rates[0] ** 2 - predicted).mean()
  return Evidence(
    printed=[
      close_to(
        'exponent in η of the cross effect, bonus', bonus_exponent, 1, 0.2
      ),
      close_to(
        'exponent with the full KL minus that with the bonus',
        kl_exponent - bonus_exponent,
        0,
        0.2,
      ),
    ],
    corrected=[
      close_to(
        'exponent in η of the cross effect, bonus', bonus_exponent, 2, 0.05
      ),
      close_to('the same for the full KL', kl_exponent, 3, 0.05),
      at_most(
        'relative error of the predicted cross effect, bonus',
        error / abs(predicted).mean(),
        0.01,
      ),
    ],
  )


def _cross_effect(
  z: Float[np.ndarray, 'n K'],
  u: Float[np.ndarray, 'n K'],
  h: Float[np.ndarray, 'n K'],
) -> Float[np.ndarray, ' n']:
  """Entropy change by u + h minus the changes by u and by h."""
  both, only_u, only_h, neither = (
    categorical.entropy(categorical.softmax(z + update))
    for update in (u + h, u, h, 0 * u)
  )
  return both - only_u - only_h + neither


@claim(
  'Annealing conditions',
  printed='Unbiasedness needs Σ λ_t < ∞ and λ_t falling more slowly than the '
  'policy converges; the remaining bias is at most η C Σ_{t>T} λ_t, so a linear '
  'schedule, which is 0 after T, has no bias.',
  corrected='Exact softmax ascent converges as Θ(1/t), and slower schedules have Σ '
  'λ = ∞, so no schedule meets both conditions. Neither is needed: 1/√t is '
  'unbiased although its sum diverges. The tail sum bounds the remaining updates '
  'by the bonus, not the bias: for a linear schedule it is 0, but the logits '
  'remain different. J has no bias for any λ_t → 0, since the gradient of the '
  'bonus vanishes at the boundary too. The gap of two actions with Δ = 1 is '
  '1/(2ηt).',
  verdict='fails',
  formula=lambda rate, t: 1 / (2 * rate * t),
)
def annealing_conditions(settings: Settings, formula: Formula) -> Evidence:
  """Runs ascent with two actions, and with two tied optima of three actions."""
  run = run_schedules(settings, (1.0, 0.0))
  gaps = dict(zip(BOUNDED_SCHEDULES, run.reward_gap, strict=True))
  is_late = run.times > run.times[-1] / 30
  gap_exponent = -categorical.power_law_exponent(
    run.times[is_late], gaps['none'][is_late]
  )
  # C is the maximum of ‖πf‖ = √2 p (1 − p) ℓ over the log odds ℓ.
  odds = np.linspace(0, 5, 5001)
  p = 1 / (1 + np.exp(-odds))
  max_norm = (np.sqrt(2) * p * (1 - p) * odds).max()
  excess = (run.bonus_norms - max_norm * run.coefficient_sums).max()
  linear = BOUNDED_SCHEDULES.index('linear')
  logit_difference = np.ptp(
    run_schedules(settings, (1.0, 1.0, 0.0)).logits[[0, linear]], axis=0
  )
  return Evidence(
    printed=[
      at_least(
        'reward gap for 1/√t (Σ λ = ∞) divided by that without bonus',
        gaps['1/√t'][-1] / gaps['none'][-1],
        10.0,
      ),
      at_most(
        'difference of logits long after a linear schedule, tied optima',
        logit_difference.max(),
        0.01,
      ),
    ],
    corrected=[
      close_to(
        'exponent of the convergence without bonus', gap_exponent, 1, 0.02
      ),
      close_to(
        'reward gap without bonus divided by 1/(2ηt)',
        gaps['none'][-1] / formula(1.0, run.times[-1]),
        1,
        0.02,
      ),
      close_to(
        'reward gap for 1/√t divided by that without bonus',
        gaps['1/√t'][-1] / gaps['none'][-1],
        1,
        0.2,
      ),
      close_to(
        'reward gap half a run after a linear schedule, divided by that without'
        ' bonus',
        gaps['linear'][-1] / gaps['none'][-1],
        1.5,
        0.5,
      ),
      at_most(
        'excess of the bonus updates in the second half over the tail bound',
        excess,
        0.0,
      ),
      at_most(
        'bonus updates in the second half, linear schedule',
        run.bonus_norms[linear],
        0.0,
      ),
    ],
    plots=[
      Plot(
        'Reward gap under an annealed bonus',
        'step',
        'reward gap',
        [
          Curve(name, run.times, values, dashed=name == 'none')
          for name, values in gaps.items()
        ],
        caption='Two actions, exact ascent, λ_0 = 0.3. Once the bonus has become '
        'small, every gap follows 1/(2ηt); the linear schedule reaches 0 '
        'half-way.',
        log_x=True,
        log_y=True,
      )
    ],
  )
