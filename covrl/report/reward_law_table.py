# SPDX-License-Identifier: Apache-2.0
"""Table of fits of the reward–entropy law R = −a e^H + b, one row per run."""

from __future__ import annotations

import math

import numpy as np

from covrl.evaluation.reward_law import Interval, RewardLaw, reward_law
from covrl.report import formats
from covrl.report.comparison import Comparison
from covrl.report.inputs.run_data import RunData

REWARD_LAW_COLUMNS = (
  'configuration',
  'seed',
  'a',
  'b',
  'R² with e^H',
  'R² with H',
  'forecast error with e^H, points',
  'forecast error with H, points',
)
_LARGEST_ENTROPY = 50.0  # nats; that of 10²¹ tokens
_MIN_ITERATIONS = 9  # a forecast then uses at least three


def reward_law_rows(comparison: Comparison) -> list[list[str]]:
  """Rows of the table, one per run that the law can be fitted to."""
  rows = []
  for group in comparison.groups:
    for seed, run in group.runs.items():
      law = fit_run(run)
      if law is not None:
        rows.append([group.name, str(seed), *_cells(law)])
  return rows


def runs_without_law(comparison: Comparison) -> list[str]:
  """Directory names of runs that the law cannot be fitted to."""
  return [
    run.path.name
    for group in comparison.groups
    for run in group.runs.values()
    if fit_run(run) is None
  ]


def fit_run(run: RunData) -> RewardLaw | None:
  """Fits the law to the iterations of a run.

  Returns:
    The fit; `None` with fewer than nine iterations, with constant entropy in
    the first third of the run, or with an entropy beyond that of any vocabulary.
  """
  entropy, reward = run.train.curve('entropy'), run.train.curve('reward')
  if (
    entropy.x.tolist() != reward.x.tolist() or entropy.x.size < _MIN_ITERATIONS
  ):
    return None
  if np.ptp(entropy.y[: entropy.x.size // 3]) == 0:
    return None
  if np.abs(entropy.y).max() > _LARGEST_ENTROPY:
    return None
  return reward_law(entropy.y, reward.y)


def _cells(law: RewardLaw) -> list[str]:
  """Cells of `REWARD_LAW_COLUMNS` after configuration and seed."""
  fit = law.exponential
  return [
    _interval_text(fit.a),
    _interval_text(fit.b),
    *(_share_text(each.r_squared) for each in (fit, law.linear)),
    formats.signed(100 * fit.error, 1),
    formats.signed(100 * law.linear.error, 1),
  ]


def _share_text(share: float) -> str:
  """A share with two digits; a dash where there is no variance to explain."""
  return formats.fixed(share, 2) if math.isfinite(share) else '–'


def _interval_text(estimate: Interval) -> str:
  """An estimate with its interval, as text."""
  ends = (
    f'{formats.fixed(estimate.low, 2)} to {formats.fixed(estimate.high, 2)}'
  )
  return f'{formats.fixed(estimate.value, 2)} ({ends})'
