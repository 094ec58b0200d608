# SPDX-License-Identifier: Apache-2.0
"""How well each prediction of the entropy's change foretold it."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from covrl.report.run import Run

_PREFIX = 'predicted_entropy_change/'
# Fewer points than this say nothing about a correlation.
_FEWEST = 5


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A predictor of the change that an update makes in the mean entropy.

  Attributes:
    name: `batch`, `state`, `definition`, `exact`, `signal` or `jvp`.
    correlation: Pearson's r with the realised change.
    slope: of the realised change against the prediction, least squares. 1
      where the prediction is in nats; the step size where it is per unit of
      step size.
    count: updates that were measured.
  """

  name: str
  correlation: float
  slope: float
  count: int


def predictors(run: Run) -> list[Predictor]:
  """Every prediction that the run logged, against what it measured.

  Args:
    run: with `realised_entropy_change` in some of its lines.

  Returns:
    None for a run with fewer than five measurements.
  """
  realised = run.train.numbers('realised_entropy_change')
  found = []
  for field in run.train.fields(_PREFIX):
    predicted = run.train.numbers(field)
    known = np.isfinite(realised) & np.isfinite(predicted)
    if known.sum() >= _FEWEST and np.ptp(predicted[known]) > 0:
      found.append(
        _judged(field.removeprefix(_PREFIX), predicted[known], realised[known])
      )
  return found


def _judged(
  name: str,
  predicted: Float[np.ndarray, ' n'],
  realised: Float[np.ndarray, ' n'],
) -> Predictor:
  x, y = predicted - predicted.mean(), realised - realised.mean()
  spread = np.sqrt((x @ x) * (y @ y))
  return Predictor(
    name=name,
    correlation=float(x @ y / spread) if spread > 0 else 0.0,
    slope=float(x @ y / (x @ x)),
    count=len(x),
  )
