# SPDX-License-Identifier: Apache-2.0
"""Questions a review asked: cross terms, annealing, 'asymptotically unbiased'."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from covrl.theory import decisive
from covrl.theory import softmax as sm
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
from covrl.theory.section_3 import EXACT

SECTION = Section('Questions of the review')
claim = SECTION.claim


@claim(
  'Cross terms',
  printed='Policy gradient and regulariser interact in ΔH at first order.',
  holds='A covariance is linear in Δz: at first order their effects add. The '
  'first cross term of updates u and h is −E[ũ h̃ (1 + f)], second order, '
  'tildes meaning centred. With shared parameters states do interact at first '
  'order, through the kernel (Def. VII.1).',
  verdict='fails',
  formula=lambda pi, u, h: (
    -sm.mean(pi, sm.centred(pi, u) * sm.centred(pi, h) * (1 + sm.surprise(pi)))
  ),
)
def cross_terms(lab: Lab, formula: Formula) -> Evidence:
  """Moves by each update, by both and by neither."""
  random = lab.random()
  z = sm.random_logits(random, 200, 6, (0.5, 1.0, 2.0))
  pi = sm.softmax(z)
  u = pi * sm.centred(pi, random.normal(size=pi.shape))
  h = -pi * sm.surprise(pi)

  def at(*moves: Float[np.ndarray, 'n K']) -> Float[np.ndarray, ' n']:
    return sm.entropy(sm.softmax(z + sum(moves)))

  rates = np.logspace(-3, -1, 7)
  crossed = np.array(
    [at(r * u, r * h) - at(r * u) - at(r * h) + at() for r in rates]
  )
  size = abs(crossed).mean(1)
  predicted = formula(pi, u, h)
  error = abs(crossed[2] / rates[2] ** 2 - predicted).mean()
  return Evidence(
    printed=[
      near('exponent in η of the cross effect', sm.slope(rates, size), 1, 0.2)
    ],
    holds=[
      near('the same', sm.slope(rates, size), 2, 0.05),
      below(
        'relative error of its prediction', error / abs(predicted).mean(), 0.02
      ),
    ],
  )


class Ascent(NamedTuple):
  """Exact ascent in a bandit under schedules of the bonus.

  Attributes:
    times: steps.
    lost: reward lost at them, by schedule.
    entropy: at them, by schedule, in nats.
    logits: at the end, by schedule.
    middle: half-way.
    pushes: Σ ‖λ_t ∇H‖ after half-way, by schedule.
    weights: Σ λ_t after half-way, by schedule.
  """

  times: Float[np.ndarray, ' t']
  lost: Float[np.ndarray, 'A t']
  entropy: Float[np.ndarray, 'A t']
  logits: Float[np.ndarray, 'A K']
  middle: Float[np.ndarray, 'A K']
  pushes: Float[np.ndarray, ' A']
  weights: Float[np.ndarray, ' A']


NAMES = ('none', 'linear', 'exponential', '1/t', '1/√t')


@functools.cache
def ascend(lab: Lab, rewards: tuple[float, ...]) -> Ascent:
  """Runs five schedules from the same logits."""
  steps = lab.size(40_000, 6000)
  start = 0.5 * lab.random().normal(size=len(rewards))
  z = np.repeat(start[None], len(NAMES), 0)
  r = np.array([rewards])
  times = np.unique(np.logspace(0, np.log10(steps), 40).astype(int))
  lost, entropy = [], []
  middle, pushes, weights = z, np.zeros(5), np.zeros(5)
  for t in range(1, steps + 1):
    alpha = schedules(t, steps)
    pi = sm.softmax(z)
    bonus = -alpha[:, None] * pi * sm.surprise(pi)
    z = z + pi * sm.centred(pi, r) + bonus
    if t == steps // 2:
      middle = z
    if t > steps // 2:
      pushes += np.linalg.norm(bonus, axis=-1)
      weights += alpha
    if t in times:
      pi = sm.softmax(z)
      lost.append(r.max() - sm.mean(pi, r))
      entropy.append(sm.entropy(pi))
  return Ascent(
    times.astype(float),
    np.array(lost).T,
    np.array(entropy).T,
    z,
    middle,
    pushes,
    weights,
  )


def schedules(t: int, steps: int) -> Float[np.ndarray, ' A']:
  """λ_t of each schedule, 0.3 at first; the linear one ends half-way."""
  shapes = [0.0, max(0.0, 1 - 2 * (t - 1) / steps)]
  shapes += [np.exp(-t / 100), 1 / t, t**-0.5]
  return 0.3 * np.array(shapes)


@claim(
  'Annealing conditions',
  printed='Unbiasedness needs Σ λ_t < ∞ and λ_t falling more slowly than the '
  'policy converges; what is left is at most η C Σ_{t>T} λ_t.',
  holds='Exact softmax ascent converges as Θ(1/t): whatever is slower has Σ λ '
  '= ∞, so no schedule meets both conditions. Neither is needed: 1/√t works, '
  'whose sum diverges, and a linear schedule is over after T. The tail sum does bound '
  'the displacement that is still to come, not the bias. Two actions Δ = 1 '
  'apart lose 1/(2ηt).',
  verdict='fails',
  formula=lambda rate, t: 1 / (2 * rate * t),
)
def annealing_conditions(lab: Lab, formula: Formula) -> Evidence:
  """Two actions, η = 1."""
  run = ascend(lab, (1.0, 0.0))
  names = dict(zip(NAMES, run.lost, strict=True))
  late = run.times > run.times[-1] / 30
  rates = {
    name: -sm.slope(run.times[late], names[name][late]) for name in names
  }
  largest = 0.3  # C: ‖πf‖ of two actions is less.
  excess = (run.pushes - largest * run.weights)[1:].max()
  return Evidence(
    printed=[
      above(
        'reward lost under 1/√t (Σ λ = ∞) over none',
        names['1/√t'][-1] / names['none'][-1],
        10.0,
      )
    ],
    holds=[
      near('exponent of the policy’s own rate', rates['none'], 1, 0.05),
      near(
        'reward lost without bonus, over 1/(2ηt)',
        names['none'][-1] / formula(1.0, run.times[-1]),
        1,
        0.02,
      ),
      below(
        'reward lost, linear schedule, over none',
        names['linear'][-1] / names['none'][-1],
        2.0,
      ),
      above('exponent at which the gap vanishes, 1/√t', rates['1/√t'], 0.3),
      below('pushes after half-way less the tail sum’s bound', excess, 0.0),
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
        caption='Two actions, exact ascent, λ_0 = 0.3. All vanish; those that '
        'fall like the policy’s own 1/t or slower do so at their own pace.',
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
  'odds are 2ηt). And where optima tie, annealed runs end at other policies.',
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
      below('TV from the unregularised run, ties, 1/√t', distance[-1], 0.01)
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
  holds='As printed, for every schedule that vanishes, bonus or penalty; what '
  'is lost then is λ-dependent only in its rate. Runs stuck on a plateau differ: '
  'there the regularised ones end higher.',
  verdict='holds',
  formula=lambda rate, t: 1 / (2 * rate * t),
)
def unbiased_value(lab: Lab, formula: Formula) -> Evidence:
  """Exact ascent; and the plateaus of the decisive test."""
  run = ascend(lab, (1.0, 0.0))
  index = {name: place for place, name in enumerate(NAMES)}
  outcome = decisive.run(lab)
  arms = list(decisive.ARMS)
  lost = outcome.gap[:, 0].mean(-1)
  ratio = lost[arms.index('bonus .3, annealed')] / lost[0]
  return Evidence(
    printed=[
      below('largest reward lost at the end', run.lost[:, -1].max(), 0.05),
      below(
        'the same over that at a tenth of the time',
        (
          run.lost[:, -1]
          / run.lost[:, abs(run.times * 10 - run.times[-1]).argmin()]
        ).max(),
        0.6,
      ),
    ],
    holds=[
      near(
        'reward lost, exponential schedule, over 1/(2ηt)',
        run.lost[index['exponential'], -1] / formula(1.0, run.times[-1]),
        1,
        0.025,
      ),
      below('sampled with plateaus: annealed bonus over none', ratio, 0.7),
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
    holds=[
      near(
        'entropy without bonus over h(1/(2ηt))',
        run.entropy[0, -1] / formula(1 / (2 * end)),
        1,
        0.02,
      ),
      below(
        'largest entropy at the end, unique optimum',
        run.entropy[:4, -1].max(),
        0.05,
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
  arms = list(decisive.ARMS)
  tv = outcome.distance[:, 1].mean(-1)
  leaves = outcome.leaves[:, 1]
  ours = formula(leaves, leaves[:1]).mean(-1)
  annealed = arms.index('bonus .3, annealed')
  optimal = outcome.optimal[:, 1].mean((-2, -1))
  return Evidence(
    printed=[
      below('TV from none, annealed bonus, tied optima', tv[annealed], 0.05)
    ],
    holds=[
      above('TV of none under another seed', tv[1], 0.3),
      below(
        'TV of β = 0 from none', ours[arms.index('KL-Cov 20 %, β = 0')], 1e-6
      ),
      below('TV against its formula', abs(ours - tv).max(), EXACT),
      above(
        'least mass on the optimal set: none and the annealed bonus',
        min(optimal[0], optimal[annealed]),
        0.95,
      ),
    ],
  )
