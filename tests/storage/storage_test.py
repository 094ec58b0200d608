# SPDX-License-Identifier: Apache-2.0
"""Files, append-only logs and leases in buckets, against an emulated bucket."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import bucket
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from pretrained.fixtures import MODELS

from covrl import storage
from covrl.config import ConfigError, LoggingConfig
from covrl.data import open_records
from covrl.exit_codes import Exit
from covrl.pretrained import load_pretrained, save_pretrained
from covrl.pretrained.atomic_dir import atomic_directory
from covrl.run import lock
from covrl.run.directory import RunDirectory
from covrl.run.metrics_writer import MetricsWriter
from covrl.storage import StorageError, log_files
from covrl.storage.append_log import open_log, read_log
from covrl.train import CheckpointError, CheckpointStore

ROOT = epath.Path('gs://bucket/run')
LINES = 'gs://bucket/run/metrics.jsonl'


@pytest.fixture(scope='module')
def served():
  """Serves one bucket for the module: gcsfs keeps its first endpoint."""
  with (
    bucket.served() as (content, environment),
    pytest.MonkeyPatch.context() as patch,
  ):
    for name, value in environment.items():
      patch.setenv(name, value)
    storage.as_path(ROOT)
    yield content


@pytest.fixture
def objects(served):
  served.objects.clear()
  return served


def test_refuses_unsupported_schemes_and_missing_libraries(monkeypatch):
  with pytest.raises(ValueError, match='must be on a disk or begin with gs://'):
    storage.as_path('s3://bucket/run')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'needs gcsfs.*covrl\[gcs\]'):
    storage.as_path('gs://bucket/run')


def test_refuses_a_missing_bucket(objects):
  file = storage.as_path('gs://absent/run/.lock')
  with pytest.raises(
    ValueError, match=r'gs://absent/run/\.lock cannot be writ'
  ):
    storage.create_object(file, 'a')


def test_retries_broken_connections(objects):
  objects.broken = 2
  storage.write_atomically(ROOT / 'a', 'content')
  assert objects.broken == 0
  assert objects.text('run/a') == 'content'


def test_sees_objects_written_by_other_processes(objects):
  assert not ROOT.is_dir()
  objects.put('run/a/one.txt', b'1')
  assert ROOT.is_dir()
  assert [path.name for path in (ROOT / 'a').iterdir()] == ['one.txt']
  objects.put('run/a/two.txt', b'2')
  assert sorted(storage.digests(ROOT)) == ['a/one.txt', 'a/two.txt']
  assert [p.read_text() for p in sorted((ROOT / 'a').glob('t*.txt'))] == ['2']


def test_digests_differ_for_different_content(objects, tmp_path):
  for root in (ROOT, epath.Path(tmp_path)):
    storage.write_atomically(root / 'a' / 'b.json', 'before')
    before = storage.digests(root)
    storage.write_atomically(root / 'a' / 'b.json', 'behind')
    assert before.keys() == storage.digests(root).keys() == {'a/b.json'}
    assert before != storage.digests(root)
    storage.remove(root / 'a')
    storage.remove(root / 'a')
    assert storage.digests(root) == {}


def test_reads_parts_of_files(objects, tmp_path):
  numbers = np.arange(100, dtype=np.float32)
  for root in (ROOT, epath.Path(tmp_path)):
    (root / 'x.bin').write_bytes(b'head' + numbers.tobytes())
    found = np.zeros((3, 5), np.float32)
    storage.read_into(root / 'x.bin', 4 + 4 * 10, found)
    np.testing.assert_array_equal(found.ravel(), numbers[10:25])
    assert storage.file_size(root / 'x.bin') == 404
    with pytest.raises(ValueError, match='must have 424 bytes, got 404'):
      storage.read_into(root / 'x.bin', 364, found)


def test_copies_directories_to_and_from_a_bucket(objects, tmp_path):
  (tmp_path / 'sub').mkdir()
  for name in ('config.json', 'sub/weights', 'z'):
    (tmp_path / name).write_text(name)
  storage.upload(tmp_path, ROOT / 'model', last=['config.json'])
  generations = {name: g for name, (_, g) in objects.objects.items()}
  assert max(generations, key=lambda n: generations[n]).endswith('config.json')
  here = storage.local_copy(ROOT / 'model')
  assert (here / 'sub' / 'weights').read_text() == 'sub/weights'
  assert storage.local_copy(epath.Path(tmp_path)) == tmp_path


def test_writes_a_model_to_a_bucket_atomically(objects):
  def write(error=None):
    with atomic_directory('gs://bucket/model') as draft:
      (draft / 'config.json').write_text('{}')
      if error:
        raise error

  with pytest.raises(OSError, match='full'):
    write(OSError('full'))
  assert not objects.names()
  write()
  assert objects.names() == ['model/config.json']
  with pytest.raises(ValueError, match='must not exist or be empty'):
    write()


@pytest.fixture(params=['disk', 'bucket'])
def log_file(request, tmp_path, monkeypatch):
  """Returns the path of a log whose parts are small."""
  monkeypatch.setattr(log_files, '_MAX_PART_SIZE', 16)
  if request.param == 'disk':
    return epath.Path(tmp_path) / 'metrics.jsonl'
  request.getfixturevalue('objects')
  return epath.Path(LINES)


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
  whole = read_log(log_file)
  assert whole is not None
  assert len(whole) == positions[-1]['size'] == 48
  notes = []
  again = open_log(log_file, positions[lines], note=notes.append)
  assert again.sync() == positions[lines]
  again.write('after')
  again.close()
  assert read_log(log_file) == whole[: 8 * lines] + 'after\n'
  assert notes == []


@pytest.mark.parametrize('damage', ['shorter', 'other', 'missing'])
def test_a_damaged_log_is_copied_and_goes_on_after_its_usable_lines(
  log_file, damage
):
  *_, position = write_lines(log_file)
  other = open_log(log_file)
  texts = {'shorter': ['line 00', 'li'], 'missing': []}
  for line in texts.get(damage, ['LINE 00', *(f'line {n}' for n in range(9))]):
    other.write(line)
  other.close()
  before = read_log(log_file)
  notes = []
  log = open_log(
    log_file,
    position,
    is_usable=lambda line: line.startswith(b'line '),
    note=notes.append,
  )
  log.write('after')
  log.close()
  used = {
    'shorter': ['line 00'],
    'missing': [],
    'other': [f'line {n}' for n in range(6)],
  }[damage]
  assert read_log(log_file) == ''.join(f'{x}\n' for x in [*used, 'after'])
  (text,) = notes
  assert f': {len(used)} of 6 lines are used' in text
  copy = log_file.with_name('metrics.damaged_1.jsonl')
  assert copy.exists() == bool(before)
  if before:
    assert copy.read_text() == before


def test_parts_are_small_and_a_lost_part_is_noticed(objects, monkeypatch):
  monkeypatch.setattr(log_files, '_MAX_PART_SIZE', 16)
  file = epath.Path(LINES)
  *_, position = write_lines(file)
  parts = objects.names('run/metrics/')
  assert parts[0] == 'run/metrics/000000.jsonl'
  assert max(len(objects.objects[name][0]) for name in parts) <= 16 + 8
  del objects.objects[parts[0]]
  notes = []
  open_log(file, position, note=notes.append).close()
  assert 'has 24 of the 48 bytes that were saved: 3 of 6 lines' in notes[0]
  assert read_log(file) == 'line 03\nline 04\nline 05\n'


def test_reads_a_file_of_a_bucket_that_is_not_a_log(objects):
  assert read_log(ROOT / 'config.json') is None
  objects.put('run/config.json', b'{}')
  assert read_log(ROOT / 'config.json') == '{}'


def test_buffers_lines_in_a_bucket(objects, monkeypatch):
  lines = open_log(epath.Path(LINES))
  lines.write('one')
  assert read_log(epath.Path(LINES)) is None
  lines.flush()
  monkeypatch.setattr(log_files, '_FLUSH_INTERVAL', 0.0)
  lines.write('two')
  assert read_log(epath.Path(LINES)) == 'one\ntwo\n'


def test_writes_metrics_and_events_to_a_bucket(objects):
  writer = MetricsWriter(LINES, LoggingConfig(), name='toy')
  writer.write(step=1, iteration=0, phase='train', reward=0.25)
  saved = writer.sync()
  first = objects.names('run/tb/train/')
  assert len(first) == 1
  writer.write(step=2, iteration=0, phase='train', reward=0.5)
  writer.close()
  writer = MetricsWriter(LINES, LoggingConfig(), name='toy', saved=saved)
  writer.write(step=2, iteration=0, phase='train', reward=0.75)
  writer.close()
  assert len(objects.names('run/tb/train/')) == 2
  text = read_log(epath.Path(LINES))
  assert text is not None
  assert text.count('\n') == 2
  assert '0.75' in text
  assert '0.5' not in text


def test_refuses_a_live_lease_and_takes_an_expired_one(objects, monkeypatch):
  monkeypatch.setattr(lock, '_RENEWAL_INTERVAL', 0.1)
  monkeypatch.setattr(lock, '_EXPIRY', 1.0)
  directory = RunDirectory('gs://bucket/run')
  with directory.locked():
    other = RunDirectory('gs://bucket/run').locked()
    with pytest.raises(ConfigError, match='is in use by another process'):
      other.__enter__()
    assert objects.names() == ['run/.lock']
  assert not objects.names()
  # Its process was killed.
  objects.put('run/.lock', b'{"process": "another", "beat": 7}')
  began = time.monotonic()
  with directory.locked():
    assert time.monotonic() - began > 1.0
    assert 'another' not in objects.text('run/.lock')


def test_only_one_process_acquires_a_lease(objects, monkeypatch):
  monkeypatch.setattr(lock, '_RENEWAL_INTERVAL', 0.1)
  taken, refused = [], []

  def run():
    try:
      with RunDirectory('gs://bucket/run').locked():
        taken.append(1)
        time.sleep(2.0)
    except ConfigError:
      refused.append(1)

  threads = [threading.Thread(target=run) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (len(taken), len(refused)) == (1, 3)


def test_exits_when_the_lease_is_lost(served, objects):
  script = (
    'import time\n'
    'from covrl.run import lock\n'
    'from covrl import storage\n'
    'lock._RENEWAL_INTERVAL = 0.2\n'
    'with lock.acquire(storage.as_path("gs://bucket/run")):\n'
    '  print("in", flush=True)\n'
    '  time.sleep(600)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', script],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  try:
    assert process.stdout is not None
    assert process.stdout.readline() == 'in\n'
    # A lease whose object is gone is free.
    own = json.loads(objects.text('run/.lock'))['process']
    with objects.lock:
      del objects.objects['run/.lock']
    deadline = time.monotonic() + 60
    while 'run/.lock' not in objects.names() and time.monotonic() < deadline:
      time.sleep(0.05)
    assert json.loads(objects.text('run/.lock'))['process'] == own
    objects.put('run/.lock', b'{"process": "another", "beat": 0}')
    _, stderr = process.communicate(timeout=300)
  finally:
    process.kill()
  assert process.returncode == Exit.REFUSED == 2
  assert stderr.startswith('covrl: another run has taken gs://bucket/run')
  assert stderr.count('\n') == 1


def test_reads_problems_from_a_bucket(objects, tmp_path):
  from array_record.python.array_record_module import ArrayRecordWriter

  rows = [{'question': f'{n} + 1', 'answer': n + 1} for n in range(3)]
  text = '\n'.join(map(json.dumps, rows)).encode()
  objects.put('data/sums.jsonl', text)
  writer = ArrayRecordWriter(str(tmp_path / 'sums'), 'group_size:1')
  for row in rows:
    writer.write(json.dumps(row).encode())
  writer.close()
  objects.put('data/sums.array_record', (tmp_path / 'sums').read_bytes())
  for name in ('sums.jsonl', 'sums.array_record'):
    records = open_records(f'gs://bucket/data/{name}')
    assert list(records) == rows
    assert records.file == f'gs://bucket/data/{name}'
  with pytest.raises(ValueError, match=r'none\.jsonl must be a file of'):
    open_records('gs://bucket/data/none.jsonl')


def test_reads_and_writes_weights_in_a_bucket(objects):
  for file in (MODELS / 'qwen2').iterdir():
    objects.put(f'qwen2/{file.name}', file.read_bytes())
  policy, params = load_pretrained('gs://bucket/qwen2')
  assert policy.origin == 'gs://bucket/qwen2'
  _, expected = load_pretrained(MODELS / 'qwen2')
  save_pretrained('gs://bucket/again', policy, params)
  _, again = load_pretrained('gs://bucket/again')
  for tree in (params, again):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_saves_and_restores_checkpoints_in_a_bucket(objects):
  store = CheckpointStore('gs://bucket/run/checkpoints', keep=1)
  assert store.latest() is None
  arrays = {'a': jnp.arange(6.0), 'b': {'c': jnp.ones((2, 3), jnp.bfloat16)}}
  for position in (1, 2):
    store.save(position, arrays, {'metrics_size': position})
  assert {n.split('/')[2] for n in objects.names('run/')} == {'00000002'}
  saved = store.latest()
  assert saved is not None
  assert saved.notes == {'metrics_size': 2}
  jax.tree.map(np.testing.assert_array_equal, saved.restore(arrays), arrays)
  like = arrays['b']
  jax.tree.map(
    np.testing.assert_array_equal, saved.restore_subtree('b', like), like
  )
  # A checkpoint without its manifest, as after a kill while saving, is ignored.
  manifest = objects.objects.pop('run/checkpoints/00000002/manifest.json')
  assert store.latest() is None
  objects.objects['run/checkpoints/00000002/manifest.json'] = manifest
  name = max(saved.files, key=lambda name: int(saved.files[name].split(':')[0]))
  whole = f'run/checkpoints/00000002/{name}'
  content, _ = objects.objects[whole]
  objects.put(whole, bytes([content[0] ^ 1]) + content[1:])
  with pytest.raises(CheckpointError, match='is not what was written'):
    saved.restore(arrays)
  del objects.objects[whole]
  with pytest.raises(CheckpointError, match='is missing'):
    saved.restore(arrays)


@pytest.fixture
def checkpoints(objects):
  """Returns a store in the bucket with the checkpoints 0 and 4."""
  store = CheckpointStore('gs://bucket/run/checkpoints', keep=2)
  for position in (0, 4):
    store.save(position, {'a': jnp.full(3, position)}, {})
  return store


@pytest.mark.parametrize('refused', ['/d/', 'manifest.json'])
def test_a_refused_write_is_one_sentence_and_leaves_the_last_checkpoint(
  objects, checkpoints, monkeypatch, capfd, refused
):
  monkeypatch.setattr(objects, 'refused', refused)
  with pytest.raises(
    StorageError,
    match=r'checkpoints/00000008\S* cannot be written: '
    r'(PERMISSION_DENIED|.*must not be written)',
  ) as caught:
    checkpoints.save(8, {'a': jnp.full(3, 8)}, {})
  assert '\n' not in str(caught.value)
  assert capfd.readouterr() == ('', '')
  monkeypatch.setattr(objects, 'refused', '(?!)')
  assert not any('00000008' in name for name in objects.names())
  found = checkpoints.newest_whole()
  assert found is not None
  assert found.position == 4
  checkpoints.save(8, {'a': jnp.full(3, 8)}, {})
  assert checkpoints.newest_whole() is not None
  assert checkpoints.position == 8


def test_a_missing_object_is_noticed_and_the_checkpoint_set_aside(
  objects, checkpoints
):
  lost = next(name for name in objects.names() if '00000004/arrays/d/' in name)
  del objects.objects[lost]
  warnings = []
  found = checkpoints.newest_whole(warn=warnings.append)
  assert found is not None
  assert found.position == 0
  assert 'is missing; it is kept as 00000004.damaged_1' in warnings[0]
  assert {name.split('/')[2] for name in objects.names()} == {
    '00000000',
    '00000004.damaged_1',
  }
  again = CheckpointStore('gs://bucket/run/checkpoints', keep=2)
  assert again.newest_whole() is not None
  assert again.position == 0


def test_refused_writes_of_files_are_one_sentence(objects, monkeypatch):
  writer = MetricsWriter(LINES, LoggingConfig(), name='toy')
  writer.write(step=1, iteration=0, phase='train', reward=0.25)
  monkeypatch.setattr(objects, 'refused', 'run/')
  with pytest.raises(StorageError, match=r'000000.jsonl cannot be written: '):
    writer.sync()
  with pytest.raises(StorageError, match=r'config.json cannot be written: '):
    RunDirectory(ROOT).write_json('config.json', {})
  monkeypatch.undo()
  writer.close()


def test_keeps_compiled_programs_in_a_bucket(objects):
  script = (
    'import jax\n'
    'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)\n'
    'jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)\n'
    'seen = []\n'
    'jax.monitoring.register_event_listener(\n'
    '  lambda event, **_: seen.append(event))\n'
    'jax.jit(lambda x: x * 2 + 1)(3.0).block_until_ready()\n'
    'print("/jax/compilation_cache/cache_hits" in seen)\n'
  )
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': 'gs://bucket/programs',
    'XLA_FLAGS': '',
  }
  outputs = [
    subprocess.run(
      [sys.executable, '-c', script],
      env=environment,
      capture_output=True,
      text=True,
      check=True,
      timeout=300,
    ).stdout
    for _ in range(2)
  ]
  assert outputs == ['False\n', 'True\n']
  assert objects.names('programs/')
