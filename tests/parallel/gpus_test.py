# SPDX-License-Identifier: Apache-2.0
"""Topologies of GPUs: names, the table of devices, and required packages."""

import types

import pytest

from covrl.compile.collectives import Collective
from covrl.compile.network import Interconnect
from covrl.parallel import gpus, sharding, topologies
from covrl.parallel.gpus import GPUS, GpuTopology, check_compiler, find_gpus
from covrl.parallel.topologies import compile_only_devices, find_topology

INSTALLED = {
  'jaxlib': '0.10.2',
  'jax-cuda12-plugin': '0.10.2',
  'jax-cuda12-pjrt': '0.10.2',
  'nvidia-cudnn-cu12': '9.10.0',
}


@pytest.mark.parametrize(
  ('name', 'hosts', 'count'),
  [
    ('h100:1', 1, 1),
    ('a100:8', 1, 8),
    ('b200:2x8', 2, 16),
    ('h200:4x8', 4, 32),
  ],
)
def test_names_give_hosts_and_gpus(name, hosts, count):
  topology = find_topology(name)
  assert isinstance(topology, GpuTopology)
  assert (topology.name, topology.hosts, topology.chips) == (name, hosts, count)
  assert topology.platform == 'gpu'
  assert [topology.host(each) for each in (0, count - 1)] == [0, hosts - 1]


@pytest.mark.parametrize(
  'name',
  [
    *('h100', 'h100:', 'h100:3', 'h100:16', 'h100:0', 'h100:2x4', 'h100:0x8'),
    *('h100:8x', 'h100:-1', 'h100:1x1x8', 'h100:9999x8', 'h100:٨'),
  ],
)
def test_unknown_shape_lists_the_known_ones(name):
  with pytest.raises(ValueError, match=r'must be one of a100, h100, h200') as e:
    find_topology(name)
  assert str(e.value).endswith(f'got {name!r}')
  assert ':Nx8 of N hosts' in str(e.value)


def test_unknown_gpu_lists_tpus_and_gpus():
  with pytest.raises(ValueError, match=r"v5p:4x4x4 .* b200, .*got 'h800:8'"):
    find_topology('h800:8')


def test_memory_rates_and_links_of_gpus_are_ordered():
  names = [gpu.name for gpu in GPUS]
  assert len(set(names)) == len(names)
  for gpu in GPUS:
    assert gpu.hbm < gpu.memory
    assert gpu.fp32 < gpu.tf32 < gpu.flops
    assert gpu.fp8 is None or gpu.fp8 == pytest.approx(2 * gpu.flops, rel=1e-3)
    assert gpu.network < gpu.nvlink < gpu.bandwidth
    assert f'device_memory_size: {gpu.memory}\n' in gpu.description()
  by_name = {gpu.name: gpu for gpu in GPUS}
  assert by_name['a100'].fp8 is None
  assert by_name['h200'].memory > by_name['h100'].memory


def test_peak_rate_depends_on_the_type():
  h100, a100 = find_gpus('h100:1').chip, find_gpus('a100:1').chip
  assert h100.rate('bf16') == h100.rate('f16') == h100.flops
  assert h100.rate('f8e4m3fn') == h100.fp8
  assert (h100.rate('f32'), h100.rate('f32 highest')) == (h100.tf32, h100.fp32)
  assert a100.rate('f8e4m3fn') == a100.flops


@pytest.mark.parametrize(
  ('without', 'sentence'),
  [
    (['jax-cuda12-plugin'], 'needs jax-cuda12-plugin, which is not installed'),
    (['nvidia-cudnn-cu12'], 'needs nvidia-cudnn-cu12, which is not installed'),
    (
      ['jax-cuda12-plugin', 'nvidia-cudnn-cu12'],
      'needs jax-cuda12-plugin and nvidia-cudnn-cu12, which are not installed',
    ),
  ],
)
def test_missing_packages_are_named(without, sentence):
  installed = {k: v for k, v in INSTALLED.items() if k not in without}
  with pytest.raises(ValueError, match=sentence) as e:
    check_compiler(installed)
  assert "pip install 'covrl[gpu-compile]'" in str(e.value)
  check_compiler(INSTALLED)


@pytest.mark.parametrize('name', ['jax-cuda12-plugin', 'jax-cuda12-pjrt'])
@pytest.mark.parametrize('version', ['0.10.1', None])
def test_compiler_of_another_version_is_refused(name, version):
  installed = {**INSTALLED, name: version} if version else {**INSTALLED}
  if version is None:
    installed.pop('jax-cuda12-pjrt')
    name = 'jax-cuda12-pjrt'
  with pytest.raises(
    ValueError,
    match=f'{name} must have the version of jaxlib, 0.10.2, got {version}',
  ):
    check_compiler(installed)


def test_missing_packages_are_reported_before_anything_is_compiled(monkeypatch):
  monkeypatch.setattr(gpus, '_installed', lambda: {'jaxlib': '0.10.2'})
  with pytest.raises(ValueError, match='compiling for GPUs needs'):
    compile_only_devices(find_topology('h100:8'))


def test_refuses_several_slices_of_gpus():
  with pytest.raises(ValueError, match=r'part of the topology \(h100:2x8\)'):
    compile_only_devices(find_topology('h100:8'), 2)


def fake_devices(count, per_host):
  """Devices of several hosts; JAX gives the GPUs of each host a `slice_index`."""
  return [
    types.SimpleNamespace(
      id=index,
      platform='gpu',
      process_index=index // per_host,
      slice_index=index // per_host,
      device_kind='NVIDIA H100 80GB HBM3',
    )
    for index in range(count)
  ]


def test_every_axis_may_span_hosts():
  """Hosts are not treated as slices: parameters may be sharded over all of them."""
  devices = fake_devices(16, 8)
  placed = sharding.arrange((1, 16, 1, 1, 1), devices)
  assert [each.id for each in placed.flat] == list(range(16))
  placed = sharding.arrange((2, 4, 2, 1, 1), devices)
  assert {each.process_index for each in placed[0].flat} == {0}


def collective(kind, *groups, sent_bytes=1e9):
  return Collective(
    kind=kind, size=0, sent_bytes=sent_bytes, groups=groups, scope=''
  )


def test_collectives_use_nvlink_within_a_host_and_the_network_between():
  topology = find_gpus('h100:2x8')
  network = Interconnect(topology, fake_devices(16, 8))
  chip = topology.chip
  within_hosts = collective('all-gather', tuple(range(8)), tuple(range(8, 16)))
  assert network.link(within_hosts) == 'nvlink'
  assert network.seconds(within_hosts) == pytest.approx(1e9 / chip.nvlink)
  assert network.busy_seconds(within_hosts)['network'] == 0
  # A GPU sends 15/16 of an array in all, 1e9 bytes. Its host sends half of the
  # array to the other host through eight adapters: 1/16 each.
  whole_array = collective('all-gather', tuple(range(16)))
  assert network.link(whole_array) == 'network'
  assert network.busy_seconds(whole_array)['network'] == pytest.approx(
    1e9 / 15 / chip.network
  )
  # Pairs of GPUs on different hosts send everything over the network.
  pairs = collective('all-reduce', *((i, i + 8) for i in range(8)))
  assert network.busy_seconds(pairs) == {
    'nvlink': 0,
    'network': pytest.approx(1e9 / chip.network),
  }
  # Eight of the fifteen other GPUs are on the other host.
  all_to_all = collective('all-to-all', tuple(range(16)))
  assert network.busy_seconds(all_to_all)['network'] == pytest.approx(
    1e9 * 8 / 15 / chip.network
  )
  single = collective('collective-permute', (0,))
  assert network.seconds(single) == 0


def test_tpu_slices_use_ici_within_and_dcn_between():
  slice_ = find_topology('v5p:2x2x1')
  devices = [types.SimpleNamespace(coords=(i % 2, i // 2, 0)) for i in range(4)]
  network = Interconnect(slice_, devices)
  gather = collective('all-gather', tuple(range(4)), sent_bytes=90e9)
  assert network.busy_seconds(gather) == {'ici': pytest.approx(1 / 2)}
  between_slices = gather._replace(network='dcn')
  assert network.link(between_slices) == 'dcn'
  assert topologies.find_topology('v5p-8').platform == 'tpu'
