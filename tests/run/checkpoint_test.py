# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are atomic and exact, and damage is detected."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run.stored_checkpoints import flip, latest

import covrl
from covrl.parallel import sharding
from covrl.run import checkpoint_files
from covrl.run.checkpoint import MANIFEST, CheckpointError, CheckpointStore
from covrl.storage import write_atomically

MESHES = ((8,), (2, 2, 2))


def training_state():
  """Returns a training state with values that a conversion would change."""
  rng = np.random.default_rng(0)
  params = {
    'matrix': rng.normal(size=(8, 16)).astype(np.float32),
    'half': jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16),
    'odd': np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45], np.float32),
  }
  token_tx = optax.chain(
    covrl.kl_cov(0.02, optax.linear_schedule(1.0, 0.0, 10)),
    covrl.entropy_bonus(0.1),
  )
  return {
    'state': {
      'trainable': params,
      'frozen': {},
      'opt_state': optax.adam(1e-3).init(params),
      'token_state': token_tx.init(covrl.TokenStats.template()),
      'step': np.asarray(1 << 30, np.int32),
    },
    'mask': rng.random((8, 3)) < 0.5,
  }


def sharding_of(leaf, mesh):
  """Returns a sharding that differs between the meshes."""
  axes = ('batch', 'mlp') if jnp.ndim(leaf) == 2 else (None,) * jnp.ndim(leaf)
  rules = sharding.TRAIN_RULES
  return sharding.fitted_sharding(mesh, axes, jnp.shape(leaf), rules)


def put_on_mesh(mesh, arrays):
  return jax.tree.map(
    lambda leaf: jax.device_put(leaf, sharding_of(leaf, mesh)), arrays
  )


def abstract_on_mesh(mesh, arrays):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      jnp.shape(leaf), leaf.dtype, sharding=sharding_of(leaf, mesh)
    ),
    arrays,
  )


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for actual_leaf, expected_leaf in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert actual_leaf.dtype == expected_leaf.dtype
    assert actual_leaf.shape == expected_leaf.shape
    assert (
      np.asarray(actual_leaf).tobytes() == np.asarray(expected_leaf).tobytes()
    )


def test_all_files_are_on_the_disk_before_the_manifest_names_them(
  tmp_path, monkeypatch
):
  """Of a file that was not forced to the disk a power cut leaves an empty one."""
  synced, unsynced = set(), []
  fsync, write_manifest = os.fsync, checkpoint_files.write_manifest

  def recording_fsync(descriptor):
    fsync(descriptor)
    synced.add(os.fstat(descriptor).st_ino)

  def check_before_manifest(path, *args):
    folder = pathlib.Path(path)
    below = [*folder.rglob('*')]
    for each in (*below, folder, *folder.parents[:3]):
      if each.stat().st_ino not in synced:
        unsynced.append(each.name)
    assert len(below) > 8
    write_manifest(path, *args)

  monkeypatch.setattr(os, 'fsync', recording_fsync)
  monkeypatch.setattr(checkpoint_files, 'write_manifest', check_before_manifest)
  CheckpointStore(tmp_path / 'run/checkpoints', keep=1).save(
    3, training_state(), {}
  )
  assert unsynced == []


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Returns the directory of a checkpoint saved on eight devices."""
  directory = tmp_path_factory.mktemp('saved')
  store = CheckpointStore(directory, keep=1)
  store.save(
    12, put_on_mesh(sharding.make_mesh((8,)), training_state()), {'rate': 0.1}
  )
  return directory


@pytest.fixture
def copied(saved, tmp_path):
  """Returns a copy of the directory, to be damaged."""
  return shutil.copytree(saved, tmp_path / 'copied')


@pytest.mark.parametrize('shape', MESHES)
def test_restores_bit_for_bit_on_any_mesh(saved, shape):
  mesh = sharding.make_mesh(shape)
  checkpoint = latest(CheckpointStore(saved, keep=1))
  restored = checkpoint.restore(abstract_on_mesh(mesh, training_state()))
  assert_same(restored, training_state())
  matrix = restored['state']['trainable']['matrix']
  assert matrix.sharding == sharding_of(matrix, mesh)
  assert checkpoint.position == 12
  assert checkpoint.metadata == {'rate': 0.1}


@pytest.mark.parametrize('shape', MESHES)
def test_restores_a_subtree(saved, shape):
  mesh = sharding.make_mesh(shape)
  expected = training_state()['state']['trainable']
  checkpoint = latest(CheckpointStore(saved, keep=1))
  restored = checkpoint.restore_subtree(
    'state.trainable', abstract_on_mesh(mesh, expected)
  )
  assert_same(restored, expected)
  matrix = restored['matrix']
  assert matrix.sharding == sharding_of(matrix, mesh)


def key_data(tree):
  """Returns a tree with the integers of its random keys in their place."""
  return jax.tree.map(
    lambda leaf: (
      jax.random.key_data(leaf)
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    ),
    tree,
  )


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg', 'unsafe_rbg'])
def test_restores_typed_random_keys(tmp_path, impl):
  """States of parameter chains that draw random numbers have such keys."""
  mesh = sharding.make_mesh((8,))
  tx = optax.add_noise(0.01, 0.55, jax.random.key(3, impl=impl))
  state = {
    'opt_state': tx.init({'w': jnp.ones(3)}),
    'keys': jax.random.split(jax.random.key(4, impl=impl), 3),
  }
  state = jax.device_put(state, sharding.replicated(mesh))
  store = CheckpointStore(tmp_path, keep=1)
  store.save(1, {'state': state}, {})
  like = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding.replicated(mesh)
    ),
    state,
  )
  checkpoint = latest(store)
  for restored in (
    checkpoint.restore({'state': like})['state'],
    checkpoint.restore_subtree('state', like),
  ):
    assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.sharding), restored) == (
      jax.tree.map(lambda leaf: (leaf.dtype, leaf.sharding), state)
    )
    assert_same(*map(key_data, (restored, state)))


def test_restores_host_arrays_as_host_arrays(tmp_path):
  store = CheckpointStore(tmp_path, keep=1)
  arrays = {'order': np.arange(5, dtype=np.int32), 'mask': np.eye(2) > 0}
  store.save(1, arrays, {})
  restored = latest(store).restore(jax.tree.map(np.zeros_like, arrays))
  assert_same(restored, arrays)


def test_keeps_the_newest_checkpoints(tmp_path):
  store = CheckpointStore(tmp_path / 'checkpoints', keep=2)
  assert store.latest() is None
  for position in (3, 1000, 20):
    store.save(position, {'x': np.full(2, position)}, {'at': position})
  names = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
  assert names == ['00000020', '00001000']
  assert latest(store).metadata == {'at': 1000}


def test_of_a_checkpoint_that_is_a_link_only_the_link_is_removed(tmp_path):
  store = CheckpointStore(tmp_path / 'checkpoints', keep=1)
  store.save(1, {'x': np.zeros(2)}, {})
  target = tmp_path / 'other_disk'
  (tmp_path / 'checkpoints' / '00000001').rename(target)
  (tmp_path / 'checkpoints' / '00000001').symlink_to(target)
  assert latest(store).position == 1
  store.save(2, {'x': np.zeros(2)}, {})
  names = [path.name for path in (tmp_path / 'checkpoints').iterdir()]
  assert names == ['00000002']
  assert (target / MANIFEST).exists()


def test_a_save_replaces_a_checkpoint_of_the_same_position(tmp_path):
  store = CheckpointStore(tmp_path, keep=2)
  for value in (1, 2):
    store.save(7, {'x': np.full(2, value)}, {'value': value})
  restored = latest(store).restore({'x': np.zeros(2, int)})
  assert restored['x'].tolist() == [2, 2]
  assert latest(store).metadata == {'value': 2}


def test_refuses_to_write_where_another_run_has_gone_on(tmp_path):
  """As where two machines keep copies of a run directory the same."""
  store = CheckpointStore(tmp_path, keep=2)
  store.save(3, {'x': np.zeros(2)}, {})
  other = CheckpointStore(tmp_path, keep=1)
  assert other.latest() is not None
  other.save(5, {'x': np.ones(2)}, {'of': 'the other run'})
  sentence = (
    'no later checkpoint than 00000003 of this run, got 00000005: another'
  )
  for save in (
    lambda: store.save(4, {'x': np.zeros(2)}, {}),
    lambda: store.save(6, {'x': np.zeros(2)}, {}),
    lambda: store.replace_metadata({}),
  ):
    with pytest.raises(CheckpointError, match=sentence):
      save()
  assert latest(CheckpointStore(tmp_path, keep=1)).metadata == {
    'of': 'the other run'
  }


def test_ignores_unfinished_checkpoints(copied):
  store = CheckpointStore(copied, keep=1)
  unfinished = copied / '00000013'
  shutil.copytree(copied / '00000012', unfinished)
  (unfinished / MANIFEST).unlink()
  (copied / 'notes.txt').write_text('not a checkpoint either')
  assert latest(store).position == 12
  store.save(13, {'x': np.zeros(2)}, {})
  assert latest(store).position == 13
  assert latest(store).restore({'x': np.ones(2)})['x'].tolist() == [0, 0]


def test_an_interrupted_removal_leaves_no_checkpoint(
  copied, tmp_path, monkeypatch
):
  def interrupt(path):
    raise KeyboardInterrupt

  store = CheckpointStore(copied, keep=1)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'rmtree', interrupt)
    with pytest.raises(KeyboardInterrupt):
      store.save(12, {'x': np.zeros(2)}, {})
  assert store.latest() is None


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('damage', ['flipped', 'truncated', 'missing'])
def test_detects_damage_of_any_file(copied, damage, seed):
  store = CheckpointStore(copied, keep=1)
  directory = copied / '00000012'
  files = [file for file in directory.rglob('*') if file.is_file()]
  assert len(files) > 3
  for file in files:
    content = file.read_bytes()
    if file.name == MANIFEST and damage == 'missing':
      continue
    if damage == 'flipped':
      flip(file, seed)
    elif damage == 'truncated':
      file.write_bytes(content[: len(content) * seed // 3])
    else:
      file.unlink()
    name = str(file.relative_to(directory))
    reason = (
      'is missing'
      if damage == 'missing'
      else '(is not what was written|cannot be read)'
    )
    sentence = (
      rf'^the checkpoint {directory} is damaged: {name} {reason}; remove the '
      r'directory to use the one before$'
    )
    with pytest.raises(CheckpointError, match=sentence):
      latest(store).restore(
        abstract_on_mesh(sharding.make_mesh((8,)), training_state())
      )
    file.write_bytes(content)


@pytest.mark.parametrize(
  'text', ['', '{', '[]', 'null', '{}', '{"notes": {}}', '[' * 200_000]
)
def test_refuses_an_unreadable_manifest(copied, text):
  (copied / '00000012' / MANIFEST).write_text(text)
  with pytest.raises(CheckpointError, match=f'{MANIFEST} cannot be read'):
    CheckpointStore(copied, keep=1).latest()


def test_refuses_an_edited_manifest(copied):
  file = copied / '00000012' / MANIFEST
  manifest = json.loads(file.read_text())
  manifest['notes']['rate'] = 0.2
  file.write_text(json.dumps(manifest))
  with pytest.raises(CheckpointError, match='is not what was written'):
    CheckpointStore(copied, keep=1).latest()


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    (
      {'matrix': np.zeros((8, 15), np.float32)},
      r'matrix must be float32\[8, 15\], got float32\[8, 16\]',
    ),
    (
      {'matrix': np.zeros((8, 16), np.int32)},
      r'matrix must be int32\[8, 16\], got float32\[8, 16\]',
    ),
    (
      {'matrix': jnp.zeros((8, 16), jnp.bfloat16)},
      r'matrix must be bfloat16\[8, 16\], got float32\[8, 16\]',
    ),
    (
      {'more': np.zeros(3, np.float32)},
      r'more must be float32\[3\], got nothing',
    ),
    ({'odd': None}, r'odd must be nothing, got float32\[5\]'),
  ],
)
def test_refuses_a_checkpoint_of_other_shapes(saved, change, reason):
  checkpoint = latest(CheckpointStore(saved, keep=1))
  mesh = sharding.make_mesh((8,))
  other_state = training_state()
  other_state['state']['trainable'] |= change
  with pytest.raises(CheckpointError, match=f'of another program: .*{reason}'):
    checkpoint.restore(abstract_on_mesh(mesh, other_state))
  with pytest.raises(CheckpointError, match=f'of another program: {reason}'):
    checkpoint.restore_subtree(
      'state.trainable',
      abstract_on_mesh(mesh, other_state['state']['trainable']),
    )


def test_writes_files_atomically(tmp_path, monkeypatch):
  file = tmp_path / 'file.json'
  write_atomically(file, 'before')
  with monkeypatch.context() as patch:
    patch.setattr('os.fsync', lambda _: (_ for _ in ()).throw(OSError('full')))
    with pytest.raises(OSError, match='full'):
      write_atomically(file, 'after')
  assert [path.name for path in tmp_path.iterdir()] == ['file.json']
  assert file.read_text() == 'before'
  write_atomically(file, 'after')
  assert [path.name for path in tmp_path.iterdir()] == ['file.json']
  assert file.read_text() == 'after'
