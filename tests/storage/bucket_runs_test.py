# SPDX-License-Identifier: Apache-2.0
"""Data, models, metrics and compiled programs of runs in an emulated bucket."""

import json
import logging
import operator
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from pretrained.fixtures import MODELS

from covrl import storage
from covrl.config import LoggingConfig
from covrl.data import open_records
from covrl.pretrained import load_pretrained, save_pretrained
from covrl.pretrained.atomic_dir import atomic_directory
from covrl.report.inputs.run_data import load_run
from covrl.run.checkpoint import CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.run.metrics_writer import MetricsWriter
from covrl.storage import StorageError, read_failure_message
from covrl.storage.append_log import read_log

ROOT = epath.Path('gs://bucket/run')
LOG_FILE = 'gs://bucket/run/metrics.jsonl'


def test_reads_problems_from_a_bucket(bucket, tmp_path):
  from array_record.python.array_record_module import ArrayRecordWriter

  rows = [{'question': f'{n} + 1', 'answer': n + 1} for n in range(3)]
  text = '\n'.join(map(json.dumps, rows)).encode()
  bucket.put('data/sums.jsonl', text)
  writer = ArrayRecordWriter(str(tmp_path / 'sums'), 'group_size:1')
  for row in rows:
    writer.write(json.dumps(row).encode())
  writer.close()
  bucket.put('data/sums.array_record', (tmp_path / 'sums').read_bytes())
  for name in ('sums.jsonl', 'sums.array_record'):
    records = open_records(f'gs://bucket/data/{name}')
    assert list(records) == rows
    assert records.file == f'gs://bucket/data/{name}'
  with pytest.raises(ValueError, match=r'none\.jsonl must be a file of'):
    open_records('gs://bucket/data/none.jsonl')


def test_reads_and_writes_weights_in_a_bucket(bucket):
  for file in (MODELS / 'qwen2').iterdir():
    bucket.put(f'qwen2/{file.name}', file.read_bytes())
  policy, params = load_pretrained('gs://bucket/qwen2')
  assert policy.origin == 'gs://bucket/qwen2'
  _, expected = load_pretrained(MODELS / 'qwen2')
  save_pretrained('gs://bucket/again', policy, params)
  _, saved_again = load_pretrained('gs://bucket/again')
  for tree in (params, saved_again):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_writes_a_model_to_a_bucket_atomically(bucket):
  def write(error=None):
    with atomic_directory('gs://bucket/model') as draft:
      (draft / 'config.json').write_text('{}')
      if error:
        raise error

  with pytest.raises(OSError, match='full'):
    write(OSError('full'))
  assert not bucket.names()
  write()
  assert bucket.names() == ['model/config.json']
  with pytest.raises(ValueError, match='must not exist or be empty'):
    write()


def test_writes_metrics_and_events_to_a_bucket(bucket):
  writer = MetricsWriter(LOG_FILE, LoggingConfig(), name='toy')
  writer.write(step=1, iteration=0, phase='train', reward=0.25)
  saved = writer.sync()
  event_files = bucket.names('run/tb/train/')
  assert len(event_files) == 1
  writer.write(step=2, iteration=0, phase='train', reward=0.5)
  writer.close()
  writer = MetricsWriter(LOG_FILE, LoggingConfig(), name='toy', saved=saved)
  writer.write(step=2, iteration=0, phase='train', reward=0.75)
  writer.close()
  assert len(bucket.names('run/tb/train/')) == 2
  text = read_log(epath.Path(LOG_FILE))
  assert text is not None
  assert text.count('\n') == 2
  assert '0.75' in text
  assert '0.5' not in text


def test_the_lease_is_checked_before_buffered_lines_are_stored(bucket):
  stored_at_checks = []
  writer = MetricsWriter(
    LOG_FILE,
    LoggingConfig(tensorboard=False),
    name='toy',
    before_write=lambda: stored_at_checks.append(bucket.names('run/metrics/')),
  )
  writer.write(step=1, iteration=0, phase='train', reward=0.25)
  writer.sync()
  assert stored_at_checks == [[], []]
  writer.write(step=2, iteration=0, phase='train', reward=0.5)
  before = bucket.objects['run/metrics/000000.jsonl']
  stored_at_checks.clear()
  writer.close()
  assert len(stored_at_checks) == 1
  assert bucket.objects['run/metrics/000000.jsonl'] != before


def test_refused_writes_of_files_raise_one_sentence(bucket, monkeypatch):
  writer = MetricsWriter(LOG_FILE, LoggingConfig(), name='toy')
  writer.write(step=1, iteration=0, phase='train', reward=0.25)
  monkeypatch.setattr(bucket, 'refused', 'run/')
  with pytest.raises(StorageError, match=r'000000.jsonl cannot be written: '):
    writer.sync()
  with pytest.raises(StorageError, match=r'config.json cannot be written: '):
    RunDirectory(ROOT).write_json('config.json', {})
  monkeypatch.undo()
  writer.close()


@pytest.mark.parametrize('name', ['checkpoints', 'rollouts', 'metrics'])
def test_a_directory_that_cannot_be_listed_is_an_error_and_not_absent(
  bucket, monkeypatch, name
):
  bucket.put('run/config.json', b'{}')
  for file in (
    'checkpoints/0/manifest.json',
    'rollouts/iteration_000001.jsonl',
    'metrics/000000.jsonl',
  ):
    bucket.put(f'run/{file}', b'{}')
  monkeypatch.setattr(bucket, 'unlisted', f'run/{name}')
  read = {
    'checkpoints': CheckpointStore(ROOT / 'checkpoints', keep=1).latest,
    'rollouts': lambda: load_run(ROOT).rollout_files,
    'metrics': lambda: read_log(ROOT / 'metrics.jsonl'),
  }[name]
  with pytest.raises(OSError) as error:
    read()
  sentence = read_failure_message(error.value)
  assert sentence is not None
  assert sentence.startswith(
    f'gs://bucket/run/{name} cannot be read: forbidden'
  )
  assert 'rate limit exceeded' in sentence


@pytest.mark.parametrize('message', ['Bucket not valid', 'invalid bucket'])
@pytest.mark.parametrize(
  'examine', [operator.methodcaller('exists'), storage.is_directory]
)
def test_a_bucket_that_answers_with_errors_is_one_sentence(
  bucket, monkeypatch, caplog, message, examine
):
  monkeypatch.setattr(bucket, 'failure', (400, message))
  with pytest.raises(Exception, match=message) as caught:
    examine(ROOT)
  sentence = read_failure_message(caught.value)
  assert sentence is not None
  assert 'cannot be read: ' in sentence
  assert '\n' not in sentence
  assert all(record.name != 'gcsfs' for record in caplog.records)


@pytest.mark.parametrize(
  'examine',
  [operator.methodcaller('exists'), storage.is_directory, storage.entries],
)
def test_a_request_to_a_bucket_that_takes_too_long_is_one_sentence(
  bucket, monkeypatch, examine
):
  async def request(*arguments, **options):
    raise TimeoutError

  monkeypatch.setattr('gcsfs.core.GCSFileSystem._request', request)
  with pytest.raises(OSError) as caught:
    examine(epath.Path('gs://bucket/late'))
  sentence = read_failure_message(caught.value)
  assert sentence is not None
  assert 'cannot be read: ' in sentence


@pytest.mark.parametrize(
  ('error', 'is_reported'),
  [(ValueError('Bad Request'), True), (MemoryError(), False)],
)
def test_only_failed_requests_are_errors_of_a_bucket(error, is_reported):
  client: dict[str, Any] = {'__name__': 'gcsfs.core'}
  exec('def fail(error):\n  raise error', client)
  with pytest.raises(type(error)) as caught:
    client['fail'](error)
  sentence = read_failure_message(caught.value)
  assert sentence == (
    'a bucket cannot be read: Bad Request' if is_reported else None
  )


def test_failures_that_the_client_only_logs_are_not_hidden(caplog):
  logger = logging.getLogger('gcsfs')
  try:
    raise OSError('closed')
  except OSError:
    logger.exception('deferred close failed')
  assert [record.message for record in caplog.records] == [
    'deferred close failed'
  ]


def test_keeps_compiled_programs_in_a_bucket(bucket):
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
  assert bucket.names('programs/')
