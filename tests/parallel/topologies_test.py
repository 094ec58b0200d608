# SPDX-License-Identifier: Apache-2.0
"""TPU topologies: names, devices to compile for and links between chips."""

import importlib.util
import platform
import sys
from typing import Literal

import pytest

from covrl.compile.collectives import Collective
from covrl.compile.network import Interconnect
from covrl.parallel import topologies
from covrl.parallel.topologies import TOPOLOGIES, find_topology

needs_libtpu = pytest.mark.skipif(
  sys.platform != 'linux' or platform.machine() != 'x86_64',
  reason='libtpu, of the dev extra, is for Linux on x86-64 only',
)


@pytest.mark.parametrize(
  ('google_name', 'name', 'chips'),
  [
    ('v5p-8', 'v5p:2x2x1', 4),
    ('v5p-64', 'v5p:2x4x4', 32),
    ('v5p-128', 'v5p:4x4x4', 64),
    ('v5p-256', 'v5p:4x4x8', 128),
    ('v5p-1024', 'v5p:8x8x8', 512),
    ('v5p-2048', 'v5p:8x8x16', 1024),
    ('v5litepod-8', 'v5e:2x4', 8),
    ('v6e-64', 'v6e:8x8', 64),
    ('v6e-256', 'v6e:16x16', 256),
  ],
)
def test_google_names_count_cores(google_name, name, chips):
  assert find_topology(google_name) is find_topology(name)
  assert (find_topology(name).accelerator, find_topology(name).chips) == (
    google_name,
    chips,
  )


def test_short_name_of_a_slice_counts_like_googles():
  assert find_topology('v5e-8') is find_topology('v5litepod-8')
  assert find_topology('v5e-256') is find_topology('v5e:16x16')


def test_names_are_unique():
  names = [name for each in TOPOLOGIES for name in each.names]
  assert len(set(names)) == len(names)


def test_unknown_topology_lists_the_known_ones():
  with pytest.raises(
    ValueError, match=r'must be one of .*v5p:4x4x4 \(v5p-128\)'
  ) as e:
    find_topology('v5p:4x4x5')
  assert all(each.name in str(e.value) for each in TOPOLOGIES)
  assert str(e.value).endswith("got 'v5p:4x4x5'")


def test_reports_missing_libtpu(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"python -m pip install 'jax\[tpu\]'"):
    topologies.compile_only_devices(find_topology('v5p-8'))


def test_refuses_zero_slices():
  with pytest.raises(
    ValueError, match=r'num_slices must lie in \[1, 1024\], got 0'
  ):
    topologies.compile_only_devices(find_topology('v5p-8'), 0)


@needs_libtpu
@pytest.mark.parametrize('topology', TOPOLOGIES, ids=lambda each: each.name)
def test_libtpu_describes_the_topology(topology):
  devices = topologies.compile_only_devices(topology)
  assert len(devices) == topology.chips
  assert {device.device_kind for device in devices} == {topology.chip.kind}
  coordinates = {tuple(device.coords) for device in devices}
  shape = (*topology.shape, 1)[:3]
  assert max(coordinates) == tuple(size - 1 for size in shape)


def collective(
  kind, groups, sent_bytes=90e9, network: Literal['ici', 'dcn'] = 'ici'
):
  return Collective(
    kind=kind,
    size=0,
    sent_bytes=sent_bytes,
    groups=groups,
    scope='',
    network=network,
  )


@needs_libtpu
def test_counts_links_of_a_group():
  cube = find_topology('v5p:4x4x4')
  network = Interconnect(cube, topologies.compile_only_devices(cube))
  coordinates = [tuple(device.coords) for device in network.devices]
  line = tuple(i for i, xyz in enumerate(coordinates) if xyz[1:] == (0, 0))
  plane = tuple(i for i, xyz in enumerate(coordinates) if xyz[2] == 0)
  # Two links along each axis; each link sends the message in one second.
  everyone = tuple(range(64))
  for group, seconds in ((line, 1 / 2), (plane, 1 / 4), (everyone, 1 / 6)):
    gather = collective('all-gather', (group,))
    assert network.seconds(gather) == pytest.approx(seconds)
  assert network.seconds(collective('collective-permute', (line[:2],))) == 1
  # An axis of length two, or a part of a pod, does not form a ring.
  flat = find_topology('v5p:2x2x1')
  flat_network = Interconnect(flat, topologies.compile_only_devices(flat))
  gather = collective('all-gather', (tuple(range(4)),))
  assert flat_network.seconds(gather) == pytest.approx(1 / 2)


@needs_libtpu
def test_groups_across_slices_use_the_slow_network():
  square = find_topology('v5p:2x2x1')
  network = Interconnect(square, topologies.compile_only_devices(square, 2))
  assert len(network.devices) == 8
  across_slices = collective('all-reduce', ((1, 2),), 6.25e9, 'dcn')
  assert network.seconds(across_slices) == 1
