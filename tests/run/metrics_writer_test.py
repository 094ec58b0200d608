# SPDX-License-Identifier: Apache-2.0
"""Metric lines and TensorBoard events, also of a resumed run."""

import json

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from covrl.config import LoggingConfig
from covrl.run.metrics_writer import MetricsWriter

# Generated at import, unknown to type checkers.
Event = vars(event_pb2)['Event']


def open_writer(directory, keep=0):
  return MetricsWriter(
    directory / 'metrics.jsonl', LoggingConfig(), name='toy', keep=keep
  )


def events(directory):
  """Returns all events of a directory's files, oldest first."""
  found = []
  for file in sorted(directory.iterdir()):
    data = file.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      assert int.from_bytes(data[8:12], 'little') == masked_crc32c(data[:8])
      found.append(Event.FromString(data[12 : 12 + size]))
      data = data[12 + size + 4 :]
  return found


def test_resuming_truncates_lines_and_purges_events(tmp_path):
  writer = open_writer(tmp_path)
  writer.write(step=50, iteration=0, phase='warm_start', loss=1.0)
  writer.write(step=1, iteration=0, phase='train', reward=0.25)
  kept = writer.size
  writer.write(step=2, iteration=0, phase='train', reward=0.5)
  writer.close()

  writer = open_writer(tmp_path, keep=kept)
  writer.write(step=2, iteration=0, phase='train', reward=0.75)
  writer.close()

  text = (tmp_path / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert [(line['phase'], line['step']) for line in lines] == [
    ('warm_start', 50),
    ('train', 1),
    ('train', 2),
  ]
  assert lines[2]['reward'] == 0.75
  seen = events(tmp_path / 'tb' / 'train')
  purges = [e.step for e in seen if e.HasField('session_log')]
  assert purges == [2]
  rewards = [
    (event.step, value.simple_value)
    for event in seen
    for value in event.summary.value
    if value.tag == 'reward'
  ]
  assert rewards == [(1, 0.25), (2, 0.5), (2, 0.75)]


def test_writes_non_finite_numbers_as_null(tmp_path):
  writer = open_writer(tmp_path)
  writer.write(step=1, iteration=0, phase='train', loss=float('nan'))
  writer.close()
  line = json.loads((tmp_path / 'metrics.jsonl').read_text())
  assert line['loss'] is None


@pytest.mark.parametrize('kind', [int, str, bool])
def test_keeps_the_types_of_json_values(tmp_path, kind):
  writer = open_writer(tmp_path)
  writer.write(step=1, iteration=0, phase='eval', value=kind(1))
  writer.close()
  line = json.loads((tmp_path / 'metrics.jsonl').read_text())
  assert line['value'] == kind(1)
  assert type(line['value']) is kind
