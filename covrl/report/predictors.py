# SPDX-License-Identifier: Apache-2.0
"""Correlation of predicted and measured entropy changes."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from covrl.report.inputs.run_data import RunData
from covrl.report.inputs.run_json import short_text

_FIELD_PREFIX = 'predicted_entropy_change/'
_MIN_MEASUREMENTS = 5


@dataclasses.dataclass(frozen=True)
class Predictor:
  """Agreement of one predictor of the entropy change with the measured changes.

  Attributes:
    name: `batch`, `state`, `definition`, `exact`, `signal` or `jvp`.
    correlation: Pearson's r with the measured change.
    slope: least-squares slope of the measured change against the prediction:
      near 1 for a prediction in nats, and near the step size for one per unit
      of step size.
    count: number of measured updates.
  """

  name: str
  correlation: float
  slope: float
  count: int


def predictors(run: RunData) -> list[Predictor]:
  """Compares every logged prediction with `realised_entropy_change`.

  Args:
    run: the run.

  Returns:
    One entry per prediction with at least five measurements.
  """
  realised = run.train.column('realised_entropy_change')
  results = []
  for field in run.train.names(_FIELD_PREFIX):
    predicted = run.train.column(field)
    is_measured = np.isfinite(realised) & np.isfinite(predicted)
    if (
      is_measured.sum() >= _MIN_MEASUREMENTS
      and np.ptp(predicted[is_measured]) > 0
    ):
      name = short_text(field.removeprefix(_FIELD_PREFIX), 40)
      results.append(
        _compare(name, predicted[is_measured], realised[is_measured])
      )
  return results


def _compare(
  name: str,
  predicted: Float[np.ndarray, ' n'],
  realised: Float[np.ndarray, ' n'],
) -> Predictor:
  """Correlation and slope of measured changes against predicted ones."""
  x, y = predicted - predicted.mean(), realised - realised.mean()
  # Scaled, since squares of tiny numbers are 0.
  x_size, y_size = np.abs(x).max(), np.abs(y).max() or 1.0
  x, y = x / x_size, y / y_size
  spread = np.sqrt((x @ x) * (y @ y))
  return Predictor(
    name=name,
    correlation=float(x @ y / spread) if spread > 0 else 0.0,
    slope=float(x @ y / (x @ x) * (y_size / x_size)),
    count=len(x),
  )
