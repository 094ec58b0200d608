# SPDX-License-Identifier: Apache-2.0
"""Tests of the correlation of predicted and measured entropy changes."""

import json

import numpy as np
import pytest

from covrl.report.inputs.run_data import load_run
from covrl.report.pages.run import write_report
from covrl.report.predictors import predictors


def write(workdir, realised, predicted):
  """Writes a run with measurements of some updates."""
  workdir.mkdir()
  rows = []
  for step, (change, prediction) in enumerate(
    zip(realised, predicted, strict=True)
  ):
    line = {
      'step': step,
      'iteration': step // 2,
      'phase': 'train',
      'predicted_entropy_change/batch': prediction,
    }
    if change is not None:
      line['realised_entropy_change'] = change
    rows.append(json.dumps(line))
  (workdir / 'metrics.jsonl').write_text('\n'.join(rows) + '\n')
  return workdir


def test_correlation_and_slope_agree_with_numpy(tmp_path):
  rng = np.random.default_rng(0)
  predicted = rng.normal(size=12)
  realised = 0.3 * predicted + 0.1 * rng.normal(size=12) - 0.05
  measured = [
    value if step % 2 else None for step, value in enumerate(realised)
  ]
  run = load_run(write(tmp_path / 'run', measured, predicted))
  (predictor,) = predictors(run)
  x, y = predicted[1::2], realised[1::2]
  assert (predictor.name, predictor.count) == ('batch', 6)
  assert predictor.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])
  assert predictor.slope == pytest.approx(np.polyfit(x, y, 1)[0])
  page = write_report(tmp_path / 'run').read_text()
  assert 'Predicting the change of entropy' in page


def test_too_few_measurements_give_no_result(tmp_path):
  run = write(tmp_path / 'run', [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0])
  assert predictors(load_run(run)) == []
  assert 'Predicting the change' not in write_report(run).read_text()
