# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in an emulated bucket: saves, refused writes and lost objects."""

import time

import bucket as bucket_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.storage import StorageError
from covrl.train import CheckpointError, CheckpointStore


def test_saves_and_restores_checkpoints_in_a_bucket(bucket):
  store = CheckpointStore('gs://bucket/run/checkpoints', keep=1)
  assert store.latest() is None
  arrays = {'a': jnp.arange(6.0), 'b': {'c': jnp.ones((2, 3), jnp.bfloat16)}}
  for position in (1, 2):
    store.save(position, arrays, {'metrics_size': position})
  assert {n.split('/')[2] for n in bucket.names('run/')} == {'00000002'}
  saved = store.latest()
  assert saved is not None
  assert saved.metadata == {'metrics_size': 2}
  jax.tree.map(np.testing.assert_array_equal, saved.restore(arrays), arrays)
  like = arrays['b']
  jax.tree.map(
    np.testing.assert_array_equal, saved.restore_subtree('b', like), like
  )
  # A checkpoint without its manifest, as after a kill while saving, is ignored.
  manifest = bucket.objects.pop('run/checkpoints/00000002/manifest.json')
  assert store.latest() is None
  bucket.objects['run/checkpoints/00000002/manifest.json'] = manifest
  name = max(saved.files, key=lambda name: int(saved.files[name].split(':')[0]))
  object_name = f'run/checkpoints/00000002/{name}'
  content, _ = bucket.objects[object_name]
  bucket.put(object_name, bytes([content[0] ^ 1]) + content[1:])
  with pytest.raises(CheckpointError, match='is not what was written'):
    saved.restore(arrays)
  del bucket.objects[object_name]
  with pytest.raises(CheckpointError, match='is missing'):
    saved.restore(arrays)


@pytest.fixture
def checkpoints(bucket):
  """Returns a store in the bucket with the checkpoints 0 and 4."""
  store = CheckpointStore('gs://bucket/run/checkpoints', keep=2)
  for position in (0, 4):
    store.save(position, {'a': jnp.full(3, position)}, {})
  return store


@pytest.mark.parametrize('refused', ['/d/', 'manifest.json'])
def test_a_refused_write_raises_one_sentence_and_leaves_the_last_checkpoint(
  bucket, checkpoints, monkeypatch, capfd, refused
):
  monkeypatch.setattr(bucket, 'refused', refused)
  with pytest.raises(
    StorageError,
    match=r'checkpoints/00000008\S* cannot be written: '
    r'(PERMISSION_DENIED|.*must not be written)',
  ) as caught:
    checkpoints.save(8, {'a': jnp.full(3, 8)}, {})
  assert '\n' not in str(caught.value)
  assert capfd.readouterr() == ('', '')
  monkeypatch.setattr(bucket, 'refused', '(?!)')
  assert not any('00000008' in name for name in bucket.names())
  restored = checkpoints.newest_undamaged()
  assert restored is not None
  assert restored.position == 4
  checkpoints.save(8, {'a': jnp.full(3, 8)}, {})
  assert checkpoints.newest_undamaged() is not None
  assert checkpoints.position == 8


def test_writes_that_end_after_the_error_leave_nothing(
  bucket, checkpoints, monkeypatch
):
  monkeypatch.setattr(bucket, 'refused', 'array_metadatas')
  monkeypatch.setattr(bucket, 'delayed', '/d/')
  written = []
  put = bucket.put
  monkeypatch.setattr(
    bucket,
    'put',
    lambda name, content: (written.append(name), put(name, content)),
  )
  with pytest.raises(StorageError, match='cannot be written'):
    checkpoints.save(8, {'a': jnp.full(3, 8)}, {})
  time.sleep(bucket_server.DELAY)
  assert any('00000008' in name and '/d/' in name for name in written)
  assert not any('00000008' in name for name in bucket.names())


def test_a_missing_object_is_noticed_and_the_checkpoint_set_aside(
  bucket, checkpoints
):
  lost = next(name for name in bucket.names() if '00000004/arrays/d/' in name)
  del bucket.objects[lost]
  warnings = []
  restored = checkpoints.newest_undamaged(warn=warnings.append)
  assert restored is not None
  assert restored.position == 0
  assert 'is missing; it is kept as 00000004.damaged_1' in warnings[0]
  assert {name.split('/')[2] for name in bucket.names()} == {
    '00000000',
    '00000004.damaged_1',
  }
  reopened = CheckpointStore('gs://bucket/run/checkpoints', keep=2)
  assert reopened.newest_undamaged() is not None
  assert reopened.position == 0
