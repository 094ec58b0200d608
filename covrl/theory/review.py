# SPDX-License-Identifier: Apache-2.0
"""Questions a review asked: cross terms, annealing, 'asymptotically unbiased'."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covrl.theory import decisive
from covrl.theory import softmax as sm
from covrl.theory.ascent import NAMES, ascend
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

SECTION = Section('Questions of the review')
claim = SECTION.claim

ARMS = list(decisive.ARMS)


@claim(
  'Cross terms',
  printed='Policy gradient and regulariser interact in ΔH (review), for bonus '
  'and KL-Cov symmetrically (rebuttal).',
  holds='A covariance is linear in Δz: at first order their effects add. The '
  'first cross term of updates u and h is −η² E[ũ h̃ (1 + f)], tildes meaning '
  'centred. It is not symmetric either: a penalty h = −β (π − π_old) is itself '
  'O(η), its cross term O(η³). With shared parameters states do interact at '
  'first order, through the kernel (Def. VII.1).',
  verdict='fails',
  formula=lambda pi, u, h: (
    -sm.mean(pi, sm.centred(pi, u) * sm.centred(pi, h) * (1 + sm.surprise(pi)))
  ),
  slips=(
    lambda pi, u, h: -sm.mean(pi, sm.centred(pi, u) * sm.centred(pi, h)),
    lambda pi, u, h: (
      -sm.mean(
        pi, sm.centred(pi, u) * sm.centred(pi, h) * (1 - sm.surprise(pi))
      )
    ),
  ),
)
def cross_terms(lab: Lab, formula: Formula) -> Evidence:
  """Moves by each update, by both and by neither."""
  random = lab.random()
  z = sm.random_logits(random, 200, 6, (0.5, 1.0, 2.0))
  pi = sm.softmax(z)
  rewards = random.normal(size=pi.shape)
  u = pi * sm.centred(pi, rewards)
  h = -pi * sm.surprise(pi)
  rates = np.logspace(-3, -1, 7)
  crossed = np.array([_crossed(z, r * u, r * h) for r in rates])
  of_penalty = []
  for r in rates:
    now = z + r * u  # One update later.
    p = sm.softmax(now)
    of_penalty.append(
      _crossed(now, r * p * sm.centred(p, rewards), -r * (p - pi))
    )
  sizes = [abs(np.array(x)).mean(1) for x in (crossed, of_penalty)]
  of_bonus, of_kl = (sm.slope(rates, size) for size in sizes)
  predicted = formula(pi, u, h)
  error = abs(crossed[0] / rates[0] ** 2 - predicted).mean()
  return Evidence(
    printed=[
      near('exponent in η of the cross effect, bonus', of_bonus, 1, 0.2),
      near(
        'exponent with the full KL less that with the bonus',
        of_kl - of_bonus,
        0,
        0.2,
      ),
    ],
    holds=[
      near('exponent in η of the cross effect, bonus', of_bonus, 2, 0.05),
      near('the same, full KL', of_kl, 3, 0.05),
      below(
        'relative error of its prediction, bonus',
        error / abs(predicted).mean(),
        0.01,
      ),
    ],
  )


def _crossed(
  z: Float[np.ndarray, 'n K'],
  u: Float[np.ndarray, 'n K'],
  h: Float[np.ndarray, 'n K'],
) -> Float[np.ndarray, ' n']:
  """What u and h do to entropy together beyond what each does."""
  both, only_u, only_h, neither = (
    sm.entropy(sm.softmax(z + move)) for move in (u + h, u, h, 0 * u)
  )
  return both - only_u - only_h + neither


@claim(
  'Annealing conditions',
  printed='Unbiasedness needs Σ λ_t < ∞ and λ_t falling more slowly than the '
  'policy converges; the bias left is at most η C Σ_{t>T} λ_t, so that a '
  'linear schedule, which is 0 after T, has none.',
  holds='Exact softmax ascent converges as Θ(1/t): whatever is slower has Σ λ '
  '= ∞, so no schedule meets both conditions. Neither is needed: 1/√t works, '
  'whose sum diverges. The tail sum bounds what the bonus still pushes, not the '
  'bias: after a linear schedule it is 0, and the logits remain apart. In value '
  'there is no bias under any λ_t → 0, since the push of the bonus vanishes at '
  'the boundary too. Two actions Δ = 1 apart lose 1/(2ηt).',
  verdict='fails',
  formula=lambda rate, t: 1 / (2 * rate * t),
)
def annealing_conditions(lab: Lab, formula: Formula) -> Evidence:
  """Two actions, η = 1; and two tied optima beside a worse action."""
  run = ascend(lab, (1.0, 0.0))
  names = dict(zip(NAMES, run.lost, strict=True))
  late = run.times > run.times[-1] / 30
  own = -sm.slope(run.times[late], names['none'][late])
  # C: ‖πf‖ of two actions with log odds ℓ is √2 p (1 − p) ℓ.
  odds = np.linspace(0, 5, 5001)
  p = 1 / (1 + np.exp(-odds))
  largest = (np.sqrt(2) * p * (1 - p) * odds).max()
  excess = (run.pushes - largest * run.weights).max()
  linear = NAMES.index('linear')
  apart = np.ptp(ascend(lab, (1.0, 1.0, 0.0)).logits[[0, linear]], axis=0)
  return Evidence(
    printed=[
      above(
        'reward lost under 1/√t (Σ λ = ∞) over none',
        names['1/√t'][-1] / names['none'][-1],
        10.0,
      ),
      below(
        'logits apart long after a linear schedule, tied optima',
        apart.max(),
        0.01,
      ),
    ],
    holds=[
      near('exponent of the policy’s own rate', own, 1, 0.02),
      near(
        'reward lost without bonus, over 1/(2ηt)',
        names['none'][-1] / formula(1.0, run.times[-1]),
        1,
        0.02,
      ),
      near(
        'reward lost, 1/√t, over none',
        names['1/√t'][-1] / names['none'][-1],
        1,
        0.2,
      ),
      near(
        'reward lost, linear schedule, over none, a half of the run later',
        names['linear'][-1] / names['none'][-1],
        1.5,
        0.5,
      ),
      below('pushes after half-way over the tail sum’s bound', excess, 0.0),
      below('pushes after half-way, linear schedule', run.pushes[linear], 0.0),
    ],
    pictures=[
      Picture(
        'How fast an annealed bonus lets go',
        'step',
        'reward lost',
        [
          Curve(name, run.times, values, dashed=name == 'none')
          for name, values in names.items()
        ],
        caption='Two actions, exact ascent, λ_0 = 0.3. Once the bonus lets go, '
        'each loses 1/(2ηt) again; the linear schedule is at 0 half-way.',
        log_x=True,
        log_y=True,
      )
    ],
  )


@claim(
  'Unbiased in parameters',
  printed='‘Asymptotically unbiased’: θ_t converges to the limit of the '
  'unregularised run.',
  holds='Logits have no limit: they diverge like ½ log t (two actions: the '
  'odds are 2ηt). And where optima tie, annealed runs end at other policies, '
  'for good.',
  verdict='fails',
  formula=lambda rate, t: np.log(2 * rate * t),
)
def unbiased_parameters(lab: Lab, formula: Formula) -> Evidence:
  """Two actions; and two tied optima beside a worse action."""
  run, tied = ascend(lab, (1.0, 0.0)), ascend(lab, (1.0, 1.0, 0.0))
  pi = sm.softmax(tied.logits)
  distance = abs(pi - pi[0]).sum(-1) / 2
  odds = run.logits[0, 0] - run.logits[0, 1]
  return Evidence(
    printed=[
      below('TV from the unregularised run, ties, 1/√t', distance[-1], 0.01),
      below(
        'growth of the log odds from T/10 to T, unique optimum',
        odds - formula(1.0, run.times[-1] / 10),
        0.1,
      ),
    ],
    holds=[
      near(
        'log odds less log 2ηt', odds - formula(1.0, run.times[-1]), 0, 0.02
      ),
      above('TV from the unregularised run, ties, linear', distance[1], 0.01),
    ],
  )


@claim(
  'Unbiased in value',
  printed='‘Asymptotically unbiased’: J(θ_t) converges to what the '
  'unregularised run reaches.',
  holds='As printed, for every schedule that vanishes, bonus or penalty: what is '
  'lost is 1/(2ηt) of the steps since it let go. Runs stuck on a plateau '
  'differ: there the regularised ones end higher.',
  verdict='holds',
  formula=lambda rate, t: 1 / (2 * rate * t),
)
def unbiased_value(lab: Lab, formula: Formula) -> Evidence:
  """Exact ascent; and the plateaus of the decisive test."""
  run = ascend(lab, (1.0, 0.0))
  end, tenth = run.lost[:, -1], abs(run.times * 10 - run.times[-1]).argmin()
  outcome = decisive.run(lab)
  lost = outcome.gap.mean(-1)
  annealed = [i for i, name in enumerate(ARMS) if 'annealed' in name]
  bonus = ARMS.index('bonus 0.3, annealed')
  exponential = NAMES.index('exponential')
  return Evidence(
    printed=[
      below(
        'largest reward lost at the end, five schedules of a bonus',
        end.max(),
        2.5 * end[0],
      ),
      below(
        'the same over that at a tenth of the time',
        (end / run.lost[:, tenth]).max(),
        0.2,
      ),
      below(
        'sampled, tied optima: largest reward lost, annealed methods',
        lost[annealed, 1].max(),
        lab.size(0.01, 0.03),
      ),
    ],
    holds=[
      near(
        'reward lost, exponential schedule, over 1/(2ηt)',
        end[exponential] / formula(1.0, run.times[-1]),
        1,
        0.025,
      ),
      below(
        'sampled, plateaus: annealed bonus over none',
        lost[bonus, 0] / lost[0, 0],
        0.7,
      ),
    ],
  )


@claim(
  'Unbiased in entropy',
  printed='‘Asymptotically unbiased’: entropy converges to that of the '
  'unregularised run.',
  holds='True where the optimum is unique and both reach it: then it is '
  'h(1/(2ηt)), h the entropy of a coin, and vanishes. Where optima tie the '
  'entropy left within the optimal set depends on the path.',
  verdict='holds if the optimum is unique',
  formula=lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p),
  slips=(lambda p: -p * np.log(p),),
)
def unbiased_entropy(lab: Lab, formula: Formula) -> Evidence:
  """Two actions; and two tied optima beside a worse action."""
  run, tied = ascend(lab, (1.0, 0.0)), ascend(lab, (1.0, 1.0, 0.0))
  end = run.times[-1]
  difference = abs(tied.entropy[:, -1] - tied.entropy[0, -1])
  return Evidence(
    printed=[
      below('difference of entropies, ties, 1/√t', difference[-1], 0.01)
    ],
    given=[
      below(
        'greatest difference of entropies, five schedules',
        abs(run.entropy[:, -1] - run.entropy[0, -1]).max(),
        0.01,
      ),
    ],
    holds=[
      near(
        'entropy without bonus over h(1/(2ηt))',
        run.entropy[0, -1] / formula(1 / (2 * end)),
        1,
        0.02,
      ),
    ],
  )


@claim(
  'The decisive test',
  printed='Annealed methods converge to the policy of plain policy gradient.',
  holds='Not in distribution: two seeds of the same method differ as much '
  'where optima tie, and regularised runs end on better policies where plain '
  'ones get stuck. Compare reward and mass on the optimal set, with controls: '
  'another seed, β = 0, constant coefficients.',
  verdict='fails',
  formula=lambda p, q: abs(p - q).sum(-1).mean(-1) / 2,
)
def same_limit(lab: Lab, formula: Formula) -> Evidence:
  """Total variation from plain policy gradient, three tied optima."""
  outcome = decisive.run(lab)
  tv = outcome.distance[:, 1].mean(-1)
  leaves = outcome.leaves[:, 1]
  ours = formula(leaves, leaves[:1]).mean(-1)
  annealed = ARMS.index('bonus 0.3, annealed')
  optimal = outcome.optimal[:, 1].mean((-2, -1))
  return Evidence(
    printed=[
      below('TV from none, annealed bonus, tied optima', tv[annealed], 0.05)
    ],
    holds=[
      above('TV of none under another seed', tv[1], 0.3),
      below(
        'TV of β = 0 from none', ours[ARMS.index('KL-Cov 20 %, β = 0')], 1e-6
      ),
      below('TV against its formula', abs(ours - tv).max(), EXACT),
      above(
        'least mass on the optimal set: none and the annealed bonus',
        min(optimal[0], optimal[annealed]),
        0.95,
      ),
    ],
  )
