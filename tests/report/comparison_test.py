# SPDX-License-Identifier: Apache-2.0
"""Tests of comparisons: groups by configuration, differences by seed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from covrl.report import (
  comparison_svg,
  comparison_table,
  write_comparison,
  write_report,
)
from covrl.report.comparison import differing_fields, load_comparison
from covrl.report.inputs.run_data import load_run
from covrl.report.inputs.run_json import flatten_config

T_2 = 4.302653  # .975 quantile of Student's t with 2 degrees of freedom


@pytest.fixture
def study(make_run):
  """Runs of two configurations with seeds 1 to 3, in different orders."""
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


def final_value(run, metric):
  """A metric of the last evaluation in a run directory."""
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
  values = {run.name: final_value(run, metric) for run in study}
  differences = np.array(
    [
      values[f'countdown_kl_{seed}'] - values[f'countdown_grpo_{seed}']
      for seed in (1, 2, 3)
    ]
  )
  estimate = comparison.groups[1].difference(comparison.baseline, metric)
  half_width = T_2 * differences.std(ddof=1) / np.sqrt(3)
  assert estimate is not None
  assert estimate.value == pytest.approx(differences.mean())
  assert estimate.low == pytest.approx(
    differences.mean() - half_width, abs=1e-6
  )
  assert estimate.high == pytest.approx(
    differences.mean() + half_width, abs=1e-6
  )


def test_values_are_means_over_seeds(study):
  group = load_comparison(study).groups[1]
  values = np.array([final_value(run, 'pass@8') for run in study[3:]])
  estimate = group.mean('pass@8')
  half = T_2 * values.std(ddof=1) / np.sqrt(3)
  assert estimate is not None
  assert estimate.value == pytest.approx(values.mean())
  assert estimate.high == pytest.approx(values.mean() + half, abs=1e-6)


def test_differences_leave_out_seeds_that_the_baseline_lacks(study):
  comparison = load_comparison([study[0], study[1], *study[3:]])
  estimate = comparison.groups[1].difference(comparison.baseline, 'mean@8')
  expected = np.mean(
    [
      final_value(study[4], 'mean@8') - final_value(study[0], 'mean@8'),
      final_value(study[5], 'mean@8') - final_value(study[1], 'mean@8'),
    ]
  )
  assert estimate is not None
  assert estimate.value == pytest.approx(expected)
  assert estimate.kind == 'two seeds, no interval'


def test_two_seeds_show_their_values_without_an_interval(study, tmp_path):
  runs = [*study[:2], *study[4:]]
  table = comparison_table(runs)
  values = [100 * final_value(run, 'mean@8') for run in study[:2]]
  cell = f'{np.mean(values):.1f} ({values[0]:.1f}, {values[1]:.1f})'
  assert f'| {cell} |' in table
  assert '±' not in table
  assert 'in parentheses the values of two seeds' in table
  page = write_comparison(runs, tmp_path / 'page.html').read_text()
  assert cell in page
  table = comparison_table([*study[:2], *study[3:]])
  assert '± half width' in table
  assert 'in parentheses the values of two seeds' in table


def test_unpaired_seeds_give_no_difference(study):
  comparison = load_comparison([study[0], study[3]])
  assert comparison.groups[1].difference(comparison.baseline, 'mean@8') is None
  assert '| – |' in comparison_table([study[0], study[3]])


def test_one_seed_has_no_interval(study, tmp_path):
  runs = [study[0], study[4]]
  table = comparison_table(runs)
  assert '±' not in table
  assert 'one seed has no interval' in table
  page = write_comparison(runs, tmp_path / 'page.html').read_text()
  assert 'one seed has no interval' in page
  assert '±' not in page.partition('<p class="note after">')[0]
  assert '<b class="c' not in page


def test_table_has_means_half_widths_and_differences(study):
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
  values = np.array([100 * final_value(run, 'mean@8') for run in study[:3]])
  half_width = T_2 * values.std(ddof=1) / np.sqrt(3)
  assert rows['countdown_grpo'][2] == f'{values.mean():.1f} ± {half_width:.1f}'
  other_values = np.array(
    [100 * final_value(run, 'mean@8') for run in study[3:]]
  )
  change = f'{other_values.mean() - values.mean():+.1f}'
  assert rows['countdown_kl'][5].startswith(f'{change} ± ')
  assert len(rows['countdown_kl']) == 8


def test_first_evaluation_is_averaged_over_seeds_and_not_over_runs(study):
  comparison = load_comparison(study)
  estimate = comparison.first_evaluation('mean@8')
  assert estimate is not None
  assert estimate.kind == 't over 3 seeds'


def test_refuses_two_runs_with_the_same_seed(make_run):
  runs = [make_run('a', iterations=10), make_run('b', iterations=10)]
  with pytest.raises(ValueError, match='one run for each configuration and s'):
    comparison_table(runs)
  with pytest.raises(ValueError, match='at least one run'):
    comparison_table([])


def test_names_differ_for_runs_with_different_settings(make_run):
  runs = [make_run('a', iterations=10), make_run('b', iterations=10)]
  edit_config(runs[1], coefficient=0.5)
  first, second = load_comparison(runs).groups
  assert first.name == 'countdown_kl_cov (entropy.coefficient=1.0)'
  assert second.name == 'countdown_kl_cov (entropy.coefficient=0.5)'


def test_runs_that_differ_in_the_middle_of_a_long_field_are_no_seeds(make_run):
  runs = [make_run(f'seed{s}', seed=s, iterations=10) for s in (1, 2)]
  for run, middle in zip(runs, 'xy', strict=True):
    content = json.loads((run / 'config.json').read_text())
    files = f'{"a" * 300}{middle}{"b" * 300}.jsonl'
    content['config']['data'] = {'train': files}
    (run / 'config.json').write_text(json.dumps(content))
  first, second = load_comparison(runs).groups
  assert first.name != second.name
  assert differing_fields(first, second).keys() == {'data.train'}


def test_ignored_fields_do_not_separate_seeds(make_run):
  runs = [make_run(f'seed{s}', seed=s, iterations=10) for s in (1, 2)]
  content = json.loads((runs[1] / 'config.json').read_text())
  content['config']['warm_start'] = {'from_run': 'elsewhere'}
  content['config']['logging'] = {'samples': 3}
  (runs[1] / 'config.json').write_text(json.dumps(content))
  groups = load_comparison(runs).groups
  assert [list(group.runs) for group in groups] == [[1, 2]]


def test_page_is_complete_and_works_offline(study, tmp_path):
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


def test_compares_unfinished_and_unevaluated_runs(make_run, tmp_path):
  runs = [
    make_run('a', name='a', iterations=40, finished_iterations=20),
    make_run('b', name='b', iterations=40, finished_iterations=0),
  ]
  text = '{"phase": "warm_start", "step": 1, "loss": 1.0}\n'
  (runs[1] / 'metrics.jsonl').write_text(text)
  page = write_comparison(runs, tmp_path / 'page.html').read_text()
  assert 'Unfinished: a with seed 0 and b with seed 0' in page
  assert '20 of 40 iterations' in page
  (runs[0] / 'metrics.jsonl').write_text('')
  write_comparison(runs, tmp_path / 'page.html')
  with pytest.raises(ValueError, match='entropy or accuracy'):
    comparison_svg(runs)


def test_warnings_of_the_runs_are_on_the_comparison(make_run, tmp_path):
  run, other = make_run('a', name='a'), make_run('b', name='b')
  lines = [json.dumps({'text': f'checkpoint {n} is damaged'}) for n in range(5)]
  (run / 'notices.jsonl').write_text('\n'.join(lines))
  page = write_comparison([run, other], tmp_path / 'page.html').read_text()
  for n in range(3):
    assert f'a: checkpoint {n} is damaged' in page
  assert 'checkpoint 3' not in page
  assert 'a: 2 more warnings are on its own page.' in page


def test_a_finished_run_without_evaluations_is_finished(make_run):
  run = make_run('a', name='a', iterations=3)
  file, config_file = run / 'metrics.jsonl', run / 'config.json'
  settings = json.loads(config_file.read_text())
  settings['config'] |= {
    'rollout': {'prompts_per_iteration': 8, 'responses_per_prompt': 4}
  }
  settings['config']['train']['sequences_per_update'] = 16
  config_file.write_text(json.dumps(settings))
  lines = [
    line for line in file.read_text().splitlines() if '"eval"' not in line
  ]
  file.write_text('\n'.join(lines))
  assert load_run(run).updates_per_iteration == 2
  assert (load_run(run).finished_iterations, load_run(run).finished) == (
    3,
    True,
  )
  # The last update is missing.
  file.write_text('\n'.join(lines[:-1]))
  assert (load_run(run).finished_iterations, load_run(run).finished) == (
    2,
    False,
  )


def without_samples(run):
  """Removes all accuracies but the greedy one from the evaluations of a run."""
  metrics = run / 'metrics.jsonl'
  lines = [
    {name: value for name, value in json.loads(line).items() if '@' not in name}
    for line in metrics.read_text().splitlines()
  ]
  metrics.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_runs_that_are_evaluated_greedily_are_compared_by_greedy_accuracy(
  study, tmp_path
):
  for run in study:
    without_samples(run)
  comparison = load_comparison(study)
  assert comparison.metrics == ('greedy', 'entropy')
  page = write_comparison(study, tmp_path / 'page.html').read_text()
  assert 'greedy against grpo' in page
  assert 'mean@8, %' not in page
  assert 'Held-out mean@8' not in page
  assert 'gain in greedy, points' in page
  table = comparison_table(study)
  assert table.startswith(
    '| configuration | greedy, % | entropy | Δ greedy | Δ entropy |\n'
  )
  assert '–' not in table.partition('\n\n')[0]
  assert 'Held-out greedy' in comparison_svg(study)


def test_the_main_accuracy_is_one_that_all_evaluated_runs_have(study, tmp_path):
  for run in study[3:]:
    without_samples(run)
  for runs in (study, study[::-1]):
    comparison = load_comparison(runs)
    assert comparison.main_accuracy == 'greedy'
    assert comparison.metrics == ('greedy', 'mean@8', 'pass@8', 'entropy')
    page = write_comparison(runs, tmp_path / 'page.html').read_text()
    assert 'greedy against' in page


def test_other_recipe_files_of_one_configuration_are_named(study, tmp_path):
  for run in study:
    (run / 'recipe').mkdir()
    (run / 'recipe' / 'countdown.py').write_text('low = 0.2')
  page = write_comparison(study, tmp_path / 'page.html').read_text()
  assert 'Other recipe files' not in page
  (study[1] / 'recipe' / 'countdown.py').write_text('low = 0.9')
  page = write_comparison(study, tmp_path / 'page.html').read_text()
  assert (
    'Other recipe files: the seeds 1 and 3 and those 2 of countdown_grpo, which may'
    ' have trained differently.'
  ) in page
  # Runs without recipe files are not compared.
  (study[1] / 'recipe' / 'countdown.py').unlink()
  page = write_comparison(study, tmp_path / 'page.html').read_text()
  assert 'Other recipe files' not in page


def test_a_page_replaces_no_other_file(study):
  run = study[0]
  metrics = run / 'metrics.jsonl'
  before = metrics.read_bytes()
  for write in (
    lambda: write_report(run, metrics),
    lambda: write_comparison(study, metrics),
  ):
    with pytest.raises(ValueError, match=r'new file or a page, got .*metrics'):
      write()
  assert metrics.read_bytes() == before
  other = run / 'page.txt'
  write_report(run, other)
  assert write_report(run, other).read_text().startswith('<!doctype html>')


def test_svg_has_both_panels(study):
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


def test_values_that_differ_where_they_are_cut_differ():
  pairs = [
    ([*range(9), 1], [*range(9), 2]),
    ({'a': ['x' * 50 + 'y']}, {'a': ['x' * 50 + 'z']}),
    ('x' * 300 + 'y' + 'x' * 300, 'x' * 300 + 'z' + 'x' * 300),
  ]
  for pair in pairs:
    first, second = (flatten_config({'field': value}) for value in pair)
    assert first != second
