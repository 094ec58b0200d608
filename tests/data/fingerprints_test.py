# SPDX-License-Identifier: Apache-2.0
"""Every source has a fingerprint, which changes with its problems only."""

import dataclasses
import json
import os

import numpy as np
import pytest

from covrl.config import CountdownConfig
from covrl.data import (
  CountdownSource,
  FileSource,
  ListSource,
  MixtureSource,
  Problem,
  SolvedCountdownSource,
)
from covrl.data.fingerprints import problems_fingerprint
from covrl.data.problems import source_fingerprint
from covrl.data.sources import ConcatenatedSource, SubsetSource

PROBLEM = Problem(
  prompt='1 + 1', reference={'x': 2}, source='sums', solution='2', kind='math'
)


def write(file, answers):
  """Writes a file of problems with these answers."""
  rows = [{'question': f'{n} + 1', 'answer': a} for n, a in enumerate(answers)]
  file.write_text('\n'.join(map(json.dumps, rows)))
  return file


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('prompt', '1  + 1'),
    ('reference', {'x': 3}),
    ('source', 'other'),
    ('solution', None),
    ('messages', ({'role': 'system', 'content': 'Think.'},)),
    ('kind', 'code'),
  ],
)
def test_every_field_that_a_run_reads_changes_the_fingerprint(field, value):
  other_problem = dataclasses.replace(PROBLEM, **{field: value})
  assert (
    ListSource([PROBLEM]).fingerprint
    == problems_fingerprint([PROBLEM])
    != ListSource([other_problem]).fingerprint
  )


def test_the_order_and_number_of_problems_change_the_fingerprint():
  other_problem = dataclasses.replace(PROBLEM, prompt='2 + 2')
  fingerprints = {
    ListSource(problems).fingerprint
    for problems in (
      [PROBLEM],
      [PROBLEM, other_problem],
      [other_problem, PROBLEM],
      [PROBLEM, PROBLEM],
    )
  }
  assert len(fingerprints) == 4


def test_files_are_recognised_by_content_and_not_by_name_or_time(tmp_path):
  original = write(tmp_path / 'one.jsonl', ['1', '2', '3'])
  (tmp_path / 'elsewhere').mkdir()
  copy = write(tmp_path / 'elsewhere' / 'one.jsonl', ['1', '2', '3'])
  os.utime(copy, (0, 0))
  # As many bytes, and another answer in the middle.
  other = write(tmp_path / 'elsewhere' / 'two.jsonl', ['1', '7', '3'])
  assert other.stat().st_size == original.stat().st_size
  fingerprints = [
    FileSource(f, name='a').fingerprint for f in (original, copy, other)
  ]
  assert all(fingerprints)
  assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_countdown_is_recognised_by_its_fields():
  for source_class in (CountdownSource, SolvedCountdownSource):
    config = CountdownConfig()
    same, other = CountdownConfig(), CountdownConfig(seed=7)
    assert source_class(config).fingerprint == source_class(same).fingerprint
    assert source_class(config).fingerprint != source_class(other).fingerprint


class SourceWithoutFingerprint:
  """A source without a fingerprint."""

  names = ('sums',)

  def __len__(self):
    return 1

  def __getitem__(self, index):
    return PROBLEM


def test_a_source_made_of_one_without_a_fingerprint_has_none():
  with_fingerprint = ListSource([PROBLEM])
  assert source_fingerprint(SourceWithoutFingerprint()) == ''
  for without_fingerprint in (
    SourceWithoutFingerprint(),
    # References that are not JSON.
    ListSource([dataclasses.replace(PROBLEM, reference={1, 2})]),
  ):
    assert (
      ConcatenatedSource([with_fingerprint, without_fingerprint]).fingerprint
      == ''
    )
    assert (
      MixtureSource([without_fingerprint, with_fingerprint], [1, 1]).fingerprint
      == ''
    )
    assert SubsetSource(without_fingerprint, np.arange(1)).fingerprint == ''
  assert ConcatenatedSource([with_fingerprint, with_fingerprint]).fingerprint


def test_a_subset_is_recognised_by_its_indices():
  source = ListSource([PROBLEM, dataclasses.replace(PROBLEM, prompt='2 + 2')])
  fingerprints = {
    SubsetSource(source, np.array(indices)).fingerprint
    for indices in ([0], [1], [0, 1])
  }
  assert len(fingerprints) == 3
  assert SubsetSource(source, np.array([0]), 'given').fingerprint == 'given'


def test_references_that_are_not_json_have_no_fingerprint():
  nested: list[object] = []
  for _ in range(100_000):
    nested = [nested]
  for reference in (10**5000, nested, {1, 2}):
    problem = Problem(prompt='1', reference=reference, source='toy')
    assert problems_fingerprint([problem]) == ''
