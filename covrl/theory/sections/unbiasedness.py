# SPDX-License-Identifier: Apache-2.0
"""Limits of annealed runs: parameters, value, entropy and policy.

Statements from the public review of the paper and from the authors' reply.
The method ‘none’ is plain policy gradient.
"""

from __future__ import annotations

import numpy as np

from covrl.theory import categorical, method_study
from covrl.theory.claim import Formula, Section, Settings
from covrl.theory.evidence import (
  EXACT_TOLERANCE,
  Evidence,
  at_least,
  at_most,
  close_to,
)
from covrl.theory.gradient_ascent import BOUNDED_SCHEDULES, run_schedules

SECTION = Section('Asymptotic unbiasedness')
claim = SECTION.claim

METHODS = list(method_study.METHODS)


@claim(
  'Unbiased in parameters',
  printed='‘Asymptotically unbiased’: θ_t converges to the limit of the '
  'unregularised run.',
  corrected='Logits have no limit: they diverge like ½ log t (the odds of two '
  'actions are 2ηt). If optima tie, annealed runs converge to different '
  'policies.',
  verdict='fails',
  formula=lambda rate, t: np.log(2 * rate * t),
)
def unbiased_parameters(settings: Settings, formula: Formula) -> Evidence:
  """Runs ascent with two actions, and with two tied optima of three actions."""
  run, tied = (
    run_schedules(settings, (1.0, 0.0)),
    run_schedules(settings, (1.0, 1.0, 0.0)),
  )
  pi = categorical.softmax(tied.logits)
  distance = abs(pi - pi[0]).sum(-1) / 2
  odds = run.logits[0, 0] - run.logits[0, 1]
  return Evidence(
    printed=[
      at_most(
        'TV from the unregularised run, tied optima, 1/√t', distance[-1], 0.01
      ),
      at_most(
        'growth of the log odds from T/10 to T, unique optimum',
        odds - formula(1.0, run.times[-1] / 10),
        0.1,
      ),
    ],
    corrected=[
      close_to(
        'log odds minus log 2ηt', odds - formula(1.0, run.times[-1]), 0, 0.02
      ),
      at_least(
        'TV from the unregularised run, tied optima, linear', distance[1], 0.01
      ),
    ],
  )


@claim(
  'Unbiased in value',
  printed='‘Asymptotically unbiased’: J(θ_t) converges to that of the '
  'unregularised run.',
  corrected='As printed for every vanishing schedule of a bonus or penalty: the gap '
  'is 1/(2ηt) with t the steps since the coefficient became small. Runs that are '
  'stuck on a plateau differ: regularised ones end higher.',
  verdict='holds',
  formula=lambda rate, t: 1 / (2 * rate * t),
)
def unbiased_value(settings: Settings, formula: Formula) -> Evidence:
  """Checks exact ascent and sampled runs with and without plateaus."""
  run = run_schedules(settings, (1.0, 0.0))
  final_gaps, tenth = (
    run.reward_gap[:, -1],
    abs(run.times * 10 - run.times[-1]).argmin(),
  )
  results = method_study.run_methods(settings)
  reward_gap = results.reward_gap.mean(-1)
  annealed = [i for i, name in enumerate(METHODS) if 'annealed' in name]
  bonus = METHODS.index('bonus 0.3, annealed')
  exponential = BOUNDED_SCHEDULES.index('exponential')
  return Evidence(
    printed=[
      at_most(
        'largest final reward gap, five schedules of a bonus',
        final_gaps.max(),
        2.5 * final_gaps[0],
      ),
      at_most(
        'the same divided by that at a tenth of the run',
        (final_gaps / run.reward_gap[:, tenth]).max(),
        0.2,
      ),
      at_most(
        'largest reward gap of annealed methods, sampled, tied optima',
        reward_gap[annealed, 1].max(),
        settings.choose(0.01, 0.03),
      ),
    ],
    corrected=[
      close_to(
        'reward gap of the exponential schedule divided by 1/(2ηt)',
        final_gaps[exponential] / formula(1.0, run.times[-1]),
        1,
        0.025,
      ),
      at_most(
        'reward gap of the annealed bonus divided by that of ‘none’, sampled, plateaus',
        reward_gap[bonus, 0] / reward_gap[0, 0],
        0.7,
      ),
    ],
  )


@claim(
  'Unbiased in entropy',
  printed='‘Asymptotically unbiased’: entropy converges to that of the '
  'unregularised run.',
  corrected='True if the optimum is unique and both runs reach it: entropy is then '
  'h(1/(2ηt)), with h the binary entropy, and vanishes. If optima tie, the '
  'remaining entropy within the optimal set depends on the path.',
  verdict='holds if the optimum is unique',
  formula=lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p),
  wrong_formulas=(lambda p: -p * np.log(p),),
)
def unbiased_entropy(settings: Settings, formula: Formula) -> Evidence:
  """Runs ascent with two actions, and with two tied optima of three actions."""
  run, tied = (
    run_schedules(settings, (1.0, 0.0)),
    run_schedules(settings, (1.0, 1.0, 0.0)),
  )
  last_step = run.times[-1]
  difference = abs(tied.entropy[:, -1] - tied.entropy[0, -1])
  return Evidence(
    printed=[
      at_most(
        'difference of entropies, tied optima, 1/√t', difference[-1], 0.01
      )
    ],
    conditional=[
      at_most(
        'largest difference of entropies, five schedules',
        abs(run.entropy[:, -1] - run.entropy[0, -1]).max(),
        0.01,
      ),
    ],
    corrected=[
      close_to(
        'entropy without bonus divided by h(1/(2ηt))',
        run.entropy[0, -1] / formula(1 / (2 * last_step)),
        1,
        0.02,
      ),
    ],
  )


@claim(
  'Limit of annealed methods',
  printed='Annealed methods converge to the policy of plain policy gradient.',
  corrected='Not in distribution: if optima tie, two seeds of the same method '
  'differ as much, and regularised runs end with better policies where plain '
  'runs get stuck. Reward and the probability of optimal responses can be '
  'compared, beside another seed, β = 0 and constant coefficients.',
  verdict='fails',
  formula=lambda p, q: abs(p - q).sum(-1).mean(-1) / 2,
)
def same_limit(settings: Settings, formula: Formula) -> Evidence:
  """Measures distances from plain policy gradient with three tied optima."""
  results = method_study.run_methods(settings)
  tv = results.distance_from_none[:, 1].mean(-1)
  leaves = results.probabilities[:, 1]
  computed_tv = formula(leaves, leaves[:1]).mean(-1)
  annealed = METHODS.index('bonus 0.3, annealed')
  optimal_mass = results.optimal_mass[:, 1].mean((-2, -1))
  return Evidence(
    printed=[
      at_most('TV from ‘none’, annealed bonus, tied optima', tv[annealed], 0.05)
    ],
    corrected=[
      at_least('TV from ‘none’ of ‘none’ with another seed', tv[1], 0.3),
      at_most(
        'TV from ‘none’, KL-Cov with β = 0',
        computed_tv[METHODS.index('KL-Cov 20 %, β = 0')],
        1e-6,
      ),
      at_most(
        'TV minus its formula', abs(computed_tv - tv).max(), EXACT_TOLERANCE
      ),
      at_least(
        'least probability of optimal responses, ‘none’ and annealed bonus',
        min(optimal_mass[0], optimal_mass[annealed]),
        0.95,
      ),
    ],
  )
