# SPDX-License-Identifier: Apache-2.0
"""Every mesh trains the same policy, and takes over from every other."""

import functools

import jax
import numpy as np
import pytest
from train.updates import fresh_state, padded, program

from covrl.parallel import sharding
from covrl.run.checkpoint import CheckpointStore
from covrl.train.state_sharding import replicated_like

# Data, fsdp, tensor, expert, context: each alone, and together; more tensor or
# context shards than there are heads of keys.
MESHES = [
  (8,),
  (1, 8),
  (2, 1, 4),
  (2, 1, 1, 1, 4),
  (2, 2, 2),
  (1, 2, 2, 1, 2),
]
METHOD = {'held': 0.04, 'beta': 0.5, 'bonus': 0.1}
STEPS = 3


def after(shape, state, steps, micro_batches=2, offload=False):
  """The state some updates later, and their losses."""
  step, mesh, places = program(shape, micro_batches, 'few', offload=offload)
  batch, losses = sharding.shard_batch(padded(), mesh), []
  state = jax.device_put(state, places)
  with sharding.in_use(mesh, sharding.TRAIN_RULES):
    for _ in range(steps):
      state, readings = step(state, batch, np.asarray(False), jax.random.key(3))
      losses.append(float(readings['loss']))
  return state, losses


@functools.cache
def trained(shape):
  return after(shape, fresh_state('few', **METHOD), STEPS)


def assert_same_policy(got, wanted):
  for ours, theirs in zip(
    jax.tree.leaves(got.trainable),
    jax.tree.leaves(wanted.trainable),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize('shape', MESHES[1:])
def test_losses_and_parameters_after_three_steps(shape):
  (state, losses), (expected, figures) = trained(shape), trained(MESHES[0])
  np.testing.assert_allclose(losses, figures, rtol=1e-5, atol=1e-5)
  assert np.ptp(losses) > 1e-3
  assert_same_policy(state, expected)


def test_an_optimiser_in_the_hosts_memory_makes_the_same_steps():
  shape = (2, 2, 2)
  (state, losses), (expected, figures) = (
    after(shape, fresh_state('few', **METHOD), STEPS, offload=offload)
    for offload in (True, False)
  )
  assert losses == figures
  moved = 0
  for got, wanted in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
    assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()
    moved += got.sharding.memory_kind != wanted.sharding.memory_kind
  # A trace and two moments of each parameter.
  assert moved == 3 * len(jax.tree.leaves(expected.trainable))


@pytest.mark.parametrize('place', range(len(MESHES)))
def test_takes_over_from_another(place, tmp_path):
  """A step of this mesh after steps of its neighbour is a step of one mesh."""
  shape, other = MESHES[place], MESHES[place - 1]
  saved, _ = trained(other)
  store = CheckpointStore(tmp_path, keep=1)
  store.save(STEPS, {'state': saved}, {})
  _, mesh, places = program(shape, 2, 'few')
  like = jax.tree.map(
    lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
    jax.tree.map(lambda leaf: replicated_like(leaf, mesh), saved),
    places,
  )
  checkpoint = store.latest()
  assert checkpoint is not None
  restored = checkpoint.restore({'state': like})['state']
  for got, wanted, at in zip(
    *map(jax.tree.leaves, (restored, saved, places)), strict=True
  ):
    assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()
    assert got.sharding == at
  further, losses = after(shape, restored, 1)
  expected, figures = after(MESHES[0], trained(MESHES[0])[0], 1)
  np.testing.assert_allclose(losses, figures, rtol=1e-5, atol=1e-5)
  assert_same_policy(further, expected)
