# SPDX-License-Identifier: Apache-2.0
"""Lower bounds for the time of collectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from covrl.compile.collectives import Collective
from covrl.parallel.gpus import GpuTopology
from covrl.parallel.topologies import AnyTopology, Topology

# Collectives in which a host sends the sum, or the copy, of its chips to other
# hosts once, so that only a part of the bytes that a chip sends leaves its host.
_HIERARCHICAL = ('all-reduce', 'all-gather', 'reduce-scatter')


@dataclasses.dataclass(frozen=True)
class Interconnect:
  """The links between the chips of a program.

  Attributes:
    topology: the TPU slice or the hosts of GPUs.
    devices: devices in the order of the ids in the program, which start at 0 in
      each slice.
  """

  topology: AnyTopology
  devices: Sequence[Any]

  @property
  def links(self) -> tuple[str, str]:
    """The kinds of links, the faster first."""
    if isinstance(self.topology, GpuTopology):
      return 'nvlink', 'network'
    return 'ici', 'dcn'

  def link(self, collective: Collective) -> str:
    """Returns the slowest kind of link that a collective uses."""
    if not isinstance(self.topology, GpuTopology):
      return collective.network
    hosts = [self._hosts(group) for group in collective.groups]
    return self.links[max((len(set(group)) for group in hosts), default=1) > 1]

  def seconds(self, collective: Collective) -> float:
    """Estimates the seconds of a collective on an otherwise idle network.

    Assumes that all links along the axes of its group are busy throughout.
    """
    if isinstance(self.topology, GpuTopology):
      return max(self._seconds_of_gpus(self.topology, collective))
    if collective.network == 'dcn':
      return collective.sent_bytes / self.topology.chip.dcn
    links = self._num_links(self.topology, collective)
    return (
      collective.sent_bytes / (links * self.topology.chip.link)
      if links
      else 0.0
    )

  def busy_seconds(self, collective: Collective) -> dict[str, float]:
    """Returns the seconds that each kind of link is busy."""
    if isinstance(self.topology, GpuTopology):
      times = self._seconds_of_gpus(self.topology, collective)
      return dict(zip(self.links, times, strict=True))
    return {collective.network: self.seconds(collective)}

  def _seconds_of_gpus(
    self, topology: GpuTopology, collective: Collective
  ) -> tuple[float, float]:
    """Returns the seconds on NVLink and on the network between hosts.

    Every GPU has its own adapter, and all adapters of a group are used. Data that a
    host's GPUs share crosses the network once.
    """
    chip, sent = topology.chip, collective.sent_bytes
    times = (0.0, 0.0)
    for group in collective.groups:
      hosts = self._hosts(group)
      group_size, gpus_per_host = len(group), max(map(hosts.count, hosts))
      if group_size < 2:
        continue
      if gpus_per_host == group_size:
        seconds = sent / chip.nvlink, 0.0
      else:
        if collective.kind in _HIERARCHICAL:
          # A GPU sends (count − 1)/count of an array in all, and a GPU's share of
          # its host's (num_hosts − 1)/num_hosts to other hosts.
          num_hosts = group_size / gpus_per_host
          network_share = (
            (num_hosts - 1)
            / num_hosts
            / gpus_per_host
            * group_size
            / (group_size - 1)
          )
        elif collective.kind in ('all-to-all', 'ragged-all-to-all'):
          network_share = (group_size - gpus_per_host) / (group_size - 1)
        else:
          network_share = 1.0
        seconds = (
          sent / chip.nvlink if gpus_per_host > 1 else 0.0,
          sent * network_share / chip.network,
        )
      times = max(times[0], seconds[0]), max(times[1], seconds[1])
    return times

  def _hosts(self, group: Sequence[int]) -> list[int]:
    """Returns the host of each device of a group."""
    assert isinstance(self.topology, GpuTopology)
    return [self.topology.host(self.devices[i].id) for i in group]

  def _num_links(self, topology: Topology, collective: Collective) -> int:
    """Returns the number of links from a chip to others of its group."""
    if not collective.groups:
      return 0
    group = max(collective.groups, key=len)
    coords = [tuple(self.devices[i].coords) for i in group]
    if collective.kind == 'collective-permute':
      return 1
    return sum(
      topology.links(axis)
      for axis in range(len(topology.shape))
      if len({coord[axis] for coord in coords}) > 1
    )
