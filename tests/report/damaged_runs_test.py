# SPDX-License-Identifier: Apache-2.0
"""Reports of damaged runs: unreadable parts are skipped and counted, long ones cut."""

import json
import os
import random
import re
import shutil

import pytest
from report.conftest import write_run
from report.run_page_test import read

from covrl.cli import main
from covrl.report import write_comparison, write_report
from covrl.report.inputs.metric_ranges import is_possible
from covrl.report.inputs.run_data import load_run

ODD_VALUES = [
  *(None, True, 'x', '9' * 50, [], [1], {}, {'a': {'b': 1}}, -1, 0, -5.5),
  *(1e308, -1e308, 1e-320, 10**400, float('nan'), float('inf'), 2**60),
  *('\ud800', '\u202e\x00', '<b>&'),
]
ODD_NAMES = ['mean@', 'mean@²', 'covariance_top/x', 'time/' + 'z' * 300]


def with_odd_values(value, generator, share):
  """Replaces some values and names of a JSON value."""
  if generator.random() < share:
    return generator.choice(ODD_VALUES)
  if isinstance(value, dict):
    return {
      generator.choice(ODD_NAMES)
      if generator.random() < share / 3
      else name: with_odd_values(item, generator, share)
      for name, item in value.items()
    }
  if isinstance(value, list):
    return [with_odd_values(item, generator, share / 3) for item in value]
  return value


def with_damaged_bytes(data, generator):
  """Cuts, overwrites or inserts bytes."""
  position = generator.randrange(len(data) + 1)
  noise = generator.choice([b'\n', b'[' * 2000, generator.randbytes(8)])
  return generator.choice(
    [
      data[:position],
      data[:position] + noise + data[position:],
      data[:position] + noise + data[position + 1 :],
    ]
  )


@pytest.fixture(scope='module')
def intact_run(tmp_path_factory):
  path = tmp_path_factory.mktemp('whole') / 'run'
  return write_run(path, iterations=20, problems=20)


@pytest.fixture
def run(intact_run, tmp_path):
  return shutil.copytree(intact_run, tmp_path / 'run')


def test_any_content_gives_a_page_of_limited_size(intact_run, tmp_path):
  intact = write_run(tmp_path / 'other', seed=3, iterations=10, problems=20)
  for seed in range(25):
    generator = random.Random(seed)
    run = shutil.copytree(intact_run, tmp_path / f'run_{seed}')
    for file in [*run.glob('*.json*'), *run.glob('*/*')]:
      if generator.random() < 0.5:
        share = generator.choice([0.01, 0.1, 0.3])
        lines = file.read_text().splitlines()
        values = [
          with_odd_values(json.loads(t), generator, share) for t in lines
        ]
        file.write_text('\n'.join(map(json.dumps, values)))
      if generator.random() < 0.3:
        file.write_bytes(with_damaged_bytes(file.read_bytes(), generator))
      if generator.random() < 0.05:
        file.unlink()
        file.mkdir()
    assert len(write_report(run).read_bytes()) < 400_000
    page = write_comparison([intact, run], tmp_path / 'comparison.html')
    assert len(page.read_bytes()) < 400_000


@pytest.mark.parametrize(
  ('line', 'sentence'),
  [
    (b'{"phase": "train", "reward": "\xff"}', '1 unreadable line of'),
    (b'[' * 100_000, '1 unreadable line of'),
    (b'{"phase": "train", "step": 1' + b'0' * 5000 + b'}', '1 unreadable line'),
    (b'{"phase": ["train"]}', '1 unreadable step or phase of'),
    (b'{"phase": "train", "iteration": -1}', '1 unreadable step or phase of'),
    (b'{"phase": "train", "step": {}}', '1 unreadable step or phase of'),
    (b'{"phase": "train", "a": "x", "b": [1]}', '2 unreadable numbers of'),
    (b'{"phase": "train", "a": 1' + b'0' * 400 + b'}', '1 unreadable number'),
    (b'{"phase": "train", "a": 1e999, "b": null}', '1 unreadable number of'),
  ],
)
def test_unreadable_parts_of_metrics_are_counted(run, line, sentence):
  file = run / 'metrics.jsonl'
  file.write_bytes(line + b'\n' + file.read_bytes())
  text = read(write_report(run)).text
  assert f'{sentence}' in text
  assert 'of metrics.jsonl w' in text
  page = write_comparison([run], run / 'comparison.html')
  assert f'run: {sentence}' in read(page).text


def test_unreadable_samples_results_and_files_are_counted(run):
  samples = run / 'rollouts' / 'iteration_000010.json'
  content = json.loads(samples.read_text())
  content['samples'] += [3, {}, {'tokens': 'abc'}]
  samples.write_text(json.dumps(content))
  results = run / 'evaluation' / 'iteration_000020.jsonl'
  with results.open('ab') as file:
    file.write(b'{"greedy": "yes"}\n{"greedy": 1, "correct": 3}\n\xff\n')
  (run / 'config.json').write_text('{"config": ')
  (run / 'rollouts' / 'iteration_000000.json').unlink()
  (run / 'rollouts' / 'iteration_000000.json').mkdir()
  (run / 'notices.jsonl').unlink(missing_ok=True)
  os.mkfifo(run / 'notices.jsonl')
  text = read(write_report(run)).text
  for sentence in (
    '3 unreadable responses of rollouts/iteration_000010.json were skipped.',
    '2 unreadable results of evaluation/iteration_000020.jsonl were skipped.',
    '1 unreadable line of evaluation/iteration_000020.jsonl was skipped.',
    'config.json is unreadable and was skipped.',
    'rollouts/iteration_000000.json is unreadable and was skipped.',
    'notices.jsonl is unreadable and was skipped.',
  ):
    assert sentence in text


def test_long_responses_and_prompts_are_cut_with_a_note(run):
  file = run / 'rollouts' / 'iteration_000010.json'
  content = json.loads(file.read_text())
  first, second = content['samples'][:2]
  first['tokens'] = ['ab '] * 3_000_000
  second['tokens'], second['prompt'] = ['x' * 10_000_000], 'y' * 10_000_000
  content['samples'] = [first, second]
  file.write_text(json.dumps(content))
  config = json.loads((run / 'config.json').read_text())
  config |= {'source': '#' * 10_000_000 + '\n', 'name': 'n' * 10_000_000}
  (run / 'config.json').write_text(json.dumps(config))
  page = write_report(run)
  assert len(page.read_bytes()) < 1_000_000
  text = read(page).text
  assert '… 2,999,500 more tokens' in text
  assert '9,999,880 characters cut' in text
  assert '9,999,400 characters cut' in text
  page = write_comparison([run], run / 'comparison.html')
  assert len(page.read_bytes()) < 400_000


def test_long_table_of_evaluations_is_cut_with_a_note(run):
  lines = [
    {'phase': 'eval', 'step': n, 'iteration': n, 'mean@8': 0.5}
    for n in range(1000)
  ]
  (run / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  page = read(write_report(run))
  assert '800 more' in page.text
  assert page.count('tr') < 300


def test_huge_numbers_have_powers_of_ten(run):
  lines = [
    {'phase': 'train', 'step': n, 'iteration': n, 'reward': (-1) ** n * 1e99}
    | dict.fromkeys(('seconds', 'time/a', 'selected', 'entropy'), 1e99)
    for n in range(20)
  ]
  (run / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  text = read(write_report(run)).text
  assert '10⁹⁹' in text or '10¹⁰⁰' in text
  assert '000,000,000,000,000' not in text


def test_few_iterations_can_be_compared(make_run, tmp_path):
  runs = [make_run(str(seed), seed=seed, iterations=3) for seed in range(2)]
  assert 'Reward' in read(write_comparison(runs, tmp_path / 'c.html')).text


@pytest.mark.parametrize(
  ('files', 'reason'),
  [
    ({}, 'which holds none of the files of a run'),
    ({'notes.txt': 'x'}, 'which holds none of the files of a run'),
    (
      {'config.json': '{"model_type": "qwen2"}', 'model.safetensors': ''},
      'which holds none of the files of a run',
    ),
    (None, 'which does not exist'),
    ('a file', 'which is a file'),
  ],
)
def test_directory_that_is_not_of_a_run_is_refused(
  tmp_path, capsys, files, reason, intact_run
):
  path = tmp_path / 'other'
  if isinstance(files, str):
    path.write_text(files)
  elif files is not None:
    path.mkdir()
    for name, text in files.items():
      (path / name).write_text(text)
  before = sorted(tmp_path.rglob('*'))
  for arguments in (
    [path],
    [intact_run, path, f'--output={tmp_path / "c.html"}'],
  ):
    with pytest.raises(SystemExit) as ended:
      main(['report', *map(str, arguments)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
      f'covrl: DIRECTORY must be a run directory, got {str(path)!r}, {reason}\n'
    )
  assert sorted(tmp_path.rglob('*')) == before


def test_output_of_one_run_is_the_named_file(run, tmp_path, capsys):
  file = tmp_path / 'page.html'
  main(['report', str(run), f'--output={file}'])
  assert capsys.readouterr().out == f'{file}\n'
  assert 'Sampled responses' in read(file).text
  assert not (run / 'report.html').exists()


def test_metrics_of_two_runs_in_one_file_are_noticed(run):
  file = run / 'metrics.jsonl'
  lines = file.read_text().splitlines(keepends=True)
  file.write_text(''.join([*lines, *lines[::-1]]))
  sentences = load_run(run).unreadable.sentences()
  assert sentences == [
    f'{len(lines):,} lines of metrics.jsonl were skipped, as later ones have the'
    ' same step: it may hold the metrics of several runs.'
  ]


@pytest.mark.parametrize(
  ('kept', 'sentence'),
  [
    (slice(-40, None), r'[\d,]+ updates were not found in metrics\.jsonl'),
    (slice(None, -40), None),
    (slice(None), None),
  ],
)
def test_updates_without_a_line_are_counted(run, kept, sentence):
  file = run / 'metrics.jsonl'
  lines = file.read_text().splitlines(keepends=True)
  file.write_text(''.join(lines[kept]))
  sentences = load_run(run).unreadable.sentences()
  if sentence is None:
    assert sentences == []
  else:
    (text,) = sentences
    assert re.match(sentence, text)
    assert text in read(write_report(run)).text


@pytest.mark.parametrize('iteration', [2**53, 2**31, 1.5])
def test_impossible_iterations_are_skipped(run, iteration):
  file = run / 'metrics.jsonl'
  lines = list(map(json.loads, file.read_text().splitlines()))
  for line in lines[1::2]:
    line['iteration'] = iteration
  file.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
  write_report(run)
  text, missing = load_run(run).unreadable.sentences()
  count = len(lines[1::2])
  assert text == (
    f'{count} unreadable step or phases of metrics.jsonl were skipped.'
  )
  assert 'were not found in metrics.jsonl' in missing


@pytest.mark.parametrize(
  ('phase', 'name', 'value'),
  [
    ('eval', 'greedy', 1.7),
    ('eval', 'mean@8', -0.2),
    ('eval', 'aime24/pass@8', 100.0),
    ('eval', 'mean@8_stderr', -0.1),
    ('eval', 'entropy', -1.0),
    ('train', 'entropy', 1e99),
    ('train', 'tokens', -3),
    ('train', 'selected_fraction', 7.0),
    ('train', 'quadrant/positive_likely', -40),
    ('train', 'time/update', -5.0),
    ('train', 'truncated_fraction', 3.0),
    ('train', 'skipped', -1.0),
    ('train', 'equal_reward_groups', 2.0),
    ('train', 'gradient_norm', -1e-3),
  ],
)
def test_impossible_metrics_are_skipped(run, phase, name, value):
  file = run / 'metrics.jsonl'
  lines = list(map(json.loads, file.read_text().splitlines()))
  count = sum(line['phase'] == phase for line in lines)
  for line in lines:
    if line['phase'] == phase:
      line[name] = value
  file.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
  page = read(write_report(run)).text
  loaded = load_run(run)
  (text,) = loaded.unreadable.sentences()
  assert text.startswith(f'{count} impossible numbers of metrics.jsonl were')
  assert text in page
  metrics = loaded.evals if phase == 'eval' else loaded.train
  assert not metrics.has(name)
  assert metrics.value_at(0, name) is None


def test_values_within_rounding_errors_are_possible():
  assert is_possible('entropy', -1e-6)
  assert is_possible('mean@8', 1 + 1e-7)
  assert is_possible('reward', -1e9)


def test_results_outside_0_and_1_and_other_phases_are_counted(run):
  (run / 'evaluation').mkdir(exist_ok=True)
  result = {'suite': '', 'key': 'k', 'greedy': 1.7, 'correct': [1, -0.2]}
  file = run / 'evaluation' / 'iteration_000020.jsonl'
  file.write_text(json.dumps(result))
  with (run / 'metrics.jsonl').open('a') as metrics:
    metrics.write('{"phase": "training", "step": 1}\n{"step": 2}\n')
  loaded = load_run(run)
  assert not loaded.results_at(20)
  assert loaded.unreadable.sentences() == [
    '2 unreadable step or phases of metrics.jsonl were skipped.',
    '1 unreadable result of evaluation/iteration_000020.jsonl was skipped.',
  ]


def test_a_run_without_a_seed_is_noted(run):
  file = run / 'config.json'
  settings = json.loads(file.read_text())
  settings['config']['seed'] = 'x'
  file.write_text(json.dumps(settings))
  assert load_run(run).unreadable.sentences() == [
    'config.json has no seed: the run is compared as one of seed 0.'
  ]


@pytest.mark.parametrize('folder', ['evaluation', 'rollouts'])
def test_copies_of_files_of_an_iteration_are_left_out(run, folder):
  """Sync tools keep two versions of a file under names of their own."""
  file = sorted((run / folder).iterdir())[-1]
  expected = load_run(run).latest_results, load_run(run).rollout_files
  name = f'{file.stem}.sync-conflict-20261201{file.suffix}'
  (run / folder / name).write_text('{}')
  data = load_run(run)
  assert (data.latest_results, data.rollout_files) == expected
  assert data.unreadable.sentences() == [
    f'{folder}/{name} was skipped: it is not a file that covrl writes, but perhaps a'
    ' copy of one.'
  ]


def test_a_copy_of_the_results_of_a_set_is_left_out(run):
  def results(scores):
    return ''.join(
      json.dumps({'suite': '', 'key': f'{n}', 'greedy': score, 'correct': []})
      + '\n'
      for n, score in enumerate(scores)
    )

  held_out = run / 'evaluation' / 'held_out.jsonl'
  held_out.write_text(results([0, 1]))
  (run / 'evaluation/summary.json').write_text(
    json.dumps({'held_out': {'iteration': 1000}})
  )
  expected = load_run(run).latest_results
  assert len(expected) == 2
  held_out.with_name('held_out (1).jsonl').write_text(results([1, 1]))
  data = load_run(run)
  assert data.latest_results == expected
  (sentence,) = data.unreadable.sentences()
  assert sentence.startswith('evaluation/held_out (1).jsonl was skipped:')
