# SPDX-License-Identifier: Apache-2.0
"""TPU slices as clouds know them; which there are is in `covrl.parallel.topologies`."""

from __future__ import annotations

import dataclasses

from covrl.parallel import topologies


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Hosting:
  """How a generation's chips are spread over virtual machines.

  Attributes:
    gke: the accelerator's label in GKE.
    runtime: the software of Cloud TPU's virtual machines.
    alone: most chips that a single virtual machine may have; in larger slices
      each has four.
  """

  gke: str
  runtime: str
  alone: int


_HOSTING = {
  'v5e': _Hosting(
    gke='tpu-v5-lite-podslice', runtime='v2-alpha-tpuv5-lite', alone=8
  ),
  'v5p': _Hosting(gke='tpu-v5p-slice', runtime='v2-alpha-tpuv5', alone=4),
  'v6e': _Hosting(gke='tpu-v6e-slice', runtime='v2-alpha-tpuv6e', alone=8),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """Chips that are wired to one another, and the machines they are in.

  >>> find_slice('v5p-64').shape, find_slice('v5p-64').hosts
  ('2x4x4', 8)
  """

  topology: topologies.Topology

  @property
  def shape(self) -> str:
    """Chips along each axis, as GKE writes it."""
    return self.topology.name.partition(':')[2]

  @property
  def accelerator(self) -> str:
    """As Cloud TPU calls it, by cores or chips."""
    return self.topology.accelerator

  @property
  def gke(self) -> str:
    """GKE's label of the accelerator."""
    return _HOSTING[self.topology.chip.name].gke

  @property
  def runtime(self) -> str:
    """The software of Cloud TPU's virtual machines."""
    return _HOSTING[self.topology.chip.name].runtime

  @property
  def chips_per_host(self) -> int:
    """Chips of a virtual machine."""
    alone = _HOSTING[self.topology.chip.name].alone
    return self.topology.chips if self.topology.chips <= alone else 4

  @property
  def hosts(self) -> int:
    """Virtual machines, each a process of the run."""
    return self.topology.chips // self.chips_per_host


def find_slice(name: str) -> Slice:
  """Looks up an accelerator type (`v5p-64`) or a topology (`v5p:2x4x4`).

  Raises:
    ValueError: there is none of this name; lists those there are.
  """
  # People say v5e where the interface says v5litepod.
  google = name.replace('v5e-', 'v5litepod-') if ':' not in name else name
  return Slice(topology=topologies.find(google))
