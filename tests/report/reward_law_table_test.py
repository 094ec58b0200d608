# SPDX-License-Identifier: Apache-2.0
"""Tests of reward–entropy fits on runs with a known law."""

import json

import numpy as np

from covrl.report.inputs.run_data import load_run
from covrl.report.pages.comparison import write_comparison
from covrl.report.reward_law_table import fit_run


def write(workdir, seed, iterations=30, constant=0):
  """Writes a run that follows the law exactly.

  The entropy of its first `constant` iterations does not change.
  """
  workdir.mkdir()
  entropy = np.linspace(0.5, 0.1, iterations)
  entropy[:constant] = 0.3
  lines = [
    {
      'step': step,
      'iteration': step,
      'phase': 'train',
      'entropy': value,
      'reward': 0.9 - 0.4 * np.exp(value),
    }
    for step, value in enumerate(entropy)
  ]
  text = '\n'.join(json.dumps(line) for line in lines) + '\n'
  (workdir / 'metrics.jsonl').write_text(text)
  settings = {'name': 'toy', 'config': {'seed': seed}}
  (workdir / 'config.json').write_text(json.dumps(settings))
  return workdir


def test_recovers_the_law(tmp_path):
  law = fit_run(load_run(write(tmp_path / 'run_0', 0)))
  assert law is not None
  np.testing.assert_allclose(law.exponential.a.value, 0.4, rtol=1e-9)
  np.testing.assert_allclose(law.exponential.b.value, 0.9, rtol=1e-9)
  assert abs(law.exponential.error) < 1e-9
  assert law.linear.r_squared < law.exponential.r_squared


def test_comparison_page_has_the_table(tmp_path):
  runs = [write(tmp_path / f'run_{seed}', seed) for seed in range(2)]
  page = write_comparison(runs, tmp_path / 'page.html').read_text()
  assert 'Reward–entropy law' in page
  assert page.count('0.40 (0.40 to 0.40)') == 2


def test_page_names_runs_that_cannot_be_fitted(tmp_path):
  runs = [
    write(tmp_path / 'run_0', 0),
    write(tmp_path / 'run_1', 1, iterations=8),
    write(tmp_path / 'constant', 2, constant=12),
  ]
  page = write_comparison(runs, tmp_path / 'page.html').read_text()
  assert 'constant entropy: run_1, constant.' in page
  assert page.count('(0.40 to 0.40)') == 1


def test_short_runs_have_no_fit(tmp_path):
  assert fit_run(load_run(write(tmp_path / 'run_0', 0, iterations=8))) is None
  runs = [tmp_path / 'run_0', write(tmp_path / 'run_1', 1, iterations=8)]
  page = write_comparison(runs, tmp_path / 'page.html').read_text()
  assert 'Reward–entropy law' not in page
