# SPDX-License-Identifier: Apache-2.0
"""Every mesh trains the same policy, and restores checkpoints of others."""

import functools

import jax
import numpy as np
import pytest
from train.updates import fresh_state, padded_batch, program

from covrl.parallel import sharding
from covrl.run.checkpoint import CheckpointStore
from covrl.train.state_sharding import replicated_like

# (data, fsdp, tensor, expert, context), each axis alone and together; more tensor
# or context shards than KV heads.
MESHES = [
  (8,),
  (1, 8),
  (2, 1, 4),
  (2, 1, 1, 1, 4),
  (2, 2, 2),
  (1, 2, 2, 1, 2),
]
METHOD = {'kl_cov_fraction': 0.04, 'kl_cov_coefficient': 0.5, 'bonus': 0.1}
STEPS = 3


def train_steps(shape, state, steps, micro_batches=2, offload=False):
  """The state after some updates, and their losses."""
  step, mesh, state_shardings = program(
    shape, micro_batches, 'kl_cov_and_bonus', offload=offload
  )
  batch, losses = sharding.shard_batch(padded_batch(), mesh), []
  state = jax.device_put(state, state_shardings)
  with sharding.use_mesh(mesh, sharding.TRAIN_RULES):
    for _ in range(steps):
      state, metrics = step(state, batch, np.asarray(False), jax.random.key(3))
      losses.append(float(metrics['loss']))
  return state, losses


@functools.cache
def train_on_mesh(shape):
  """State and losses after `STEPS` updates from an initial state."""
  return train_steps(shape, fresh_state('kl_cov_and_bonus', **METHOD), STEPS)


def assert_same_policy(actual, expected):
  for actual_leaf, expected_leaf in zip(
    jax.tree.leaves(actual.trainable),
    jax.tree.leaves(expected.trainable),
    strict=True,
  ):
    np.testing.assert_allclose(actual_leaf, expected_leaf, rtol=0, atol=1e-5)


@pytest.mark.parametrize('shape', MESHES[1:])
def test_losses_and_parameters_do_not_depend_on_the_mesh(shape):
  (state, losses), (expected, expected_losses) = (
    train_on_mesh(shape),
    train_on_mesh(MESHES[0]),
  )
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-5)
  assert np.ptp(losses) > 1e-3
  assert_same_policy(state, expected)


def test_offloaded_optimiser_state_gives_the_same_steps():
  shape = (2, 2, 2)
  (state, losses), (expected, expected_losses) = (
    train_steps(
      shape, fresh_state('kl_cov_and_bonus', **METHOD), STEPS, offload=offload
    )
    for offload in (True, False)
  )
  assert losses == expected_losses
  num_moved = 0
  for actual, expected_leaf in zip(
    *map(jax.tree.leaves, (state, expected)), strict=True
  ):
    assert np.asarray(actual).tobytes() == np.asarray(expected_leaf).tobytes()
    num_moved += (
      actual.sharding.memory_kind != expected_leaf.sharding.memory_kind
    )
  # A trace and two moments of each parameter.
  assert num_moved == 3 * len(jax.tree.leaves(expected.trainable))


@pytest.mark.parametrize('index', range(len(MESHES)))
def test_restores_a_checkpoint_of_another_mesh(index, tmp_path):
  """Steps on two meshes equal steps on one."""
  shape, saved_shape = MESHES[index], MESHES[index - 1]
  saved, _ = train_on_mesh(saved_shape)
  store = CheckpointStore(tmp_path, keep=1)
  store.save(STEPS, {'state': saved}, {})
  _, mesh, state_shardings = program(shape, 2, 'kl_cov_and_bonus')
  abstract_state = jax.tree.map(
    lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf_sharding
    ),
    jax.tree.map(lambda leaf: replicated_like(leaf, mesh), saved),
    state_shardings,
  )
  checkpoint = store.latest()
  assert checkpoint is not None
  restored = checkpoint.restore({'state': abstract_state})['state']
  for actual, expected_leaf, leaf_sharding in zip(
    *map(jax.tree.leaves, (restored, saved, state_shardings)), strict=True
  ):
    assert np.asarray(actual).tobytes() == np.asarray(expected_leaf).tobytes()
    assert actual.sharding == leaf_sharding
  state, losses = train_steps(shape, restored, 1)
  expected, expected_losses = train_steps(
    MESHES[0], train_on_mesh(MESHES[0])[0], 1
  )
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-5)
  assert_same_policy(state, expected)
