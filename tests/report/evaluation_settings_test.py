# SPDX-License-Identifier: Apache-2.0
"""Results of different policies, settings and prompts are named below the table."""

from __future__ import annotations

import json

from report.suite_results import results, table_of

from covrl.report.inputs.run_data import load_run


def test_results_of_other_settings_are_named(make_results):
  sets = {name: results(name, [1, 0], samples=4) for name in ('amc', 'gsm8k')}
  one, other = (make_results(name, sets, recipe='x') for name in 'ab')
  line = {'phase': 'train', 'iteration': 6, 'step': 6}
  (one / 'metrics.jsonl').write_text(f'{json.dumps(line)}\n')

  def write(path, **entries):
    common = {'policy': f'runs/{path.name}', 'iteration': 6, 'samples': 4}
    summary = {
      name: {**common, 'temperature': 0.6, **entry}
      for name, entry in entries.items()
    }
    file = path / 'evaluation' / 'summary.json'
    file.write_text(json.dumps(summary))

  write(one, amc={}, gsm8k={'policy': f'{one}/'})
  write(other, amc={}, gsm8k={})
  assert table_of(one, other).notes == []
  write(one, amc={'iteration': 4}, gsm8k={})
  write(other, amc={'temperature': 1.0}, gsm8k={'policy': 'models/other'})
  assert table_of(one, other).notes == [
    'a: the results of amc are of iteration 4, and the run has trained to'
    ' iteration 6 since.',
    'b: the results are of several policies: b (amc) and other (gsm8k).',
    'The samples of amc have different temperatures: 0.6 (a) and 1 (b).',
  ]


def test_results_with_other_limits_of_length_are_named(make_results):
  """The limit of a pretrained model's results, and of a run's configuration."""
  sets = {'amc': results('amc', [1, 0])}
  model, run = make_results('model', sets), make_results('run', sets)

  def write(limit, run_limit):
    summary = {'amc': {'samples': 0, 'max_response_length': limit}}
    (model / 'evaluation/summary.json').write_text(json.dumps(summary))
    config = {'rollout': {'max_response_length': run_limit}}
    text = json.dumps({'name': 'x', 'config': config})
    (run / 'config.json').write_text(text)

  write(8192, 2048)
  assert table_of(model, run).notes == [
    'The responses to amc have different limits of their length in tokens: 8192'
    ' (model) and 2048 (run).'
  ]
  write(2048, 2048)
  assert table_of(model, run).notes == []


def test_results_of_other_prompts_are_named(make_results):
  lines = results('amc', [1, 0, 1])
  others = [line | {'prompt': f'Think: {line["prompt"]}'} for line in lines]
  runs = [
    make_results('a', {'amc': lines}),
    make_results('b', {'amc': lines}),
    make_results('c', {'amc': [lines[0], *others[1:]]}),
  ]
  assert table_of(*runs[:2]).notes == []
  assert table_of(*runs).notes == [
    'The prompts of 2 of 3 problems of amc differ between a and c.'
  ]


def test_held_out_problems_at_other_temperatures_are_named(make_results):
  sets = {'iteration_000006': results('', [1, 0], samples=4)}
  one, other = (make_results(name, sets, recipe='x') for name in 'ab')
  for path in (one, other):
    settings = {'seed': 0, 'evaluate': {'samples': 4, 'temperature': 1.0}}
    config = json.dumps({'name': 'x', 'config': settings})
    (path / 'config.json').write_text(config)
  assert table_of(one, other).notes == []
  lines = map(json.dumps, results('', [1, 0], samples=2))
  (one / 'evaluation' / 'held_out.jsonl').write_text('\n'.join(lines))
  for iteration, temperature, is_named in (
    (6, 0.2, True),
    (6, 1.0, False),
    # Older than the run's own results, which are compared then.
    (4, 0.2, False),
  ):
    entry = {'iteration': iteration, 'samples': 2, 'temperature': temperature}
    summary = json.dumps({'held_out': entry})
    (one / 'evaluation' / 'summary.json').write_text(summary)
    sentence = (
      'The samples of held-out problems have different temperatures: 0.2 (a) and'
      ' 1 (b).'
    )
    assert table_of(one, other).notes == [sentence] * is_named


def test_a_suite_of_the_run_itself_at_another_temperature_is_named(
  make_results,
):
  lines = results('amc', [1, 0], samples=4)
  own, other = (
    [line | {'temperature': temperature} for line in lines]
    for temperature in (1.0, 0.6)
  )
  run = make_results('a', {'iteration_000006': own}, recipe='x')
  evaluated = make_results('b', {'amc': other})
  entry = {'iteration': 6, 'samples': 4, 'temperature': 0.6}
  file = evaluated / 'evaluation' / 'summary.json'
  file.write_text(json.dumps({'amc': entry}))
  assert table_of(run, evaluated).notes == [
    'The samples of amc have different temperatures: 1 (a) and 0.6 (b).'
  ]
  same = make_results('c', {'iteration_000006': other}, recipe='x')
  assert table_of(same, evaluated).notes == []
  # Greedy responses have none.
  greedy = make_results('d', {'iteration_000006': results('amc', [1, 0])})
  assert table_of(greedy, evaluated).notes == []


def test_sets_of_the_run_and_of_the_command_are_in_one_table(make_results):
  """A set counts as it was evaluated last, by the run or by `covrl evaluate`."""

  def lines(name, scores):
    return results(name, scores, samples=4)

  own = [*lines('', [1, 0]), *lines('aime', [1, 0]), *lines('amc', [1, 0])]
  sets = {
    'iteration_000006': own,
    'aime': lines('aime', [1, 1]),
    'amc': lines('amc', [0, 0]),
    'math': lines('math', [0, 1]),
  }
  run = make_results('a', sets, recipe='x')
  summary = {'aime': {'iteration': 6}, 'amc': {'iteration': 4}, 'math': {}}
  file = run / 'evaluation' / 'summary.json'
  file.write_text(json.dumps(summary))
  data = load_run(run)
  assert data.sets_of_command == {'aime', 'math'}
  greedy = {
    name: [
      r['greedy'] for (s, _), (r,) in data.latest_results.items() if s == name
    ]
    for name in ('', 'aime', 'amc', 'math')
  }
  assert greedy == {
    '': [1, 0],
    'aime': [1, 1],
    'amc': [1, 0],
    'math': [0, 1],
  }
