# SPDX-License-Identifier: Apache-2.0
"""How long a collective takes at least."""

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
    topology: of a slice.
    devices: in the order of the program's numbers, which begin anew with each
      slice.
  """

  topology: Topology
  devices: Sequence[Any]

  def seconds(self, collective: Collective) -> float:
    """The time of a collective that has its network to itself.

    An estimate: every link along the axes that a group lies on is busy, and
    nothing waits.
    """
    if collective.network == 'dcn':
      return collective.sent / self.topology.chip.dcn
    links = self._links(collective)
    return collective.sent / (links * self.topology.chip.link) if links else 0.0

  def _links(self, collective: Collective) -> int:
    """How many of a chip's links lead to others of its group."""
    if not collective.groups:
      return 0
    group = max(collective.groups, key=len)
    coords = [tuple(self.devices[i].coords) for i in group]
    if collective.kind == 'collective-permute':
      return 1
    return sum(
      self.topology.links(axis)
      for axis in range(len(self.topology.shape))
      if len({place[axis] for place in coords}) > 1
    )
