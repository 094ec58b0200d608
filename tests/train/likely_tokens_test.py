# SPDX-License-Identifier: Apache-2.0
"""Training runs with Lp-Reg and AEnt, which read the policy without rare tokens."""

import math

import pytest
from train import process, runs


@pytest.mark.slow
@pytest.mark.parametrize('packed', [0, 14])
def test_runs_with_lp_reg_and_aent_make_finite_updates(
  packed, tmp_path_factory
):
  """The scored rows have the proxy of Lp-Reg, packed or not."""
  settings = runs.SMALL | {'train__packed_rows': packed}
  run = runs.finished_run(tmp_path_factory, 'toy_lp_reg_aent', **settings)
  lines = process.metric_lines(run, 'train')
  assert len(lines) == 4
  for line in lines:
    assert line['skipped'] == 0
    assert math.isfinite(line['loss'])
    assert math.isfinite(line['gradient_norm'])
  # Lp-Reg selects half of the tokens of negative advantage.
  assert any(line['selected'] > 0 for line in lines)
