# SPDX-License-Identifier: Apache-2.0
"""Whether reward is bought with entropy: R = −a e^H + b, for every run."""

from __future__ import annotations

import numpy as np

from covrl.evaluation.reward_law import Interval, RewardLaw, reward_law
from covrl.report import words
from covrl.report.compare import Comparison
from covrl.report.run import Run

TITLES = (
  'configuration',
  'seed',
  'a',
  'b',
  'R² with e^H',
  'R² with H',
  'forecast error with e^H, points',
  'with H',
)
# Iterations; below, a forecast from the first third is from a point or two.
_FEWEST = 9


def law_rows(comparison: Comparison) -> list[list[str]]:
  """A line of the table for every run that is long enough."""
  rows = []
  for group in comparison.groups:
    for seed, run in group.runs.items():
      law = law_of(run)
      if law is not None:
        rows.append([group.name, str(seed), *_cells(law)])
  return rows


def lawless(comparison: Comparison) -> list[str]:
  """Directories of the runs that no law can be fitted to."""
  return [
    run.path.name
    for group in comparison.groups
    for run in group.runs.values()
    if law_of(run) is None
  ]


def law_of(run: Run) -> RewardLaw | None:
  """The law of one run, over its iterations.

  `None` if they are too few, or their entropy stays as it is for a third of
  the run.
  """
  entropy, reward = run.train.curve('entropy'), run.train.curve('reward')
  if entropy.x.tolist() != reward.x.tolist() or entropy.x.size < _FEWEST:
    return None
  if np.ptp(entropy.y[: entropy.x.size // 3]) == 0:
    return None
  return reward_law(entropy.y, reward.y)


def _cells(law: RewardLaw) -> list[str]:
  fit = law.exponential
  return [
    _interval(fit.a),
    _interval(fit.b),
    words.fixed(fit.r_squared, 2),
    words.fixed(law.linear.r_squared, 2),
    words.signed(100 * fit.error, 1),
    words.signed(100 * law.linear.error, 1),
  ]


def _interval(estimate: Interval) -> str:
  ends = f'{words.fixed(estimate.low, 2)} to {words.fixed(estimate.high, 2)}'
  return f'{words.fixed(estimate.value, 2)} ({ends})'
