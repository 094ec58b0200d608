# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, metrics and samples that were copied from a bucket to a disk, or back."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from covrl.run.checkpoint import CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.storage import log_files
from covrl.storage.append_log import describe_log_damage, open_log, read_log

LINES = [f'line {number}' for number in range(9)]


@pytest.fixture(params=['from a bucket', 'to a bucket'])
def places(request, bucket, tmp_path):
  """Returns a run directory, one for its copy, and a function that copies."""
  run, copy = tmp_path / 'run', tmp_path / 'copy'

  def download():
    for name in bucket.names('run/'):
      file = copy / name.removeprefix('run/')
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(bucket.objects[name][0])

  def upload():
    for file in run.rglob('*'):
      if file.is_file():
        bucket.put(f'copy/{file.relative_to(run)}', file.read_bytes())

  if request.param == 'from a bucket':
    return epath.Path('gs://bucket/run'), epath.Path(copy), download
  return epath.Path(run), epath.Path('gs://bucket/copy'), upload


def test_a_copied_checkpoint_is_whole_and_the_run_goes_on(places):
  run, copy, transfer = places
  arrays = {'a': jnp.arange(6.0), 'b': {'c': jnp.ones((2, 3), jnp.bfloat16)}}
  CheckpointStore(run / 'checkpoints', keep=2).save(1, arrays, {'at': 1})
  transfer()
  warnings = []
  store = CheckpointStore(copy / 'checkpoints', keep=2)
  checkpoint = store.newest_undamaged(strict=True, warn=warnings.append)
  assert checkpoint is not None
  jax.tree.map(
    np.testing.assert_array_equal, checkpoint.restore(arrays), arrays
  )
  assert store.replace_metadata({'at': 1.5})
  store.save(2, arrays, {'at': 2})
  for name in ('00000001', '00000002'):
    assert (copy / 'checkpoints' / name).is_dir()
  reopened = store.latest()
  assert reopened is not None
  jax.tree.map(np.testing.assert_array_equal, reopened.restore(arrays), arrays)
  assert warnings == []


def test_copied_samples_are_compared(places):
  run, copy, transfer = places
  directory = RunDirectory(run)
  for number in range(2):
    directory.write_jsonl(f'rollouts/iteration_{number:06d}.jsonl', [{'a': 1}])
  records = directory.records
  transfer()
  for damaged_name, num_warnings in (('other', 0), ('iteration_000001', 1)):
    (copy / 'rollouts' / f'{damaged_name}.jsonl').write_text('{"a": 2}\n')
    warnings = []
    RunDirectory(copy).check_records(records, warnings.append)
    assert len(warnings) == num_warnings
  assert '1 of 2 files are damaged: rollouts/iteration_000001' in warnings[0]


@pytest.mark.parametrize('lines_kept', [9, 6, 0])
def test_a_copied_log_is_read_and_goes_on_in_its_own_form(
  places, monkeypatch, lines_kept
):
  run, copy, transfer = places
  monkeypatch.setattr(log_files, '_MAX_PART_SIZE', 16)
  log = open_log(run / 'metrics.jsonl')
  positions = [log.sync()]
  for line in LINES:
    log.write(line)
    positions.append(log.sync())
  log.close()
  content = read_log(run / 'metrics.jsonl')
  transfer()
  file, notes = copy / 'metrics.jsonl', []
  assert read_log(file) == content
  assert describe_log_damage(file, positions[-1]) == ''
  log = open_log(file, positions[lines_kept], note=notes.append)
  log.write('after')
  log.close()
  expected = ''.join(f'{x}\n' for x in [*LINES[:lines_kept], 'after'])
  assert read_log(file) == expected
  in_parts = str(copy).startswith('gs://')
  assert (file.exists(), (copy / 'metrics').exists()) == (
    not in_parts,
    in_parts,
  )
  assert notes == []


def test_of_a_log_in_both_forms_the_longer_one_is_read(tmp_path):
  """As where a run that went on in a bucket is copied over an older copy of it."""
  file, parts = epath.Path(tmp_path) / 'metrics.jsonl', tmp_path / 'metrics'
  parts.mkdir()
  (parts / '000000.jsonl').write_text('one\n')
  (parts / '000001.jsonl').write_text('two\n')
  (parts / 'notes.jsonl').write_text('not a part\n')
  (parts / '000002.txt').write_text('nor this\n')
  assert read_log(file) == 'one\ntwo\n'
  file.write_text('one\n')
  assert read_log(file) == 'one\ntwo\n'
  file.write_text('one\ntwo\nthree\n')
  assert read_log(file) == 'one\ntwo\nthree\n'
  open_log(file).close()
  assert sorted(x.name for x in pathlib.Path(parts).iterdir()) == [
    '000002.txt',
    'notes.jsonl',
  ]
