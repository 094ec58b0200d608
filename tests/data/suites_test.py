# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets are found by name and sampled as published."""

import pathlib
import shutil

import pytest

from covrl.data import SUITES, load_suites

DIRECTORY = pathlib.Path(__file__).parents[1] / 'golden' / 'data' / 'suites'


def refused(names, directory=DIRECTORY):
  with pytest.raises(ValueError) as caught:
    load_suites(names, directory)
  return str(caught.value)


def test_every_set_by_its_name():
  suites = load_suites(','.join(SUITES), DIRECTORY)
  assert [suite.name for suite in suites] == list(SUITES)
  for suite in suites:
    assert suite.problems
    assert {problem.source for problem in suite.problems} == {suite.name}


def test_published_sampling():
  suites = load_suites('math500, aime24,aime25,amc,gsm8k', DIRECTORY)
  assert [(s.name, s.samples) for s in suites] == [
    ('math500', 0),
    ('aime24', 32),
    ('aime25', 32),
    ('amc', 32),
    ('gsm8k', 0),
  ]
  assert {s.temperature for s in suites if s.samples} == {0.6}


def test_sampling_of_ones_own():
  suites = [
    suite.changed(samples=4, temperature=0.9, problems=2)
    for suite in load_suites('math500,aime24', DIRECTORY)
  ]
  assert {(s.samples, s.temperature) for s in suites} == {(4, 0.9)}
  assert [len(s.problems) for s in suites] == [2, 2]


def test_a_folder_of_files(tmp_path):
  folder = tmp_path / 'aime25' / 'data'
  folder.mkdir(parents=True)
  for part, name in enumerate(('aime24', 'aime25')):
    shutil.copy(DIRECTORY / f'{name}.jsonl', folder / f'part-{part}.jsonl')
  (suite,) = load_suites('aime25', tmp_path)
  assert len(suite.problems) == 6
  # A test split goes before the rest.
  shutil.copy(DIRECTORY / 'aime25.jsonl', folder / 'test-0.jsonl')
  (suite,) = load_suites('aime25', tmp_path)
  assert len(suite.problems) == 3


def test_a_file_of_ones_own():
  (suite,) = load_suites(str(DIRECTORY / 'amc.jsonl'), 'nowhere')
  assert (suite.name, suite.samples, suite.layout) == ('amc', 0, 'AMC')


def test_sets_that_nobody_knows():
  assert refused('aimee24') == (
    'An evaluation set must be one of math500, aime24, aime25, amc, omni_math,'
    ' olympiadbench, minerva, gsm8k, or a file (.jsonl, .parquet,'
    " .array_record), got 'aimee24'; did you mean aime24?"
  )
  assert refused('xyz').endswith("got 'xyz'.")


def test_sets_whose_files_are_not_there(tmp_path):
  assert refused('math500', tmp_path) == (
    f'The evaluation set math500 must be in {tmp_path}, as math500.jsonl,'
    ' .parquet or .array_record, or in a folder math500, and is not; nothing is'
    ' downloaded.'
  )
