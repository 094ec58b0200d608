# SPDX-License-Identifier: Apache-2.0
"""TPU slices and GPU hosts in Google Cloud: GKE labels, runtimes, hosts."""

from __future__ import annotations

import dataclasses

from covrl.parallel import gpus, topologies


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CloudAttributes:
  """Names and sizes of a TPU generation in Google Cloud.

  Attributes:
    gke_accelerator: accelerator label in GKE.
    runtime: default runtime version of Cloud TPU.
    single_host_chips: maximal number of chips of a single-host slice; hosts of
      larger slices have four chips each.
  """

  gke_accelerator: str
  runtime: str
  single_host_chips: int


_CLOUD_ATTRIBUTES = {
  'v5e': _CloudAttributes(
    gke_accelerator='tpu-v5-lite-podslice',
    runtime='v2-alpha-tpuv5-lite',
    single_host_chips=8,
  ),
  'v5p': _CloudAttributes(
    gke_accelerator='tpu-v5p-slice',
    runtime='v2-alpha-tpuv5',
    single_host_chips=4,
  ),
  'v6e': _CloudAttributes(
    gke_accelerator='tpu-v6e-slice',
    runtime='v2-alpha-tpuv6e',
    single_host_chips=8,
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """A TPU slice and its hosts.

  >>> find_slice('v5p-64').shape, find_slice('v5p-64').hosts
  ('2x4x4', 8)
  """

  topology: topologies.Topology

  @property
  def shape(self) -> str:
    """Chips along each axis, in GKE's notation."""
    return self.topology.name.partition(':')[2]

  @property
  def accelerator(self) -> str:
    """Accelerator type of Cloud TPU."""
    return self.topology.accelerator

  @property
  def gke_accelerator(self) -> str:
    """GKE's label of the accelerator."""
    return _CLOUD_ATTRIBUTES[self.topology.chip.name].gke_accelerator

  @property
  def runtime(self) -> str:
    """The software of Cloud TPU's virtual machines."""
    return _CLOUD_ATTRIBUTES[self.topology.chip.name].runtime

  @property
  def chips_per_host(self) -> int:
    """Chips of a virtual machine."""
    largest = _CLOUD_ATTRIBUTES[self.topology.chip.name].single_host_chips
    return self.topology.chips if self.topology.chips <= largest else 4

  @property
  def hosts(self) -> int:
    """Number of hosts, each with one process of the run."""
    return self.topology.chips // self.chips_per_host


_GKE_GPUS = {
  'a100': 'nvidia-a100-80gb',
  'h100': 'nvidia-h100-80gb',
  'h200': 'nvidia-h200-141gb',
  'b200': 'nvidia-b200',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuHosts:
  """Hosts of GPUs, each with one process of the run.

  >>> find_machines('h100:4x8').hosts, find_machines('h100:4x8').gke_accelerator
  (4, 'nvidia-h100-80gb')
  """

  topology: gpus.GpuTopology

  @property
  def gke_accelerator(self) -> str:
    """GKE's label of the accelerator."""
    return _GKE_GPUS[self.topology.chip.name]

  @property
  def hosts(self) -> int:
    """Number of hosts."""
    return self.topology.hosts


def find_machines(name: str) -> Slice | GpuHosts:
  """Looks up a slice of TPUs, or hosts of GPUs (`h100:4x8`).

  Raises:
    ValueError: if the name is unknown; the message lists the known ones.
  """
  topology = topologies.find_topology(name)
  if isinstance(topology, gpus.GpuTopology):
    return GpuHosts(topology=topology)
  return Slice(topology=topology)


def find_slice(name: str) -> Slice:
  """Looks up an accelerator type (`v5p-64`) or a topology (`v5p:2x4x4`).

  Raises:
    ValueError: if the name is unknown, or one of GPUs; the message lists the
      known ones.
  """
  return Slice(topology=topologies.find_tpus(name))
