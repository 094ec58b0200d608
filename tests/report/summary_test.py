# SPDX-License-Identifier: Apache-2.0
"""Tests of the numbers in a summary against independent computations."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from covrl.data import Problem, Suite
from covrl.evaluation.results import Evaluation, SuiteResult
from covrl.report import write_report
from covrl.report.inputs.run_data import load_run
from covrl.report.summary import (
  accuracy_gain,
  count_selected_tokens,
  describe_selected_tokens,
  entropy_change,
  first_and_last,
  summarize,
)
from covrl.run.directory import RunDirectory


def results(run, iteration):
  """Results by problem of the evaluation at an iteration."""
  path = run / 'evaluation' / f'iteration_{iteration:06d}.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()]


def problems(name, count):
  """Problems of an evaluation set."""
  return [
    Problem(prompt=f'{name} {n}?', reference='1', source='toy')
    for n in range(count)
  ]


def lines(run):
  """The lines of metrics.jsonl."""
  text = (run / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def rewrite(run, records):
  """Replaces metrics.jsonl."""
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (run / 'metrics.jsonl').write_text(text)


def test_updates_that_changed_nothing_are_reported_at_the_top(make_run):
  path = make_run(iterations=20)
  assert 'class="warning"' not in write_report(path).read_text()
  records = lines(path)
  updates = [record for record in records if record['phase'] == 'train']
  for record in updates[:3]:
    record |= {'skipped': 1.0, 'loss': None, 'gradient_norm': None}
  updates[5] |= {'tokens': 0.0, 'entropy': None, 'loss': None}
  for record in updates[6:8]:
    record |= {'gradient_norm': 0.0}
  updates[9] |= {'clamped': 1.0}
  for record in updates:
    record['critic/skipped'] = float(record in updates[:4])
  rewrite(path, records)
  page = write_report(path).read_text()
  total = len(updates)
  skipped_at = page.index(
    f'3 of {total} updates were skipped, because gradients'
  )
  assert f'4 of {total} updates of the critic were skipped, because' in page
  without_tokens_at = page.index(
    f'1 of {total} updates had no token to train on'
  )
  without_gradient_at = page.index(f'2 of {total} updates had a gradient of 0')
  clamped_at = page.index(f'1 of {total} updates selected tokens by a fraction')
  headline_at = page.index('class="headline"')
  assert skipped_at < without_tokens_at < without_gradient_at < clamped_at
  assert clamped_at < headline_at


def test_warnings_of_the_run_are_at_the_top(make_run):
  path = make_run()
  directory = RunDirectory(path)
  directory.add_notice('the checkpoint <b>7</b> is damaged')
  with (path / 'notices.jsonl').open('a') as stream:
    stream.write('{"text": 3}\n{"te')
  page = write_report(path).read_text()
  position = page.index('the checkpoint &lt;b&gt;7&lt;/b&gt; is damaged')
  assert position < page.index('class="headline"')
  assert '1 unreadable line of notices.jsonl was skipped.' in page


def test_older_warnings_of_the_run_are_counted(make_run):
  path = make_run()
  texts = [f'warning number {index} of the run' for index in range(23)]
  records = [json.dumps({'text': text}) + '\n' for text in texts]
  (path / 'notices.jsonl').write_text(''.join(records[:20]))
  page = write_report(path).read_text()
  assert texts[0] in page
  assert 'left out here' not in page
  (path / 'notices.jsonl').write_text(''.join(records))
  page = write_report(path).read_text()
  assert 'left out here: 3; notices.jsonl in the run directory has all' in page
  assert [text in page for text in texts] == 3 * [False] + 20 * [True]


def test_gain_is_paired_by_problem(make_run):
  path = make_run(problems=120)
  before = {p['prompt']: p['correct'] for p in results(path, 0)}
  after = {p['prompt']: p['correct'] for p in results(path, 60)}
  differences = np.array(
    [sum(after[name]) / 8 - sum(before[name]) / 8 for name in before]
  )
  estimate = accuracy_gain(load_run(path))
  assert estimate is not None
  assert estimate.value == pytest.approx(differences.mean(), abs=1e-12)
  # The bootstrap of a mean of 120 bounded values is close to normal.
  half_width = 1.96 * differences.std() / math.sqrt(120)
  assert estimate.low == pytest.approx(
    differences.mean() - half_width, abs=0.005
  )
  assert estimate.high == pytest.approx(
    differences.mean() + half_width, abs=0.005
  )


def test_the_gain_on_one_problem_has_no_interval(make_run):
  run = load_run(make_run(problems=1))
  estimate = accuracy_gain(run)
  assert estimate is not None
  assert (estimate.low, estimate.high, estimate.sign) == (None, None, 0)
  assert 'One problem, no interval, ' in summarize(run).headline


def test_gain_does_not_depend_on_the_order_of_problems(make_run):
  path = make_run(problems=50)
  first = accuracy_gain(load_run(path))
  name = path / 'evaluation' / 'iteration_000060.jsonl'
  name.write_text('\n'.join(reversed(name.read_text().splitlines())))
  assert accuracy_gain(load_run(path)) == first


@pytest.mark.parametrize('metric', ['greedy', 'pass@8'])
def test_gains_of_other_accuracies_are_paired_by_problem(make_run, metric):
  path = make_run(problems=40)
  score = {
    'greedy': lambda problem: problem['greedy'],
    'pass@8': lambda problem: int(any(problem['correct'])),
  }[metric]
  means = [np.mean([score(p) for p in results(path, i)]) for i in (0, 60)]
  estimate = accuracy_gain(load_run(path), metric)
  assert estimate is not None
  assert estimate.value == pytest.approx(means[1] - means[0], abs=1e-12)
  assert 'over 40 problems' in estimate.kind


def test_the_gain_is_of_the_sets_that_have_the_accuracy(make_run):
  """A set with 32 samples has no mean@8, and its pass@8 is the unbiased estimate."""
  rng = np.random.default_rng(0)
  path = make_run(problems=40)
  records = lines(path)
  for iteration, accuracy in ((0, 0.3), (60, 0.6)):
    evaluation = Evaluation(
      results=tuple(
        SuiteResult(
          suite=Suite(name=name, problems=problems(name, count), samples=k),
          greedy=rng.random(count) < accuracy,
          correct=rng.random((count, k)) < rate,
          responses=[[''] * (k + 1)] * count,
        )
        for name, count, k, rate in (
          ('', 100, 8, accuracy),
          ('aime24', 30, 32, 0.1),
        )
      ),
      entropy=0.5,
    )
    (record,) = (
      record
      for record in records
      if record['phase'] == 'eval' and record['iteration'] == iteration
    )
    record |= evaluation.summary()
    (path / 'evaluation' / f'iteration_{iteration:06d}.jsonl').write_text(
      ''.join(f'{json.dumps(row)}\n' for row in evaluation.lines())
    )
  rewrite(path, records)
  run = load_run(path)
  for metric in ('mean@8', 'pass@8', 'greedy'):
    ends = first_and_last(run, metric)
    estimate = accuracy_gain(run, metric)
    assert ends is not None
    assert estimate is not None
    assert estimate.value == pytest.approx(ends[1] - ends[0], abs=1e-12)


def test_without_problems_the_gain_is_unpaired(make_run):
  path = make_run(keep_problems=False)
  evals = [line for line in lines(path) if line['phase'] == 'eval']
  first, last = evals[0], evals[-1]
  estimate = accuracy_gain(load_run(path))
  change = last['mean@8'] - first['mean@8']
  half_width = 1.959964 * math.sqrt(
    first['mean@8_stderr'] ** 2 + last['mean@8_stderr'] ** 2
  )
  assert estimate is not None
  assert estimate.value == pytest.approx(change, abs=1e-12)
  assert estimate.high == pytest.approx(change + half_width, abs=1e-9)
  assert 'unpaired' in estimate.kind


def test_without_errors_there_is_no_interval(make_run):
  path = make_run(keep_problems=False)
  rewrite(
    path,
    [
      {name: value for name, value in line.items() if 'stderr' not in name}
      for line in lines(path)
    ],
  )
  summary = summarize(load_run(path))
  assert '<b class="c0">' in summary.headline
  assert 'No interval' in summary.headline


def test_evaluations_before_the_end_of_the_warm_start_are_ignored(make_run):
  path = make_run()
  expected = accuracy_gain(load_run(path))
  early = {'phase': 'eval', 'step': -1, 'iteration': 0, 'mean@8': 0.0}
  rewrite(path, [early, *lines(path)])
  assert accuracy_gain(load_run(path)) == expected


def test_page_states_the_gain_and_its_interval(make_run):
  path = make_run(problems=60)
  estimate = accuracy_gain(load_run(path))
  content = write_report(path).read_text().replace('\u2212', '-')
  gain = re.search(r'<b class="c1">([+-][\d.]+) points</b>', content)
  interval = re.search(
    r'interval ([+-][\d.]+) to ([+-][\d.]+), paired', content
  )
  assert estimate is not None
  assert gain is not None
  assert interval is not None
  assert float(gain[1]) == round(100 * estimate.value, 1)
  assert float(interval[1]) == round(100 * (estimate.low or 0), 1)
  assert float(interval[2]) == round(100 * (estimate.high or 0), 1)


@pytest.mark.parametrize(
  ('gain', 'words'),
  [
    (0.13, '<b class="c1">+'),
    (0.0, '<b class="c0">'),
    (-0.13, '<b class="c2">\u2212'),
  ],
)
def test_color_depends_on_the_interval(make_run, gain, words):
  assert words in summarize(load_run(make_run(gain=gain, seed=3))).headline


def test_entropy_is_compared_with_the_first_evaluation(make_run):
  path = make_run(entropy_ratio=0.5)
  evals = [line for line in lines(path) if line['phase'] == 'eval']
  start, end = evals[0]['entropy'], evals[-1]['entropy']
  run = load_run(path)
  assert entropy_change(run) == (start, end)
  text = next(f.text for f in summarize(run).findings if f.term == 'Entropy')
  assert f'{100 * end / start:.0f}\u202f%' in text


def test_entropy_of_training_is_used_without_evaluations(make_run):
  path = make_run()
  rewrite(path, [line for line in lines(path) if line['phase'] == 'train'])
  train = lines(path)
  run = load_run(path)
  first_and_last = [
    np.mean([line['entropy'] for line in train if line['iteration'] == i])
    for i in (0, 59)
  ]
  assert entropy_change(run) == pytest.approx(first_and_last)


def test_selected_tokens_are_counted_over_the_run(make_run):
  path = make_run()
  train = [line for line in lines(path) if line['phase'] == 'train']
  counts = count_selected_tokens(load_run(path))
  for name, count in counts.items():
    assert count == sum(line[f'quadrant/{name}'] for line in train)
  share = counts['negative_rare'] / sum(counts.values())
  assert f'rare tokens in wrong answers ({share:.0%}'.rstrip('%') in (
    describe_selected_tokens(counts)
  )


@pytest.mark.parametrize(
  ('counts', 'words'),
  [
    ((0, 5, 0, 0), 'rare tokens in wrong answers (100 %)'),
    (
      (50, 45, 5, 0),
      'likely tokens in right answers (50 %), rare tokens in wrong answers '
      '(45 %), rare tokens in right answers (5 %)',
    ),
    ((25, 25, 25, 25), 'likely tokens in right answers (25 %), '),
  ],
)
def test_kinds_of_selected_tokens_are_listed_by_frequency(counts, words):
  names = ('positive_likely', 'negative_rare', 'positive_rare')
  names = (*names, 'negative_likely')
  counts_by_kind: dict[str, float] = dict(zip(names, counts, strict=True))
  assert describe_selected_tokens(counts_by_kind).startswith(words)


def test_run_without_control_has_no_selected_tokens(make_run):
  findings = summarize(load_run(make_run(method='none'))).findings
  texts = {finding.term: finding.text for finding in findings}
  assert texts['Tokens selected'] == '0 tokens.'
  assert 'Effect of control' not in texts


def test_the_effect_of_control_is_a_share_of_the_gradient_signal(make_run):
  path = make_run()
  train = [line for line in lines(path) if line['phase'] == 'train']
  penalty_share = np.mean([line['penalty_share'] for line in train])
  findings = summarize(load_run(path)).findings
  text = next(f.text for f in findings if f.term == 'Effect of control')
  assert f'{100 * penalty_share:.1f}\u202f%' in text


def test_times_of_updates_are_added_and_those_of_rollouts_used_once(make_run):
  run = load_run(make_run(iterations=20))
  train = run.train.records
  first_updates = [line for line in train if line['step'] % 2 == 1]
  sampling_seconds = np.mean([line['time/sample'] for line in first_updates])
  update_seconds = sum(line['time/update'] for line in train) / 20
  assert run.train.seconds_per_iteration('time/sample') == pytest.approx(
    sampling_seconds
  )
  assert run.train.seconds_per_iteration('time/update') == pytest.approx(
    update_seconds
  )
  assert run.train.seconds_per_iteration('time/absent') is None


def test_number_of_samples_is_read_from_the_metrics(make_run):
  path = make_run(keep_problems=False)
  text = (path / 'metrics.jsonl').read_text().replace('@8', '@4')
  (path / 'metrics.jsonl').write_text(text)
  run = load_run(path)
  assert run.accuracies == ('greedy', 'mean@4', 'pass@4')
  assert summarize(run).headline.startswith('mean@4: ')
  assert 'mean@4' in write_report(path).read_text()


def test_runs_without_samples_have_greedy_accuracy(make_run):
  path = make_run(problems=120)
  rewrite(
    path,
    [
      {name: value for name, value in record.items() if '@' not in name}
      for record in lines(path)
    ],
  )
  run = load_run(path)
  assert run.accuracies == ('greedy',)
  headline = summarize(run).headline
  assert headline.startswith('greedy: ')
  assert 'over 120 problems' in headline
  assert 'Accuracy' not in [f.term for f in summarize(run).findings]
  page = write_report(path).read_text()
  assert 'No evaluation yet' not in page
  assert 'class="headline">greedy: ' in page
  table = page.partition('<h2>Evaluations</h2>')[2].partition('</table>')[0]
  titles = re.findall(r'<th scope="col">([^<]*)<', table)
  assert titles == ['iteration', 'greedy, %', 'entropy, nats']
  assert '–' not in table


@pytest.mark.parametrize(
  ('settings', 'path', 'name'),
  [
    ({'name': 'kl'}, 'a', 'kl'),
    ({'source': 'configs/kl_cov.py'}, 'a', 'kl_cov'),
    ({'source': 'x = 1\n# a.py'}, 'kl_beta0_seed3', 'kl_beta0'),
    ({}, 'kl_cov/2', 'kl_cov'),
    ({}, 'kl_cov/seed2', 'kl_cov'),
    ({}, 'kl_beta0', 'kl_beta0'),
  ],
)
def test_run_name_is_that_of_its_configuration(tmp_path, settings, path, name):
  (tmp_path / path).mkdir(parents=True)
  (tmp_path / path / 'config.json').write_text(json.dumps(settings))
  assert load_run(tmp_path / path).name == name
