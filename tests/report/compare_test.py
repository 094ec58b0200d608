# SPDX-License-Identifier: Apache-2.0
"""Several runs: grouped by configuration, paired by seed, told honestly."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from covrl.report import comparison_svg, comparison_table, write_comparison
from covrl.report.compare import load_comparison

T_2 = 4.302653  # .975 quantile of Student's t with 2 degrees of freedom


@pytest.fixture
def study(make_run):
  """Two configurations, seeds 1 to 3, the second's given in another order."""
  runs = []
  for name, gain, seeds in (('grpo', 0.03, (1, 2, 3)), ('kl', 0.1, (3, 1, 2))):
    for seed in seeds:
      offset = 0.02 * (seed - 2)
      run = make_run(
        f'countdown_{name}_{seed}',
        name=f'countdown_{name}',
        seed=seed,
        gain=gain + offset,
        iterations=20,
        problems=60,
      )
      runs.append(run)
  return runs


def final(run, metric):
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  evals = [line for line in map(json.loads, lines) if line['phase'] == 'eval']
  return evals[-1][metric]


def edit_config(run, **entropy):
  content = json.loads((run / 'config.json').read_text())
  content['config']['entropy'] |= entropy
  (run / 'config.json').write_text(json.dumps(content))


@pytest.mark.parametrize('metric', ['greedy', 'mean@8', 'pass@8', 'entropy'])
def test_differences_are_paired_by_seed(study, metric):
  comparison = load_comparison(study)
  values = {run.name: final(run, metric) for run in study}
  differences = np.array(
    [
      values[f'countdown_kl_{seed}'] - values[f'countdown_grpo_{seed}']
      for seed in (1, 2, 3)
    ]
  )
  estimate = comparison.groups[1].difference(comparison.baseline, metric)
  half = T_2 * differences.std(ddof=1) / np.sqrt(3)
  assert estimate is not None
  assert estimate.value == pytest.approx(differences.mean())
  assert estimate.low == pytest.approx(differences.mean() - half, abs=1e-6)
  assert estimate.high == pytest.approx(differences.mean() + half, abs=1e-6)


def test_levels_are_means_over_seeds(study):
  group = load_comparison(study).groups[1]
  values = np.array([final(run, 'pass@8') for run in study[3:]])
  estimate = group.level('pass@8')
  half = T_2 * values.std(ddof=1) / np.sqrt(3)
  assert estimate is not None
  assert estimate.value == pytest.approx(values.mean())
  assert estimate.high == pytest.approx(values.mean() + half, abs=1e-6)


def test_seeds_that_the_baseline_lacks_are_left_out(study):
  comparison = load_comparison([study[0], study[1], *study[3:]])
  estimate = comparison.groups[1].difference(comparison.baseline, 'mean@8')
  expected = np.mean(
    [
      final(study[4], 'mean@8') - final(study[0], 'mean@8'),
      final(study[5], 'mean@8') - final(study[1], 'mean@8'),
    ]
  )
  assert estimate is not None
  assert estimate.value == pytest.approx(expected)
  assert 'over 2 seeds' in estimate.kind


def test_seeds_without_a_partner_give_no_difference(study):
  comparison = load_comparison([study[0], study[3]])
  assert comparison.groups[1].difference(comparison.baseline, 'mean@8') is None
  assert '| – |' in comparison_table([study[0], study[3]])


def test_one_seed_has_no_interval_anywhere(study, tmp_path):
  runs = [study[0], study[4]]
  table = comparison_table(runs)
  assert '±' not in table
  assert 'one seed has no interval' in table
  page = write_comparison(runs, tmp_path / 'page.html').read_text()
  assert 'no difference is judged' in page
  assert 'clearly' not in page


def test_the_table_states_the_numbers(study):
  rows = {
    row.split(' | ')[0].strip('| '): [
      cell.strip(' |') for cell in row.split(' | ')
    ]
    for row in comparison_table(study).splitlines()
  }
  assert rows['configuration'] == [
    'configuration',
    *('greedy, %', 'mean@8, %', 'pass@8, %', 'entropy'),
    *('Δ mean@8', 'Δ pass@8', 'Δ entropy'),
  ]
  values = np.array([100 * final(run, 'mean@8') for run in study[:3]])
  half = T_2 * values.std(ddof=1) / np.sqrt(3)
  assert rows['countdown_grpo'][2] == f'{values.mean():.1f} ± {half:.1f}'
  others = np.array([100 * final(run, 'mean@8') for run in study[3:]])
  change = f'{others.mean() - values.mean():+.1f}'
  assert rows['countdown_kl'][5].startswith(f'{change} ± ')
  assert len(rows['countdown_kl']) == 8


def test_a_shared_warm_start_counts_once_a_seed(study):
  comparison = load_comparison(study)
  estimate = comparison.before('mean@8')
  assert estimate is not None
  assert estimate.kind == 't over 3 seeds'


def test_a_seed_twice_is_refused(make_run):
  runs = [make_run('a', iterations=10), make_run('b', iterations=10)]
  with pytest.raises(ValueError, match='one run for each configuration and s'):
    comparison_table(runs)
  with pytest.raises(ValueError, match='at least one run'):
    comparison_table([])


def test_runs_of_one_file_with_other_numbers_are_told_apart(make_run):
  runs = [make_run('a', iterations=10), make_run('b', iterations=10)]
  edit_config(runs[1], coefficient=0.5)
  first, second = load_comparison(runs).groups
  assert first.name == 'countdown_kl_cov (entropy.coefficient=1.0)'
  assert second.name == 'countdown_kl_cov (entropy.coefficient=0.5)'


def test_where_seeds_live_does_not_make_a_configuration(make_run):
  runs = [make_run(f'seed{s}', seed=s, iterations=10) for s in (1, 2)]
  content = json.loads((runs[1] / 'config.json').read_text())
  content['config']['warm_start'] = {'from_run': 'elsewhere'}
  content['config']['logging'] = {'samples': 3}
  (runs[1] / 'config.json').write_text(json.dumps(content))
  groups = load_comparison(runs).groups
  assert [list(group.runs) for group in groups] == [[1, 2]]


def test_the_page_has_every_part_and_needs_no_network(study, tmp_path):
  edit_config(study[3], coefficient=1.0)
  path = write_comparison(study, tmp_path / 'page.html')
  content = path.read_text()
  assert len(content.encode()) < 200_000
  assert not re.search(r'https?:|src=|url\(|@import', content)
  for words in (
    'mean@8 against grpo',
    'Differences to countdown_grpo',
    'Held-out pass@8',
    'Mean over seeds; the band is from the lowest to the highest.',
    '95 % t interval over seeds',
    'The runs',
  ):
    assert words in content
  assert content.count('role="img"') == 4 + 6


def test_unfinished_and_unevaluated_runs_are_compared_too(make_run, tmp_path):
  runs = [
    make_run('a', name='a', iterations=40, done=20),
    make_run('b', name='b', iterations=40, done=0),
  ]
  text = '{"phase": "warm_start", "step": 1, "loss": 1.0}\n'
  (runs[1] / 'metrics.jsonl').write_text(text)
  page = write_comparison(runs, tmp_path / 'page.html').read_text()
  assert 'Unfinished: a with seed 0 and b with seed 0' in page
  assert '20 of 40 iterations' in page
  (runs[0] / 'metrics.jsonl').write_text('')
  write_comparison(runs, tmp_path / 'page.html')
  with pytest.raises(ValueError, match='entropy or mean@8'):
    comparison_svg(runs)


def test_the_picture_is_one_svg_with_both_panels(study):
  content = comparison_svg(study)
  root = ET.fromstring(content)
  texts = [element.text for element in root.iter() if element.text]
  assert 'Entropy of the policy' in texts
  assert 'Held-out mean@8' in texts
  assert {'grpo', 'kl'} <= set(texts)
  assert len(content) < 30_000
  assert re.findall(r'https?://[^"]+', content) == [
    'http://www.w3.org/2000/svg'
  ]


def test_names_are_escaped(make_run, tmp_path):
  runs = [
    make_run(name, name=f'<b>{name}</b>', iterations=10) for name in ('a', 'c')
  ]
  page = write_comparison(runs, tmp_path / 'page.html').read_text()
  assert '<b>a</b>' not in page
  assert '&lt;b&gt;a&lt;/b&gt;' in page
  ET.fromstring(comparison_svg(runs))
