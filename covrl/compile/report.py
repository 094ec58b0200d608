# SPDX-License-Identifier: Apache-2.0
"""What compiled programs take, against what a chip has."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from covrl.compile.cost import Cost
from covrl.compile.network import Network
from covrl.parallel.topologies import GIB, Topology


class Memory(NamedTuple):
  """Bytes of a chip's HBM, by what they hold.

  Attributes:
    arguments: what the program is given.
    outputs: what it returns beyond what it was given to write over.
    temporaries: what it needs in between.
    code: itself.
    elsewhere: what the run keeps on the chip meanwhile: the training state's
      parts that the program does not read.
  """

  arguments: int
  outputs: int
  temporaries: int
  code: int
  elsewhere: int

  @property
  def peak(self) -> int:
    """All together."""
    return sum(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One program, on one chip.

  Attributes:
    memory: at its peak; `None` if the compiler gave up.
    needed: bytes at its peak, known also if the compiler gave up.
    cost: what it does; `None` likewise.
    model_flops: what the model itself asks for, per chip.
    ideal_bytes: what a decoding step must read, per chip; `None` of others.
    network: of the mesh that it was compiled for.
    calls: how often a run calls it in an iteration, at most.
  """

  memory: Memory | None
  needed: int
  cost: Cost | None
  model_flops: float
  ideal_bytes: float | None = None
  network: Network
  calls: int = 1

  @property
  def limit(self) -> int:
    """Bytes of HBM that a program may have."""
    return self.network.topology.chip.hbm

  @property
  def fits(self) -> bool:
    """Whether a chip has as much memory."""
    return self.cost is not None and self.needed <= self.limit

  def seconds(self) -> dict[str, float]:
    """What each part of a chip is busy for, if nothing waits for another."""
    if self.cost is None:
      return {}
    chip = self.network.topology.chip
    times = {
      'compute': self.cost.flops / chip.flops,
      'hbm': self.cost.bytes / chip.bandwidth,
      'ici': 0.0,
      'dcn': 0.0,
    }
    for each, count in self.cost.collectives:
      times[each.network] += count * self.network.seconds(each)
    return times

  def roofline(self) -> tuple[str, float]:
    """What binds, and for how long: the least time of a call."""
    times = self.seconds()
    bound = max(times, key=lambda name: times[name])
    return bound, times[bound]

  def ceiling(self) -> float:
    """The model's own operations per second, as a share of the chip's."""
    _, seconds = self.roofline()
    return self.model_flops / (seconds * self.network.topology.chip.flops)

  def exchanged(self) -> list[dict[str, Any]]:
    """Collectives by kind, size of group and network; most bytes first."""
    bytes_sent: collections.Counter[tuple[str, int, str]] = (
      collections.Counter()
    )
    counts: collections.Counter[tuple[str, int, str]] = collections.Counter()
    for each, count in self.cost.collectives if self.cost else ():
      chips = max(map(len, each.groups), default=1)
      key = each.kind, chips, each.network
      bytes_sent[key] += int(each.sent * count)
      counts[key] += count
    return [
      {
        'kind': kind,
        'chips': chips,
        'network': network,
        'count': counts[kind, chips, network],
        'bytes': sent,
      }
      for (kind, chips, network), sent in bytes_sent.most_common()
    ]

  def as_json(self) -> dict[str, Any]:
    """Plain numbers; `None` for what is not known of a program that is none."""
    described: dict[str, Any] = {
      'fits': self.fits,
      'hbm_bytes': self.needed,
      'hbm_limit_bytes': self.limit,
      'hbm': self.memory._asdict() if self.memory else None,
      'flops': None,
      'bytes': None,
      'collectives': [],
      'roofline_seconds': None,
      'model_flops': self.model_flops,
    }
    if self.cost is None:
      return described
    bound, seconds = self.roofline()
    described |= {
      'flops': self.cost.flops,
      'bytes': self.cost.bytes,
      'host_bytes': self.cost.host_bytes,
      'collectives': self.exchanged(),
      'roofline_seconds': seconds,
      'seconds': self.seconds(),
      'bound': bound,
      'mfu_ceiling': self.ceiling(),
      'uncounted_kernels': sorted(self.cost.unknown),
      'searches': self.cost.searches,
      'calls': self.calls,
    }
    if self.ideal_bytes is not None:
      described['ideal_bytes'] = self.ideal_bytes
    return described


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """A recipe on a topology.

  Attributes:
    recipe: its name.
    topology: of a slice.
    num_slices: how many.
    mesh: of training, axis sizes.
    sampler_mesh: of sampling.
    parameters: of the model.
    programs: by name.
  """

  recipe: str
  topology: Topology
  num_slices: int
  mesh: dict[str, int]
  sampler_mesh: dict[str, int]
  parameters: int
  programs: dict[str, Program]

  @property
  def fits(self) -> bool:
    """Whether every program fits."""
    return all(program.fits for program in self.programs.values())

  def as_json(self) -> dict[str, Any]:
    """The report for machines."""
    return {
      'fits': self.fits,
      'recipe': self.recipe,
      'topology': self.topology.name,
      'accelerator': self.topology.accelerator,
      'num_slices': self.num_slices,
      'chips': self.topology.chips * self.num_slices,
      'mesh': self.mesh,
      'sampler_mesh': self.sampler_mesh,
      'parameters': self.parameters,
      'programs': {
        name: program.as_json() for name, program in self.programs.items()
      },
    }

  def lines(self) -> Iterator[str]:
    """The report for people."""
    slices = f'{self.num_slices} slices of ' if self.num_slices > 1 else ''
    yield (
      f'{self.recipe}, {self.parameters / 1e9:.2f}e9 parameters, on {slices}'
      f'{self.topology.name} ({self.topology.accelerator}, '
      f'{self.topology.chips} chips), compiled and not run'
    )
    yield f'training   {_axes(self.mesh)}'
    yield f'sampling   {_axes(self.sampler_mesh)}'
    for name, program in self.programs.items():
      yield ''
      yield from _lines(name, program)
    yield ''
    yield self._verdict()

  def _verdict(self) -> str:
    """Whether it fits, in one sentence."""
    over = [n for n, program in self.programs.items() if not program.fits]
    if not over:
      fullest = max(self.programs, key=lambda n: self.programs[n].needed)
      share = self.programs[fullest].needed / self.programs[fullest].limit
      return f'It fits: {fullest} takes {share:.0%} of the memory, the most.'
    each = [
      f'{name} needs {_gib(self.programs[name].needed)} of '
      f'{_gib(self.programs[name].limit)}'
      for name in over
    ]
    return f'It does not fit: {", ".join(each)} per chip.'


def _lines(name: str, program: Program) -> Iterator[str]:
  """One program, for people."""
  share = program.needed / program.limit
  yield (
    f'{name}: {_gib(program.needed)} of {_gib(program.limit)} HBM per chip '
    f'({share:.0%}){"" if program.fits else ", does not fit"}'
  )
  if program.memory is not None:
    parts = program.memory._asdict().items()
    yield '  ' + ', '.join(f'{part} {_gib(size)}' for part, size in parts)
  if program.cost is None:
    return
  excess = program.cost.flops / program.model_flops
  yield (
    f'  {program.cost.flops:.3g} FLOPs per chip, {excess:.2f} times the '
    f"model's own; {program.cost.bytes / 1e9:.4g} GB to and from HBM"
  )
  if program.ideal_bytes is not None:
    ratio = program.cost.bytes / program.ideal_bytes
    yield f'  {ratio:.2f} times weights and a full cache, read once'
  for each in program.exchanged():
    yield (
      f'  {each["kind"]:<18} {each["bytes"] / 1e9:9.4g} GB sent per chip, '
      f'{each["network"].upper()}, groups of {each["chips"]}, '
      f'{each["count"]} times'
    )
  bound, seconds = program.roofline()
  times = ', '.join(
    f'{part} {time:.3g} s' for part, time in program.seconds().items() if time
  )
  yield (
    f'  at least {seconds:.4g} s, bound by {bound} ({times}); MFU at most '
    f'{program.ceiling():.0%}; an estimate'
  )
  if program.cost.unknown:
    yield f'  operations not counted: {", ".join(sorted(program.cost.unknown))}'


def _axes(mesh: dict[str, int]) -> str:
  return ' × '.join(f'{axis} {size}' for axis, size in mesh.items() if size > 1)


def _gib(size: int) -> str:
  return f'{size / GIB:.2f} GiB'
