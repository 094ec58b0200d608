# SPDX-License-Identifier: Apache-2.0
"""Mesh shapes, sharding rules and the sharding of batches."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from covrl.parallel import sharding
from covrl.parallel.sharding import ROLLOUT_RULES, TRAIN_RULES, make_mesh


@pytest.mark.parametrize(
  ('shape', 'sizes'),
  [
    (None, (1, 8, 1, 1, 1)),
    ((8,), (8, 1, 1, 1, 1)),
    ((4, 2), (4, 2, 1, 1, 1)),
    ((2, 2, 2), (2, 2, 2, 1, 1)),
    ((2, -1, 2), (2, 2, 2, 1, 1)),
    ({'tensor': 4, 'data': -1}, (2, 1, 4, 1, 1)),
    ({'fsdp': 8}, (1, 8, 1, 1, 1)),
    ({'expert': 4, 'fsdp': -1}, (1, 2, 1, 4, 1)),
    ({'context': 2, 'fsdp': -1}, (1, 4, 1, 1, 2)),
  ],
)
def test_resolves_mesh_shapes(shape, sizes):
  mesh = make_mesh(shape)
  assert tuple(mesh.shape.values()) == sizes
  assert tuple(mesh.shape) == ('data', 'fsdp', 'tensor', 'expert', 'context')
  # XLA's partitioner inserts the collectives.
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


def test_makes_a_mesh_of_some_devices():
  mesh = make_mesh((2, 1), jax.devices()[2:4])
  assert [device.id for device in mesh.devices.flat] == [2, 3]


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('shape', 'reason'),
  [
    ({'model': 2}, r"mesh axes must be among .*, got \['model'\]"),
    ((3,), "multiply to the 8 devices there are, got {'data': 3, "),
    ((2, -1, 3), 'multiply to the 8 devices'),
    ((-1, -1), 'must have at most one -1, got 2'),
    ({'data': -2, 'fsdp': -4}, 'the size of data must be at least 1, .* -2'),
    ({'data': 0}, 'the size of data must be at least 1, .* got 0'),
    ({'data': 8.0}, 'the size of data must be an integer, got 8.0'),
    ({'data': True, 'fsdp': 8}, 'the size of data must be an integer, got Tr'),
    (('8',), 'the size of data must be an integer'),
    ('8', "sizes by name or in order, got '8'"),
    (5, 'sizes by name or in order, got 5'),
    ((2, 2, 2, 1, 1, 1), 'multiply to the 8 devices'),
  ],
)
def test_refuses_invalid_mesh_shapes(shape, reason):
  with pytest.raises((TypeError, ValueError), match=reason):
    make_mesh(shape)


@pytest.mark.usefixtures('no_annotation_checks')
def test_refuses_devices_that_do_not_make_a_mesh():
  message = 'devices of a mesh must be one or more, each once'
  with pytest.raises(ValueError, match=message):
    make_mesh({'data': 2}, jax.devices()[:1] * 2)
  with pytest.raises(ValueError, match=message):
    make_mesh(None, [])
  counts: tuple[Any, ...] = (-8, 0, 8.0, True)
  for count in counts:
    with pytest.raises((TypeError, ValueError), match='number of devices must'):
      sharding.abstract_mesh({'data': -1}, count)


def test_mesh_axis_shards_an_array_only_once():
  rules = {'rows': ('data', 'fsdp'), 'columns': 'fsdp', 'none': None}
  spec = sharding.partition_spec(('rows', 'columns', 'none', None), rules)
  assert spec == PartitionSpec(('data', 'fsdp'), None, None, None)
  spec = sharding.partition_spec(('columns', 'rows'), rules)
  assert spec == PartitionSpec('fsdp', ('data',))


def test_reshaped_mesh_keeps_the_devices():
  mesh = make_mesh((1, 8))
  other = sharding.reshape_mesh(mesh, {'data': -1, 'tensor': 4})
  assert other.shape == mesh.shape | {'data': 2, 'fsdp': 1, 'tensor': 4}
  assert list(other.devices.flat) == list(mesh.devices.flat)
  with pytest.raises(ValueError, match='multiply to the 8 devices'):
    sharding.reshape_mesh(mesh, {'tensor': 3})


def test_rules_differ_between_training_and_sampling():
  assert set(ROLLOUT_RULES) == set(TRAIN_RULES)
  # Sampling splits weights over tensor only.
  weight = 'embed', 'mlp'
  training_spec = sharding.partition_spec(weight, TRAIN_RULES)
  assert training_spec == PartitionSpec(('fsdp', 'context'), 'tensor')
  sampling_spec = sharding.partition_spec(weight, ROLLOUT_RULES)
  assert sampling_spec == PartitionSpec(None, 'tensor')
  assert sharding.current_rules() is TRAIN_RULES
  with sharding.use_mesh(make_mesh((8,)), ROLLOUT_RULES):
    assert sharding.current_rules() is ROLLOUT_RULES
    assert dict(jax.sharding.get_abstract_mesh().shape)['data'] == 8
  assert sharding.current_rules() is TRAIN_RULES
  assert jax.sharding.get_abstract_mesh().empty


@pytest.mark.parametrize(
  ('shape', 'spec'),
  [
    ((16, 8), PartitionSpec(('fsdp', 'context'), 'tensor')),
    ((16, 3), PartitionSpec('fsdp', None)),
    ((3, 8), PartitionSpec(None, 'tensor')),
    ((3, 3), PartitionSpec(None, None)),
  ],
)
def test_axes_that_do_not_divide_are_replicated(shape, spec):
  mesh = make_mesh((2, 2, 2))
  fitted = sharding.fitted_sharding(
    mesh, ('embed', 'heads'), shape, TRAIN_RULES
  )
  assert fitted.is_equivalent_to(jax.NamedSharding(mesh, spec), len(shape))
  # Every device can hold its part.
  jax.device_put(np.zeros(shape), fitted)


def test_axes_are_sharded_as_far_as_they_divide():
  mesh = make_mesh((2, 4))
  spec = sharding.fitted_spec(mesh, ('batch', None), (6, 3), TRAIN_RULES)
  assert spec == PartitionSpec(('data',), None)


def test_tokens_are_sharded_over_context():
  mesh = make_mesh({'fsdp': 2, 'context': 4})
  placed = sharding.shard_batch(np.zeros((4, 12)), mesh)
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)}
  with pytest.raises(
    ValueError,
    match=r'tokens must divide over the 4 shards of the sequence, got 11 tokens '
    r'in stats\.mask; nearest possible: tokens = 8 or 12',
  ):
    sharding.shard_batch({'stats': {'mask': np.zeros((4, 11))}}, mesh)


def test_batch_is_sharded_by_rows():
  mesh = make_mesh((2, 2, 2))
  rows = {'tokens': np.arange(24).reshape(8, 3), 'scalar': np.asarray(3)}
  placed = sharding.shard_batch(rows, mesh)
  assert placed['tokens'].sharding == sharding.batch_sharding(mesh)
  assert placed['scalar'].sharding == sharding.replicated(mesh)
  assert {s.data.shape for s in placed['tokens'].addressable_shards} == {(2, 3)}
  np.testing.assert_array_equal(placed['tokens'], rows['tokens'])
  assert placed['scalar'] == 3


def test_refuses_rows_that_do_not_divide():
  with pytest.raises(
    ValueError, match='divide over the 4 shards of the batch, got 6 rows'
  ):
    sharding.shard_batch(np.zeros((6, 2)), make_mesh((2, 2, 2)))
