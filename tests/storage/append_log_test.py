# SPDX-License-Identifier: Apache-2.0
"""Append-only logs on a disk and in an emulated bucket."""

import os

import pytest
from etils import epath

from covrl.storage import log_files
from covrl.storage.append_log import describe_log_damage, open_log, read_log

ROOT = epath.Path('gs://bucket/run')
LOG_FILE = 'gs://bucket/run/metrics.jsonl'


@pytest.fixture(params=['disk', 'bucket'])
def log_file(request, tmp_path, monkeypatch):
  """Returns the path of a log whose parts are small."""
  monkeypatch.setattr(log_files, '_MAX_PART_SIZE', 16)
  if request.param == 'disk':
    return epath.Path(tmp_path) / 'metrics.jsonl'
  request.getfixturevalue('bucket')
  return epath.Path(LOG_FILE)


def write_lines(file, count=6):
  """Writes lines; returns the position after each."""
  log = open_log(file)
  positions = [log.sync()]
  for number in range(count):
    log.write(f'line {number:02}')
    positions.append(log.sync())
  log.close()
  return positions


@pytest.mark.parametrize('lines', [0, 1, 2, 3, 5, 6])
def test_a_log_goes_on_after_a_position(log_file, lines):
  positions = write_lines(log_file)
  content = read_log(log_file)
  assert content is not None
  assert len(content) == positions[-1]['size'] == 48
  notes = []
  reopened = open_log(log_file, positions[lines], note=notes.append)
  assert reopened.sync() == positions[lines]
  reopened.write('after')
  reopened.close()
  assert read_log(log_file) == content[: 8 * lines] + 'after\n'
  assert notes == []


@pytest.mark.parametrize('damage', ['shorter', 'other', 'missing'])
def test_a_damaged_log_is_copied_and_goes_on_after_its_usable_lines(
  log_file, damage
):
  *_, position = write_lines(log_file)
  damaged_log = open_log(log_file)
  texts = {'shorter': ['line 00', 'li'], 'missing': []}
  for line in texts.get(damage, ['LINE 00', *(f'line {n}' for n in range(9))]):
    damaged_log.write(line)
  damaged_log.close()
  damaged_content = read_log(log_file)
  notes = []
  log = open_log(
    log_file,
    position,
    is_usable=lambda line: line.startswith(b'line '),
    note=notes.append,
  )
  log.write('after')
  log.close()
  usable = {
    'shorter': ['line 00'],
    'missing': [],
    'other': [f'line {n}' for n in range(6)],
  }[damage]
  assert read_log(log_file) == ''.join(f'{x}\n' for x in [*usable, 'after'])
  (text,) = notes
  assert f': {len(usable)} of 6 lines are used' in text
  copy = log_file.with_name('metrics.damaged_1.jsonl')
  assert copy.exists() == bool(damaged_content)
  if damaged_content:
    assert copy.read_text() == damaged_content


def test_a_line_that_is_changed_in_place_is_reported_at_the_next_sync(tmp_path):
  """The file keeps its size, and is the same file."""
  file, notes = epath.Path(tmp_path) / 'metrics.jsonl', []
  log = open_log(file, note=notes.append)
  log.write('reward 0.25')
  log.sync()
  with open(file, 'r+') as stream:
    stream.write('reward 0.75')
  log.write('reward 0.50')
  assert notes == []
  position = log.sync()
  assert notes == [
    f'{file} was moved, replaced or changed by another program',
    f'{file} is not what was saved: 2 of 2 lines are used; the file is kept as'
    ' metrics.damaged_1.jsonl',
  ]
  assert log.sync() == position
  assert len(notes) == 2
  log.close()


def test_damage_of_a_log_that_has_ended_is_described(log_file):
  positions = write_lines(log_file)
  assert describe_log_damage(log_file, positions[-1]) == ''
  after = 'has 8 bytes after those that were saved'
  assert describe_log_damage(log_file, positions[-2]) == after
  larger_position = positions[-1].copy()
  larger_position['size'] = 99
  assert (
    describe_log_damage(log_file, larger_position)
    == 'has 48 of the 99 bytes that were saved'
  )
  other_digest = positions[-1].copy()
  other_digest['sha256'] = ''
  assert describe_log_damage(log_file, other_digest) == 'is not what was saved'
  missing = log_file.with_name('missing.jsonl')
  assert describe_log_damage(missing, positions[-1]) == 'is missing or empty'


def test_parts_are_small_and_a_lost_part_is_noticed(bucket, monkeypatch):
  monkeypatch.setattr(log_files, '_MAX_PART_SIZE', 16)
  file = epath.Path(LOG_FILE)
  *_, position = write_lines(file)
  parts = bucket.names('run/metrics/')
  assert parts[0] == 'run/metrics/000000.jsonl'
  assert max(len(bucket.objects[name][0]) for name in parts) <= 16 + 8
  del bucket.objects[parts[0]]
  notes = []
  open_log(file, position, note=notes.append).close()
  assert 'has 24 of the 48 bytes that were saved: 3 of 6 lines' in notes[0]
  assert read_log(file) == 'line 03\nline 04\nline 05\n'


def test_reads_a_file_of_a_bucket_that_is_not_a_log(bucket):
  assert read_log(ROOT / 'config.json') is None
  bucket.put('run/config.json', b'{}')
  assert read_log(ROOT / 'config.json') == '{}'


def test_buffers_lines_in_a_bucket(bucket, monkeypatch):
  log = open_log(epath.Path(LOG_FILE))
  log.write('one')
  assert read_log(epath.Path(LOG_FILE)) is None
  log.flush()
  monkeypatch.setattr(log_files, '_FLUSH_INTERVAL', 0.0)
  log.write('two')
  assert read_log(epath.Path(LOG_FILE)) == 'one\ntwo\n'


@pytest.mark.parametrize('kind', ['hard', 'symbolic'])
def test_a_log_with_a_second_link_is_not_changed_under_the_other_name(
  tmp_path, kind
):
  """As in a copy of a run that consists of links (`cp -al`, `cp -as`)."""
  original = epath.Path(tmp_path) / 'metrics.jsonl'
  positions = write_lines(original)
  before = original.read_bytes()
  link = epath.Path(tmp_path) / 'copy.jsonl'
  if kind == 'hard':
    os.link(original, link)
  else:
    os.symlink(original, link)
  notes = []
  log = open_log(link, positions[2], note=notes.append)
  log.write('after')
  log.close()
  assert original.read_bytes() == before
  assert read_log(link) == before[:16].decode() + 'after\n'
  assert notes == []


def test_a_line_of_several_lines_is_refused(tmp_path):
  log = open_log(epath.Path(tmp_path) / 'metrics.jsonl')
  with pytest.raises(ValueError, match='must be one line, got'):
    log.write('a\nb')
  assert log.sync()['lines'] == 0
  log.close()
