# SPDX-License-Identifier: Apache-2.0
"""What covrl derives beyond the paper: scores, the annealing rate, control."""

from __future__ import annotations

import functools

import numpy as np

from covrl.theory import control, scores
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
from covrl.theory.section_6 import (
  RATE,
  entropies,
  plain_update,
  sampled_bandit,
)
from covrl.theory.section_7b import bandits, gradient

SECTION = Section('Derived results')
claim = SECTION.claim


@claim(
  'Score of a token',
  printed='The covariance (log π − mean)(A − mean) over a batch tells which '
  'tokens take the entropy.',
  holds='For logits in a table c* does, exactly; where parameters are shared, '
  '−w · JVP of log π(a) along P ∇H̄: ΔH̄ = −η times its mean. Detaching its top '
  'tokens saves most entropy; ranking by size instead of sign saves little '
  'more than chance.',
  verdict='fails',
  formula=lambda rate, mean: -rate * mean,
)
def token_score(lab: Lab, formula: Formula) -> Evidence:
  """The score study."""
  batch, state, exact, jvp = (
    scores.SCORES.index(name) for name in ('batch', 'state', 'exact', 'jvp')
  )
  plain = scores.study(lab, 'table', 'SGD').saved
  studies = [
    scores.study(lab, policy, optimiser)
    for policy in scores.policies(lab)
    for optimiser in scores.OPTIMISERS
  ]
  ratios = [formula(1.0, run.predicted) / -run.actual for run in studies]
  gains = [run.saved[jvp, -1] / run.saved[batch, -1] for run in studies]
  return Evidence(
    printed=[
      above(
        'saved by the top 20 % of the batch score, over c*, table',
        plain[batch, -1] / plain[exact, -1],
        0.95,
      )
    ],
    holds=[
      near(
        'predicted over actual ΔH, worst',
        max(ratios, key=lambda r: abs(r - 1)),
        1,
        0.01,
      ),
      above(
        'saved by JVP over saved by batch score, top 20 %, least',
        min(gains),
        1.05,
      ),
      above(
        'saved by c* over state score, table, top 20 %',
        plain[exact, -1] / plain[state, -1],
        1.05,
      ),
    ],
    tables=[scores.table(lab)],
  )


POWERS = (0.25, 0.5, 1.0)


@claim(
  'Annealing rate',
  printed='A bias β_t that vanishes does not affect the rate O(1/T) (proof of '
  'Theorem VII.3).',
  holds='‖∇‖² follows the bias, as β_t²: for β_t = t^−p it falls as T^−2p. '
  'O(1/T) needs Σ β_t² < ∞, p > ½.',
  verdict='holds if p > ½',
  formula=lambda p: -2 * p,
  wrong=(-1.0, 1.25),
)
def annealing_rate(lab: Lab, formula: Formula) -> Evidence:
  """Ascent with a fixed direction of bias, on E r + ½ H (interior maximum)."""
  times, squares = _biased(lab)
  late = times > times[-1] / 30
  slopes = [sm.slope(times[late], row[late]) for row in squares]
  return Evidence(
    printed=[below('exponent of ‖∇‖², p = ¼', slopes[0], -0.95)],
    holds=[
      near(f'the same, p = {p:g}', found, formula(p), 0.06)
      for p, found in zip(POWERS, slopes, strict=True)
    ],
    pictures=[
      Picture(
        'A vanishing bias sets the rate',
        'step',
        '‖∇‖²',
        [
          Curve(f'β = t^−{p:g}', times, row)
          for p, row in zip(POWERS, squares, strict=True)
        ],
        caption='Exact ascent with a bias β_t v; mean over forty bandits. '
        'Slopes −2p.',
        log_x=True,
        log_y=True,
      )
    ],
  )


@functools.cache
def _biased(lab: Lab) -> tuple[np.ndarray, np.ndarray]:
  """Squared gradients along runs with bias t^−p."""
  steps = lab.size(20_000, 5000)
  _, rewards = bandits(lab)
  z = np.repeat(2 * rewards[None], len(POWERS), 0)  # The maximum.
  bias = lab.random().normal(size=rewards.shape)
  bias = 0.1 * (bias - bias.mean(-1, keepdims=True))
  powers = np.array(POWERS)[:, None, None]
  times = np.unique(np.logspace(0, np.log10(steps), 40).astype(int))
  squares = []
  for step in range(1, steps + 1):
    g = gradient(z, np.broadcast_to(rewards, z.shape), 0.5)
    if step in times:
      squares.append((g**2).sum(-1).mean(-1))
    z = z + g + bias * step**-powers
  return times.astype(float), np.array(squares).T


@claim(
  'Control',
  printed='A bonus either fails to prevent collapse or biases excessively '
  '(introduction).',
  holds='With a controlled coefficient it holds entropy to a path. Detaching '
  'the shortest prefix of tokens by c* holds it tighter, since ΔH = −η times '
  'the mean of c*, per prompt; and keeps less reward.',
  verdict='fails',
  formula=lambda rate, mean: -rate * mean,
)
def controllers(lab: Lab, formula: Formula) -> Evidence:
  """Five arms on sampled bandits; and one update foretold."""
  batch = sampled_bandit(lab)
  before = entropies(np.asarray(batch.logits)[:, 0])
  after = entropies(plain_update(batch.logits, batch.tokens))
  predicted = formula(RATE, batch.scores.mean() / batch.tree.prompts)
  paths = control.run(lab)
  error = dict(zip(paths.arms, paths.error, strict=True))
  reward = dict(zip(paths.arms, paths.reward, strict=True))
  return Evidence(
    printed=[
      above(
        'distance of the controlled bonus from its path, over the drop',
        error['target_entropy'],
        0.5,
      )
    ],
    holds=[
      near(
        'ΔH of one update over its prediction',
        (after - before) / predicted,
        1,
        1e-3,
      ),
      below(
        'distance from the path, target_entropy', error['target_entropy'], 0.12
      ),
      below(
        'distance from the path, detaching by c*', error['detach by c*'], 0.03
      ),
      above('distance from the path, no control', error['none'], 0.5),
      above(
        'reward of the controlled bonus over that of detaching',
        reward['target_entropy'] / reward['detach by c*'],
        1.0,
      ),
    ],
    pictures=[
      Picture(
        'Entropy under control',
        'update',
        'nats per token',
        [
          Curve('target', paths.steps, paths.target, dashed=True),
          *(
            Curve(name, paths.steps, path)
            for name, path in zip(paths.arms, paths.entropy, strict=True)
          ),
        ],
        caption='At the end, of the best reward: '
        + ', '.join(f'{name} {value:.2f}' for name, value in reward.items())
        + '.',
      )
    ],
  )
