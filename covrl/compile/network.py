# SPDX-License-Identifier: Apache-2.0
"""Lower bounds for the time of collectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from covrl.compile.collectives import Collective
from covrl.parallel.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Network:
  """The links between the chips of a program.

  Attributes:
    topology: the TPU slice.
    devices: devices in the order of the ids in the program, which start at 0 in
      each slice.
  """

  topology: Topology
  devices: Sequence[Any]

  def seconds(self, collective: Collective) -> float:
    """Estimates the seconds of a collective on an otherwise idle network.

    Assumes that all links along the axes of its group are busy throughout.
    """
    if collective.network == 'dcn':
      return collective.sent / self.topology.chip.dcn
    links = self._links(collective)
    return collective.sent / (links * self.topology.chip.link) if links else 0.0

  def _links(self, collective: Collective) -> int:
    """Returns the number of links from a chip to others of its group."""
    if not collective.groups:
      return 0
    group = max(collective.groups, key=len)
    coords = [tuple(self.devices[i].coords) for i in group]
    if collective.kind == 'collective-permute':
      return 1
    return sum(
      self.topology.links(axis)
      for axis in range(len(self.topology.shape))
      if len({coord[axis] for coord in coords}) > 1
    )
