# SPDX-License-Identifier: Apache-2.0
"""Names of TPU slices: their topologies, chips and hosts."""

import pytest

from covrl.parallel.topologies import TOPOLOGIES
from launch.slices import Slice, find_slice


@pytest.mark.parametrize(
  ('name', 'shape', 'chips', 'hosts'),
  [
    ('v5p-8', '2x2x1', 4, 1),
    ('v5p-64', '2x4x4', 32, 8),
    ('v5p-128', '4x4x4', 64, 16),
    ('v5p-256', '4x4x8', 128, 32),
    ('v5p-2048', '8x8x16', 1024, 256),
    ('v5p:8x8x8', '8x8x8', 512, 128),
    ('v5litepod-8', '2x4', 8, 1),
    ('v5e-16', '4x4', 16, 4),
    ('v5e:16x16', '16x16', 256, 64),
    ('v6e-1', '1x1', 1, 1),
    ('v6e-64', '8x8', 64, 16),
  ],
)
def test_slices_have_the_stated_shapes_chips_and_hosts(
  name, shape, chips, hosts
):
  slice_ = find_slice(name)
  assert (slice_.shape, slice_.topology.chips, slice_.hosts) == (
    shape,
    chips,
    hosts,
  )


@pytest.mark.parametrize('topology', TOPOLOGIES, ids=lambda each: each.name)
def test_every_slice_has_hosts(topology):
  slice_ = Slice(topology=topology)
  assert slice_.hosts * slice_.chips_per_host == topology.chips
  assert slice_.gke_accelerator
  assert slice_.runtime
  assert find_slice(slice_.accelerator) == slice_


def test_an_unknown_slice_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r'v5p-64.*h100'):
    find_slice('h100')
