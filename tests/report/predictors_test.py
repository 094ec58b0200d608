# SPDX-License-Identifier: Apache-2.0
"""Correlation and slope against NumPy's, and who is asked."""

import json

import numpy as np
import pytest

from covrl.report.page import write_report
from covrl.report.predictors import predictors
from covrl.report.run import load_run


def write(workdir, realised, predicted):
  """A run that measured some of its updates."""
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


def test_correlation_and_slope(tmp_path):
  rng = np.random.default_rng(0)
  predicted = rng.normal(size=12)
  realised = 0.3 * predicted + 0.1 * rng.normal(size=12) - 0.05
  measured = [
    value if step % 2 else None for step, value in enumerate(realised)
  ]
  run = load_run(write(tmp_path / 'run', measured, predicted))
  (found,) = predictors(run)
  x, y = predicted[1::2], realised[1::2]
  assert (found.name, found.count) == ('batch', 6)
  assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])
  assert found.slope == pytest.approx(np.polyfit(x, y, 1)[0])
  page = write_report(tmp_path / 'run').read_text()
  assert 'What foretells the change of entropy' in page


def test_too_few_measurements_say_nothing(tmp_path):
  run = write(tmp_path / 'run', [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0])
  assert predictors(load_run(run)) == []
  assert 'What foretells' not in write_report(run).read_text()
