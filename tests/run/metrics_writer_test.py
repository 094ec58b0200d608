# SPDX-License-Identifier: Apache-2.0
"""Metric lines and TensorBoard events, also of a resumed run."""

import errno
import hashlib
import json
import os
import re
import shutil
import time

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from covrl import storage
from covrl.config import LoggingConfig
from covrl.run.metrics_writer import MetricsWriter
from covrl.storage import StorageError

# Generated at import, unknown to type checkers.
Event = vars(event_pb2)['Event']


def open_writer(directory, saved=None, notes=None):
  """A writer of metrics in a directory."""
  return MetricsWriter(
    directory / 'metrics.jsonl',
    LoggingConfig(),
    name='toy',
    saved=saved,
    warn=[].append if notes is None else notes.append,
  )


def events(directory):
  """Returns all events of a directory's files, oldest first."""
  result = []
  for file in sorted(directory.iterdir()):
    data = file.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      assert int.from_bytes(data[8:12], 'little') == masked_crc32c(data[:8])
      result.append(Event.FromString(data[12 : 12 + size]))
      data = data[12 + size + 4 :]
  return result


def test_resuming_truncates_lines_and_purges_events(tmp_path):
  writer = open_writer(tmp_path)
  writer.write(step=50, iteration=0, phase='warm_start', loss=1.0)
  writer.write(step=1, iteration=0, phase='train', reward=0.25)
  saved = writer.sync()
  writer.write(step=2, iteration=0, phase='train', reward=0.5)
  writer.close()

  writer = open_writer(tmp_path, saved=saved)
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
  all_events = events(tmp_path / 'tb' / 'train')
  purges = [e.step for e in all_events if e.HasField('session_log')]
  assert purges == [2]
  rewards = [
    (event.step, value.simple_value)
    for event in all_events
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


@pytest.mark.parametrize('value_type', [int, str, bool])
def test_keeps_the_types_of_json_values(tmp_path, value_type):
  writer = open_writer(tmp_path)
  writer.write(step=1, iteration=0, phase='eval', value=value_type(1))
  writer.close()
  line = json.loads((tmp_path / 'metrics.jsonl').read_text())
  assert line['value'] == value_type(1)
  assert type(line['value']) is value_type


@pytest.fixture
def saved(tmp_path):
  """Returns the state of metrics at a checkpoint; one later line follows it."""
  writer = open_writer(tmp_path)
  writer.write(step=9, iteration=0, phase='warm_start', loss=1.0)
  for step in range(1, 5):
    writer.write(step=step, iteration=step, phase='train', reward=step / 4)
  state = json.loads(json.dumps(writer.sync()))
  writer.write(step=5, iteration=5, phase='train', reward=0.0)
  writer.close()
  return state


def shorten(text):
  """Cuts the file in the third line."""
  return text[: text.index(b'"step": 2') + 20]


# Change of the file, message, and steps of the lines that are still used, by name.
DAMAGES = {
  'shorter': (shorten, 'has .* of the .* bytes that were saved', [9, 1]),
  'padded': (
    lambda text: shorten(text).ljust(len(text), b'\0'),
    'contains NUL bytes',
    [9, 1],
  ),
  'CRLF': (
    lambda text: text.replace(b'\n', b'\r\n'),
    'has other line ends',
    [9, 1, 2, 3, 4],
  ),
  'edited': (
    lambda text: text.replace(b'"reward": 0.5', b'"reward": 0.9'),
    'is not what was saved',
    [9, 1, 2, 3, 4],
  ),
  'a line removed': (
    lambda text: text.replace(text.splitlines(keepends=True)[2], b''),
    'is not what was saved',
    [9, 1, 3, 4],
  ),
  'not text': (
    lambda text: text.replace(b'"reward": 0.5', b'\xff\xfe[]'),
    'is not what was saved',
    [9, 1, 3, 4],
  ),
  'empty': (lambda text: b'', 'is missing or empty', []),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damaged_lines_are_set_aside_and_never_padded(saved, tmp_path, name):
  damage, sentence, steps = DAMAGES[name]
  file = tmp_path / 'metrics.jsonl'
  damaged = damage(file.read_bytes())
  assert damaged != file.read_bytes()
  file.write_bytes(damaged)
  notes = []
  writer = open_writer(tmp_path, saved, notes)
  writer.write(step=5, iteration=5, phase='train', reward=1.0)
  writer.close()
  assert len(notes) == 1
  assert re.search(f'metrics.jsonl {sentence}.*', notes[0])
  assert f': {len(steps)} of 5 lines are used' in notes[0]
  content = file.read_bytes()
  assert b'\0' not in content
  assert b'\r' not in content
  assert [json.loads(line)['step'] for line in content.splitlines()] == [
    *steps,
    5,
  ]
  copies = list(tmp_path.glob('metrics.damaged_*.jsonl'))
  assert [copy.read_bytes() for copy in copies] == [damaged] * bool(damaged)
  assert all(copy.name in notes[0] for copy in copies)


def test_a_copy_never_replaces_an_earlier_one(saved, tmp_path):
  for index in range(2):
    (tmp_path / 'metrics.jsonl').write_text(f'{index}')
    open_writer(tmp_path, saved).close()
  names = sorted(copy.name for copy in tmp_path.glob('metrics.damaged_*'))
  assert names == ['metrics.damaged_1.jsonl', 'metrics.damaged_2.jsonl']
  assert (tmp_path / names[0]).read_text() == '0'


def test_events_are_in_order_where_the_clock_goes_back(tmp_path, monkeypatch):
  saved = None
  for step, now in enumerate((7200.0, 3600.0, 3600.0, 0.0)):
    monkeypatch.setattr(time, 'time', lambda now=now: now)
    writer = open_writer(tmp_path, saved)
    writer.write(step=step, iteration=0, phase='train', reward=0.0)
    saved = writer.sync()
    writer.close()
  all_events = events(tmp_path / 'tb' / 'train')
  assert [e.step for e in all_events if e.summary.value] == [0, 1, 2, 3]


@pytest.mark.parametrize('bytes_lost', [1, 30, 10**6])
def test_damaged_events_are_set_aside(saved, tmp_path, bytes_lost):
  notes = []
  open_writer(tmp_path, saved, notes).close()
  assert notes == []
  (file,) = (tmp_path / 'tb' / 'warm_start').iterdir()
  content = file.read_bytes()
  truncated = content[: max(len(content) - bytes_lost, 0)]
  file.write_bytes(truncated)
  open_writer(tmp_path, saved, notes).close()
  assert len(notes) == 1
  assert 'bytes of events that were saved' in notes[0]
  copies = [copy for copy in file.parent.iterdir() if copy != file]
  assert [copy.read_bytes() for copy in copies] == [truncated] * bool(truncated)
  assert all('tfevents' not in copy.name for copy in copies)
  for copy in copies:
    copy.unlink()
  assert len(events(file.parent)) == (1 if truncated else 0)


@pytest.mark.parametrize('repetitions', [1, 2])
def test_events_of_another_file_are_set_aside(saved, tmp_path, repetitions):
  (file,) = (tmp_path / 'tb' / 'warm_start').iterdir()
  other_writer = open_writer(tmp_path / 'other')
  other_writer.write(step=1, iteration=0, phase='warm_start', loss=7.0)
  other_writer.close()
  (replacement,) = (tmp_path / 'other' / 'tb' / 'warm_start').iterdir()
  # The replacement is a valid file, of the same size or a larger one.
  content = replacement.read_bytes() * repetitions
  assert len(content) >= file.stat().st_size
  file.write_bytes(content)
  notes = []
  writer = open_writer(tmp_path, saved, notes)
  (text,) = notes
  assert 'has other events than those that were saved' in text
  assert file.read_bytes() == b''
  (copy,) = (path for path in file.parent.iterdir() if path != file)
  assert copy.read_bytes() == content
  state = writer.sync()
  writer.close()
  # The next start has nothing to note.
  open_writer(tmp_path, state, notes).close()
  assert len(notes) == 1


def test_events_after_the_checkpoint_are_not_damage(saved, tmp_path):
  notes = []
  writer = open_writer(tmp_path, saved, notes)
  writer.write(step=9, iteration=0, phase='warm_start', loss=1.0)
  state = writer.sync()
  writer.write(step=10, iteration=0, phase='warm_start', loss=1.0)
  writer.close()
  open_writer(tmp_path, state, notes).close()
  assert notes == []


def test_lines_are_on_the_disk_before_a_checkpoint_names_them(
  tmp_path, monkeypatch
):
  writer = open_writer(tmp_path)
  writer.write(step=1, iteration=0, phase='train', reward=0.25)
  synced = []
  monkeypatch.setattr(
    os, 'fsync', lambda fd: synced.append(os.readlink(f'/proc/self/fd/{fd}'))
  )
  state = writer.sync()
  file = tmp_path / 'metrics.jsonl'
  assert state['log']['size'] == file.stat().st_size > 0
  (event_file,) = (tmp_path / 'tb' / 'train').iterdir()
  assert synced == [str(file), str(event_file)]
  digest = hashlib.sha256(event_file.read_bytes()).hexdigest()
  assert state['events'] == {
    f'train/{event_file.name}': f'{event_file.stat().st_size}:{digest}'
  }
  writer.close()


def test_a_write_to_a_full_disk_raises(tmp_path, monkeypatch):
  writer = open_writer(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(storage, 'write_all', fail)
    with pytest.raises(
      StorageError, match=r'metrics\.jsonl cannot be written: no space left'
    ):
      writer.write(step=1, iteration=0, phase='train', reward=0.25)
  writer.close()


def fail(*_):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def move_away(file):
  file.rename(file.with_suffix('.old'))


def replace(file):
  move_away(file)
  file.write_text('{"other": 1}\n')


@pytest.mark.parametrize(
  ('change', 'num_usable'),
  [(move_away, 2), (replace, 2), (lambda file: os.truncate(file, 0), 0)],
)
def test_a_file_that_another_program_changes_is_restored(
  tmp_path, change, num_usable
):
  """Log rotation moves a file, or copies and cuts it."""
  notes, file = [], tmp_path / 'metrics.jsonl'
  writer = open_writer(tmp_path, notes=notes)
  for step in (1, 2):
    writer.write(step=step, iteration=0, phase='train', loss=1.0)
  change(file)
  writer.write(step=3, iteration=0, phase='train', loss=1.0)
  saved = writer.sync()
  change(file)
  assert (writer.sync()['log'] == saved['log']) == (num_usable == 2)
  writer.close()
  steps = [json.loads(line)['step'] for line in file.read_text().splitlines()]
  assert steps == [1, 2, 3][: num_usable + 1 if num_usable else 0]
  assert 'was moved, replaced or changed by another program' in notes[0]
  if change is replace:
    assert (
      (tmp_path / 'metrics.damaged_1.jsonl').read_text().startswith('{"other"')
    )


@pytest.mark.parametrize(
  ('change', 'num_usable'),
  [
    (lambda file: file.unlink(), 2),
    (lambda file: shutil.rmtree(file.parents[1]), 2),
    (lambda file: os.truncate(file, file.stat().st_size - 5), 1),
  ],
)
def test_events_that_another_program_changes_during_a_run_are_restored(
  tmp_path, change, num_usable
):
  notes, directory = [], tmp_path / 'tb' / 'train'
  writer = open_writer(tmp_path, notes=notes)
  for step in (1, 2):
    writer.write(step=step, iteration=0, phase='train', loss=1.0)
  (file,) = directory.iterdir()
  change(file)
  writer.sync()
  change(file)
  writer.write(step=3, iteration=0, phase='train', loss=1.0)
  saved = writer.sync()
  writer.close()
  steps = [e.step for e in events(directory) if e.summary.value]
  assert steps == ([1, 2, 3] if num_usable == 2 else [3])
  assert len(notes) == 2
  assert all(str(file) in text for text in notes)
  assert 'was moved, replaced or changed by another program' in notes[0]
  assert ('bytes of its events are left' in notes[0]) == (num_usable == 1)
  open_writer(tmp_path, saved, notes).close()
  assert len(notes) == 2


def test_events_of_an_earlier_start_that_are_removed_are_reported(
  saved, tmp_path
):
  notes = []
  writer = open_writer(tmp_path, saved, notes)
  (file,) = (tmp_path / 'tb' / 'warm_start').iterdir()
  file.unlink()
  writer.sync()
  writer.sync()
  writer.close()
  assert notes == [f'{file} was removed; its events are lost']
