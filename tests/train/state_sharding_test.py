# SPDX-License-Identifier: Apache-2.0
"""Checks of mesh sizes, and shardings of sampler and optimiser state."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from train import toy

from covrl.config import ConfigError
from covrl.models import Experts, Policy, tiny
from covrl.parallel import sharding
from covrl.run.checkpoint import CheckpointStore
from covrl.train.state_sharding import (
  abstract_opt_state,
  check_mesh,
  rollout_mesh,
)

MODEL = tiny(16)  # width 32, 4 query heads, 2 KV heads, 64 hidden units


def mesh_error(shape, model=MODEL, **settings):
  """Message with which a mesh is refused for a model and settings."""
  config = toy.get_config()
  for name, value in settings.items():
    part, _, field = name.partition('__')
    setattr(getattr(config, part), field, value)
  with pytest.raises(ConfigError) as error:
    check_mesh(config, model, sharding.make_mesh(shape))
  return str(error.value)


@pytest.mark.parametrize(
  ('shape', 'changes', 'sentence'),
  [
    (
      {'fsdp': 8},
      {'train__micro_batches': 2},
      'train.sequences_per_update / train.micro_batches must be a multiple of '
      'mesh.data × mesh.fsdp × mesh.expert, got 4 and 8; nearest possible: '
      'train.micro_batches = 1',
    ),
    (
      {'tensor': 8},
      {},
      'the number of heads must be a multiple of mesh.tensor × mesh.context, '
      'got 4 and 8; nearest possible: mesh.tensor × mesh.context = 4',
    ),
    (
      {'data': 8},
      {'rollout__tensor': 8},
      'the number of heads must be a multiple of rollout.tensor, got 4 and 8; '
      'nearest possible: rollout.tensor = 4',
    ),
    (
      {'tensor': 4, 'data': 2},
      {'model': dataclasses.replace(MODEL, vocab_size=18)},
      'the vocabulary must be a multiple of mesh.tensor, got 18 and 4; nearest '
      'possible: mesh.tensor = 2',
    ),
    (
      {'tensor': 4, 'data': 2},
      {'model': dataclasses.replace(MODEL, hidden_dim=66)},
      'the feed-forward width must be a multiple of mesh.tensor, got 66 and 4; '
      'nearest possible: mesh.tensor = 2',
    ),
    (
      {'fsdp': 8},
      {'model': dataclasses.replace(MODEL, model_dim=36)},
      "the model's width must be a multiple of mesh.fsdp × mesh.context, got 36"
      ' and 8; nearest possible: mesh.fsdp × mesh.context = 4',
    ),
    (
      {'fsdp': 8},
      {'warm_start__steps': 1, 'warm_start__batch_size': 20},
      'warm_start.batch_size must be a multiple of mesh.data × mesh.fsdp ×'
      ' mesh.expert, got 20 and 8; nearest possible: warm_start.batch_size = 16 or'
      ' 24',
    ),
    (
      {'context': 4, 'data': 2},
      {'rollout__max_response_length': 5},
      'rollout.max_response_length + 8 tokens of the prompt must be a multiple of'
      ' mesh.context, got 5 + 8 and 4; nearest possible:'
      ' rollout.max_response_length = 4 or 8',
    ),
    (
      {'expert': 8},
      {
        'model': dataclasses.replace(
          MODEL, experts=Experts(count=4, per_token=2)
        )
      },
      'the number of experts must be a multiple of mesh.expert, got 4 and 8; '
      'nearest possible: mesh.expert = 4',
    ),
  ],
)
def test_refuses_sizes_that_do_not_divide(shape, changes, sentence):
  assert mesh_error(shape, **changes) == sentence


@pytest.mark.parametrize(
  ('train', 'advice'),
  [
    ((256, 8, 0), 'train.micro_batches = 4'),
    ((256, 3, 0), 'train.micro_batches = 2 or 4'),
    ((256, 8, 128), 'train.micro_batches = 2'),
    ((100, 1, 0), 'train.sequences_per_update = 64 or 128'),
    ((256, 1, 32), 'train.packed_rows = 64'),
  ],
)
def test_names_the_nearest_sizes_on_64_chips(train, advice):
  sequences, micro_batches, packed_rows = train
  config = toy.get_config()
  config.train.sequences_per_update = sequences
  config.train.micro_batches = micro_batches
  config.train.packed_rows = packed_rows
  mesh = AbstractMesh((1, 64, 1, 1, 1), sharding.MESH_AXES)
  model = dataclasses.replace(MODEL, model_dim=64)
  with pytest.raises(ConfigError) as error:
    check_mesh(config, model, mesh)
  assert str(error.value).endswith(f'; nearest possible: {advice}')


def test_accepts_fewer_key_heads_than_shards():
  mesh = sharding.make_mesh({'tensor': 4, 'data': 2})
  check_mesh(toy.get_config(), MODEL, mesh)


def test_the_sampler_can_have_another_mesh():
  mesh = sharding.make_mesh({'fsdp': 4, 'expert': 2})
  assert rollout_mesh(mesh, 0) is mesh
  assert rollout_mesh(mesh, 1) is mesh
  sizes = dict(rollout_mesh(mesh, 4).shape)
  assert sizes == {'data': 1, 'fsdp': 1, 'tensor': 4, 'expert': 2, 'context': 1}


def test_moments_can_be_in_host_memory(tmp_path):
  mesh = sharding.make_mesh({'fsdp': 8})
  params = Policy(MODEL).abstract_params(mesh)
  tx = optax.adam(1e-3)
  abstract = abstract_opt_state(tx, params, mesh, offload=True)
  memory_kinds = {
    leaf.sharding.memory_kind
    for leaf in jax.tree.leaves(abstract)
    if leaf.ndim > 0
  }
  assert memory_kinds == {'pinned_host'}
  state = jax.jit(
    tx.init,
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
  )(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params))
  store = CheckpointStore(tmp_path, keep=1)
  store.save(1, {'state': state}, {})
  saved = store.latest()
  assert saved is not None
  restored = saved.restore({'state': abstract})['state']
  for actual, expected in zip(
    *map(jax.tree.leaves, (restored, state)), strict=True
  ):
    assert actual.sharding == expected.sharding
    np.testing.assert_array_equal(actual, expected)
