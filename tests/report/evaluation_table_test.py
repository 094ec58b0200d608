# SPDX-License-Identifier: Apache-2.0
"""Tests of the table of evaluation sets against independent computations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from report.suite_results import results, table_of

from covrl.report import write_comparison, write_report
from covrl.report.evaluation_table import evaluation_table
from covrl.report.inputs.problem_results import problem_score
from covrl.report.inputs.published_results import PUBLISHED_ROWS
from covrl.report.inputs.run_data import load_run


def test_unscored_responses_are_left_out(make_results):
  lines = results('math500', [1.0, 0.5, 0.0], samples=4)
  lines[0]['correct'][1] = lines[1]['correct'][0] = None
  lines[2]['correct'] = [None] * 4
  lines[2]['greedy'] = None
  run = load_run(make_results('a', {'math500': lines}))
  assert not run.unreadable.sentences()
  scores = [
    [problem_score(record, metric) for (record,) in run.latest_results.values()]
    for metric in ('greedy', 'mean@4', 'pass@4')
  ]
  assert scores == [[1.0, 1.0, None], [1.0, 1 / 3, None], [None, None, None]]


def test_accuracies_are_of_the_problems_that_have_as_many_samples():
  problem = {'greedy': 1.0, 'correct': [1.0, 0.0, 0.0, None, 0.0, 0.0]}
  expected = {
    'mean@6': 0.2,
    'mean@4/6': 0.2,
    'mean@4': None,
    # 1 − C(4, 2) / C(5, 2), of the five with a score.
    'pass@2': 0.4,
    'pass@4': 0.8,
    'pass@6': None,
    'pass@3': None,
    'pass@8': None,
  }
  assert {n: problem_score(problem, n) for n in expected} == pytest.approx(
    expected
  )
  edited = problem | {'correct': [0.5, 0.0]}
  assert problem_score(edited, 'pass@2') is None


@pytest.mark.parametrize(
  ('iteration', 'greedy'), [(4, 1.0), (8, 0.0), (12, 0.0)]
)
def test_the_latest_results_of_held_out_problems_are_read(
  make_results, iteration, greedy
):
  path = make_results(
    'a',
    {
      'iteration_000004': results('', [0.0]),
      'iteration_000008': results('', [1.0]),
      'held_out': results('', [0.0]),
    },
  )
  folder = path / 'evaluation'
  summary = {'held_out': {'iteration': iteration}}
  (folder / 'summary.json').write_text(json.dumps(summary))
  (only,) = load_run(path).latest_results.values()
  assert [result['greedy'] for result in only] == [greedy]


def half_width(values):
  """Half width of the 95 % interval of a mean."""
  return 1.96 * np.std(values) / np.sqrt(len(values))


def bounds(cell):
  """Value and ends of the interval in a cell."""
  value, _, rest = cell.partition(' (')
  low, high = rest.rstrip(')').split(' to ')
  return [
    float(text.replace('−', '-').replace('+', ''))
    for text in (value, low, high)
  ]


def test_cells_are_accuracies_and_paired_differences_with_intervals(
  make_results,
):
  rng = np.random.default_rng(0)
  before = rng.integers(0, 9, 200) / 8
  after = np.clip(before + rng.integers(-1, 3, 200) / 8, 0, 1)
  table = table_of(
    make_results('before', {'amc': results('amc', before, samples=8)}),
    make_results('after', {'amc': results('amc', after, samples=8)}),
  )
  assert table.titles == ['problems', 'metric', 'before', 'after', 'Δ after']
  ((name, cells),) = table.rows
  assert (name, cells[:2]) == ('amc', ['200', 'mean@8'])
  for cell, values in (
    (cells[2], before),
    (cells[3], after),
    (cells[4], after - before),
  ):
    value, low, high = bounds(cell)
    assert value == pytest.approx(100 * values.mean(), abs=0.06)
    expected_half_width = 100 * half_width(values)
    assert low == pytest.approx(value - expected_half_width, abs=0.6)
    assert high == pytest.approx(value + expected_half_width, abs=0.6)
  # The interval of a paired difference is narrow.
  assert bounds(cells[4])[2] - bounds(cells[4])[1] < (
    bounds(cells[2])[2] - bounds(cells[2])[1]
  )
  assert not table.notes


def test_one_problem_has_no_interval(make_results):
  table = table_of(
    make_results('a', {'amc': results('amc', [1])}),
    make_results('b', {'amc': results('amc', [0])}),
  )
  ((_, cells),) = table.rows
  assert cells[2:] == ['100.0 (–)', '0.0 (–)', '−100.0 (–)']


def test_mean_weights_sets_equally(make_results):
  sets = {
    'math500': results('math500', [1, 1, 1, 0, 0, 0, 0, 0]),
    'amc': results('amc', [1, 0], samples=4),
  }
  table = table_of(make_results('a', sets))
  rows = dict(table.rows)
  assert rows['math500'][1] == 'greedy'
  assert bounds(rows['math500'][2])[0] == 37.5
  ((name, cells),) = table.means
  assert name == 'plain mean over sets'
  assert bounds(cells[2])[0] == pytest.approx((37.5 + 50) / 2, abs=0.06)


def test_pairing_does_not_depend_on_the_order_of_problems(make_results):
  scores = [1, 0, 1, 0, 1]
  lines = results('amc', scores)
  table = table_of(
    make_results('a', {'amc': lines}),
    make_results('b', {'amc': lines[::-1]}),
  )
  assert table.rows[0][1][4] == '+0.0 (0.0 to 0.0)'


def test_unmatched_problems_are_noted(make_results):
  table = table_of(
    make_results('a', {'amc': results('amc', [1, 0, 1])}),
    make_results('b', {'amc': results('amc', [1, 0, 1, 1], first=1)}),
  )
  assert table.notes == [
    '3 problems of amc were answered by only one of b and a; differences leave '
    'them out.'
  ]
  table = table_of(
    make_results('c', {'amc': results('amc', [1])}),
    make_results('d', {'amc': results('amc', [1], first=1)}),
  )
  assert table.rows[0][1][4] == '–'


def test_uses_sets_and_metrics_that_all_runs_have(make_results):
  table = table_of(
    make_results(
      'a',
      {
        'amc': results('amc', [1, 0], samples=4),
        'gsm8k': results('gsm8k', [1]),
      },
    ),
    make_results('b', {'amc': results('amc', [1, 0])}),
  )
  ((name, cells),) = table.rows
  assert (name, cells[1]) == ('amc', 'greedy')
  assert table.notes == [
    'gsm8k is left out, of which only a of the 2 runs has results.'
  ]


def test_sets_that_are_left_out_are_named_with_the_runs_that_have_them(
  make_results, tmp_path
):
  amc, gsm8k = results('amc', [1, 0]), results('gsm8k', [1])
  unscored = [line | {'greedy': None} for line in gsm8k]
  paths = [
    make_results('a', {'amc': amc, 'gsm8k': gsm8k}, recipe='one'),
    make_results('b', {'amc': amc, 'gsm8k': unscored}, recipe='two'),
    make_results('c', {'minerva': results('minerva', [1])}),
  ]
  page = write_comparison(paths[:2], tmp_path / 'page.html').read_text()
  assert 'gsm8k is left out, of which two has no response with a score.' in page
  page = write_comparison(paths, tmp_path / 'page.html').read_text()
  assert 'Accuracy by evaluation set' in page
  for sentence in (
    'amc is left out, of which only a and b of the 3 runs have results.',
    'minerva is left out, of which only c of the 3 runs has results.',
  ):
    assert sentence in page


def test_seeds_are_averaged_problem_by_problem(make_results):
  runs = [
    load_run(make_results(f'seed{n}', {'amc': results('amc', scores)}))
    for n, scores in enumerate(([1, 0], [1, 1]))
  ]
  table = evaluation_table([('both', runs)])
  assert table is not None
  assert bounds(table.rows[0][1][2])[0] == 75.0
  assert table.rows[0][1][0] == '2'


def test_seeds_with_other_problems_are_noted(make_results):
  runs = [
    load_run(make_results(f'seed{n}', {'amc': results('amc', scores)}))
    for n, scores in enumerate(([1, 0, 1], [1]))
  ]
  table = evaluation_table([('both', runs)])
  assert table is not None
  assert table.notes == [
    '2 of the 3 problems of amc have a score in only some of the runs of both, which'
    ' is their mean over these runs.'
  ]


def test_a_problem_without_a_score_in_one_seed_has_that_of_the_others(
  make_results,
):
  runs = []
  for seed, first in enumerate((1, None)):
    lines = results('amc', [1, 0, 1])
    lines[0]['greedy'] = first
    runs.append(load_run(make_results(f'seed{seed}', {'amc': lines})))
  table = evaluation_table([('both', runs)])
  assert table is not None
  assert table.rows[0][1][0] == '3'
  assert table.notes == [
    '1 of the 3 problems of amc have a score in only some of the runs of both, which'
    ' is their mean over these runs.'
  ]


def test_summaries_that_are_not_settings_are_left_out(make_results):
  run = make_results('a', {'amc': results('amc', [1, 0], samples=4)})
  file = run / 'evaluation' / 'summary.json'
  for content in ('{"amc": 3}', '{"amc": {"iteration": "x"}}', '[]', '{'):
    file.write_text(content)
    assert table_of(run).notes == []


def test_published_results_are_shown(make_results):
  name = 'qwen2_5_7b_kl_cov'
  sets = {
    suite: results(suite, [1, 0]) for suite in PUBLISHED_ROWS[name].accuracies
  }
  table = table_of(make_results('run', sets, recipe=name))
  assert table.titles[-1] == 'paper: KL-Cov, 7B'
  rows = dict(table.rows)
  assert rows['aime24'][-1] == '22.6'
  assert rows['minerva'][-1] == '38.2'
  means = dict(table.means)
  assert means['plain mean over sets'][-1] == '41.1'
  assert means['average as printed'][-1] == '40.6'
  # With fewer sets, the plain mean is over these.
  few_sets = {suite: sets[suite] for suite in ('aime24', 'amc')}
  table = table_of(make_results('few', few_sets, recipe=name))
  assert dict(table.means)['plain mean over sets'][-1] == '42.0'


@pytest.mark.parametrize(
  ('name', 'mean'),
  [
    ('qwen2_5_7b_grpo', 39.1),
    ('qwen2_5_7b_clip_higher', 39.8),
    ('qwen2_5_7b_clip_cov', 41.7),
    ('qwen2_5_7b_kl_cov', 41.1),
    ('qwen2_5_32b_grpo', 45.2),
    ('qwen2_5_32b_clip_higher', 46.5),
    ('qwen2_5_32b_clip_cov', 50.6),
    ('qwen2_5_32b_kl_cov', 51.6),
  ],
)
def test_the_average_in_the_paper_is_not_the_mean_of_its_sets(name, mean):
  row = PUBLISHED_ROWS[name]
  assert len(row.accuracies) == 7
  unweighted_mean = row.mean(row.accuracies)
  assert unweighted_mean is not None
  assert unweighted_mean == pytest.approx(mean, abs=0.051)
  assert row.printed_average != round(unweighted_mean, 1)


def test_pages_have_the_table(make_results, tmp_path):
  paths = [
    make_results('one', {'amc': results('amc', [1, 0, 1])}),
    make_results('two', {'amc': results('amc', [1, 1, 1])}),
  ]
  page = write_report(paths[0]).read_text()
  assert 'Evaluation sets' in page
  page = write_comparison(paths, tmp_path / 'c.html').read_text()
  assert 'Accuracy by evaluation set' in page
  assert '+33.3' in page


def test_differences_on_held_out_problems_are_paired(make_run, tmp_path):
  paths = [
    make_run(name, name=name, gain=gain, problems=60)
    for name, gain in (('grpo', 0.0), ('kl_cov', 0.2))
  ]
  page = write_comparison(paths, tmp_path / 'c.html').read_text()
  assert 'Accuracy by evaluation set' in page
  assert 'held out' in page


def test_no_results_give_no_table(tmp_path):
  (tmp_path / 'metrics.jsonl').touch()
  assert evaluation_table([('a', [load_run(tmp_path)])]) is None
