# SPDX-License-Identifier: Apache-2.0
"""Results of a run that are lost between two of its checkpoints."""

import os
import pathlib

import pytest

from covrl.run.directory import RunDirectory


def _empty(file):
  file.write_bytes(b'')


def _replace_by_broken_link(file):
  file.unlink()
  file.symlink_to(file.with_name('absent'))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (os.unlink, 'missing'),
    (_replace_by_broken_link, 'missing'),
    (_empty, 'not what was written'),
  ],
)
def test_missing_and_damaged_results_are_reported_on_resume(
  directory, change, message
):
  names = [
    'evaluation/iteration_000000.jsonl',
    'rollouts/iteration_000001.json',
  ]
  directory.write_jsonl(names[0], [{'greedy': 1.0}])
  directory.write_json(names[1], {'samples': []})
  assert [*directory.result_digests] == names
  resumed, warnings = RunDirectory(directory.path), []
  resumed.check_records(directory.records, warnings.append)
  assert warnings == []
  assert resumed.result_digests == directory.result_digests
  change(pathlib.Path(directory.path / names[0]))
  resumed.check_records(directory.records, warnings.append)
  assert warnings == [
    f'of samples and evaluations in {directory.path} 1 of 2 files are damaged:'
    f' {names[0]} is {message}; the run does not write them again'
  ]
  directory.write_jsonl(names[0], [{'greedy': 1.0}])
  resumed.check_records(directory.records, warnings.append)
  assert len(warnings) == 1


@pytest.mark.parametrize('content', [None, b'', b'{"time": "", "text": "b"}\n'])
def test_lost_notices_are_written_again(directory, content):
  for text in ('a', 'b'):
    directory.add_notice(text)
  file = pathlib.Path(directory.path / 'notices.jsonl')
  before = file.read_text()
  file.unlink()
  if content is not None:
    file.write_bytes(content)
  resumed, warnings = RunDirectory(directory.path), []
  for _ in range(2):
    resumed.check_records(directory.records, warnings.append)
  assert warnings == [f'{file} has lost 2 notices; they are written again']
  assert file.read_text() == before + (content or b'').decode()
  assert resumed.records['notices'] == file.read_text()
