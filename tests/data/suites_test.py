# SPDX-License-Identifier: Apache-2.0
"""Tests of evaluation suites: files, sampling settings, error messages."""

import pathlib
import shutil
from typing import Any

import pytest

from covrl.data import SUITES, Suite, load_suites

DIRECTORY = pathlib.Path(__file__).parents[1] / 'golden' / 'data' / 'suites'


def error_of(names, directory=DIRECTORY):
  """The error of loading suites by these names."""
  with pytest.raises(ValueError) as caught:
    load_suites(names, directory)
  return str(caught.value)


def test_loads_every_suite_by_name():
  suites = load_suites(','.join(SUITES), DIRECTORY)
  assert [suite.name for suite in suites] == list(SUITES)
  for suite in suites:
    assert suite.problems
    assert {problem.source for problem in suite.problems} == {suite.name}


def test_suites_have_published_sampling_settings():
  suites = load_suites('math500, aime24,aime25,amc,gsm8k', DIRECTORY)
  assert [(s.name, s.samples) for s in suites] == [
    ('math500', 0),
    ('aime24', 32),
    ('aime25', 32),
    ('amc', 32),
    ('gsm8k', 0),
  ]
  assert {s.temperature for s in suites if s.samples} == {0.6}


def test_suites_of_numbered_files_must_be_complete(tmp_path):
  folder = tmp_path / 'aime25'
  folder.mkdir()
  for number in (0, 2):
    name = f'test-{number:05}-of-00003.jsonl'
    row = f'{{"problem": "{number} + 1", "answer": "1", "year": 2025}}'
    (folder / name).write_text(row)
  assert error_of('aime25', tmp_path) == (
    f'{folder}/test-…-of-00003.jsonl must be 3 files, got 2, without number 1'
  )
  # Some datasets count from 1.
  for number in (1, 3):
    name = f'test-{number:05}-of-00003.jsonl'
    row = f'{{"problem": "{number} + 1", "answer": "1", "year": 2025}}'
    (folder / name).write_text(row)
  (folder / 'test-00000-of-00003.jsonl').unlink()
  (suite,) = load_suites('aime25', tmp_path)
  assert len(suite.problems) == 3


def test_overrides_sampling_settings():
  suites = [
    suite.with_overrides(samples=4, temperature=0.9, problems=2)
    for suite in load_suites('math500,aime24', DIRECTORY)
  ]
  assert {(s.samples, s.temperature) for s in suites} == {(4, 0.9)}
  assert [len(s.problems) for s in suites] == [2, 2]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'samples': True}, 'must be a whole number from 0, got True'),
    ({'samples': -1}, "samples of the suite 'mine' must be a whole number"),
    ({'temperature': float('nan')}, 'must be finite and at least 0, got nan'),
    ({'temperature': -1.0}, 'must be finite and at least 0, got -1'),
  ],
)
def test_refuses_impossible_sampling_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    Suite(name='mine', problems=[], **changes)


def test_numbers_of_problems_are_positive():
  with pytest.raises(ValueError, match='must be at least 1, got -5'):
    Suite(name='mine', problems=[]).with_overrides(problems=-5)


def test_loads_a_folder_of_files(tmp_path):
  folder = tmp_path / 'aime25' / 'data'
  folder.mkdir(parents=True)
  for part, name in enumerate(('aime24', 'aime25')):
    shutil.copy(DIRECTORY / f'{name}.jsonl', folder / f'part-{part}.jsonl')
  (suite,) = load_suites('aime25', tmp_path)
  assert len(suite.problems) == 6
  # Files of a test split take precedence.
  shutil.copy(DIRECTORY / 'aime25.jsonl', folder / 'test-0.jsonl')
  (suite,) = load_suites('aime25', tmp_path)
  assert len(suite.problems) == 3


def test_refuses_files_with_the_same_questions(tmp_path):
  # Two versions of a set in a folder, as GSM8K is published, and two formats.
  for first, second in (
    ('main/test.jsonl', 'socratic/test.jsonl'),
    ('test-a.jsonl', 'test-b.jsonl'),
  ):
    folder = tmp_path / first.replace('/', '_') / 'gsm8k'
    rows = (DIRECTORY / 'gsm8k.jsonl').read_text()
    for name, text in (
      (first, rows),
      (second, rows.replace('####', 'so ####')),
    ):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_text(text)
    assert error_of('gsm8k', folder.parent) == (
      'the files of the evaluation set gsm8k must hold different questions, got'
      f' the same in {folder / first} and {folder / second}; one of them has to be'
      ' removed'
    )


def test_loads_a_file_by_name():
  (suite,) = load_suites(str(DIRECTORY / 'amc.jsonl'), 'nowhere')
  assert (suite.name, suite.samples, suite.schema) == ('amc', 0, 'AMC')


def test_refuses_unknown_suites():
  assert error_of('aimee24') == (
    'an evaluation set must be one of math500, aime24, aime25, amc, omni_math,'
    ' olympiadbench, minerva, gsm8k, or a file (.jsonl, .parquet,'
    " .array_record), got 'aimee24'; did you mean aime24?"
  )
  assert error_of('xyz').endswith("got 'xyz'")


def test_refuses_suites_without_files(tmp_path):
  assert error_of('math500', tmp_path) == (
    f'the evaluation set math500 must be in {tmp_path}, as math500.jsonl,'
    ' .parquet or .array_record, or in a folder math500, got none; nothing is'
    ' downloaded'
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'problems': iter(())}, 'must be a sequence of Problem, got <tuple_iter'),
    ({'problems': [1]}, r'must be a sequence of Problem, got \[1\]'),
    ({'temperature': '1'}, "temperature of the suite 'a' must be a number"),
    ({'name': '\ud800'}, 'the name of an evaluation set must be valid Unicode'),
  ],
)
def test_refuses_fields_of_another_type(changes, message):
  fields: Any = {'name': 'a', 'problems': [], **changes}
  with pytest.raises((TypeError, ValueError), match=message):
    Suite(**fields)
