# SPDX-License-Identifier: Apache-2.0
"""Tests of the task's description and of problems before and after training."""

import json

from report.run_page_test import read

from covrl.report import write_report
from covrl.report.examples import example_table
from covrl.report.inputs.run_data import load_run

HEADING = 'The same problems before and after'


def add_responses(workdir, responses):
  """Adds greedy responses to the problems of all evaluations.

  Args:
    workdir: the run directory.
    responses: responses by name of the evaluation's file, else `None`.
  """
  for file in (workdir / 'evaluation').iterdir():
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record, response in zip(
      records, responses.get(file.name, ()), strict=False
    ):
      record['response'] = response
    file.write_text('\n'.join(map(json.dumps, records)))


def test_first_and_last_responses_are_beside_each_other(make_run):
  workdir = make_run(iterations=20)
  add_responses(
    workdir,
    {
      'iteration_000000.jsonl': ['first', 'second', 'third'],
      'iteration_000010.jsonl': ['midway', 'midway'],
      'iteration_000020.jsonl': ['1 < 2', ''],
    },
  )
  first, last = (
    json.loads((workdir / 'evaluation' / name).read_text().split('\n')[0])
    for name in ('iteration_000000.jsonl', 'iteration_000020.jsonl')
  )
  table = example_table(load_run(workdir))
  assert table is not None
  assert (table.first, table.last) == ('0', '20')
  # The third problem has no response at the end.
  assert [each.before.text for each in table.examples] == ['first', 'second']
  assert [each.after.text for each in table.examples] == ['1 < 2', '']
  assert table.examples[0].prompt == first['prompt'] == last['prompt']
  assert table.examples[0].before.is_correct == bool(first['greedy'])
  assert table.examples[0].after.is_correct == bool(last['greedy'])
  page = read(write_report(workdir))
  assert HEADING in page.text
  assert '1 < 2' in page.text
  assert 'midway' not in page.text


def test_runs_without_responses_have_neither_examples_nor_task(make_run):
  page = read(write_report(make_run()))
  assert HEADING not in page.text
  assert 'Task' not in page.words


def test_invalid_responses_are_left_out_and_unscored_ones_have_no_mark(
  make_run,
):
  workdir = make_run(iterations=20)
  add_responses(
    workdir,
    {
      'iteration_000000.jsonl': [7, None, 'x' * 10_000],
      'iteration_000020.jsonl': ['a', 'b', 'c'],
    },
  )
  file = workdir / 'evaluation' / 'iteration_000020.jsonl'
  records = [json.loads(line) for line in file.read_text().splitlines()]
  records[2]['greedy'] = None
  file.write_text('\n'.join(map(json.dumps, records)))
  table = example_table(load_run(workdir))
  assert table is not None
  (example,) = table.examples
  assert len(example.before.text) < 1000
  assert example.after.is_correct is None
  assert 'characters cut' in read(write_report(workdir)).text


def test_the_description_of_the_task_is_on_the_page(make_run):
  workdir = make_run()
  task = {'description': 'Sums of <two> numbers.', 'notes': []}
  (workdir / 'task.json').write_text(json.dumps(task))
  assert 'Task Sums of <two> numbers.' in read(write_report(workdir)).text
  (workdir / 'task.json').write_text('{"description": ')
  page = read(write_report(workdir))
  assert 'task.json is unreadable and was skipped.' in page.text
