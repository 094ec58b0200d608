# SPDX-License-Identifier: Apache-2.0
"""Report on compiled programs: memory, time and traffic against a chip's limits."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from covrl.compile import accuracy
from covrl.compile.cost import Cost
from covrl.compile.network import Interconnect
from covrl.compile.sampling_time import DecodingTime
from covrl.compile.units import bytes_text, time_text, traffic_text
from covrl.parallel.gpus import GpuTopology
from covrl.parallel.topologies import AnyTopology

_LINKS = {
  'ici': 'ICI',
  'dcn': 'DCN',
  'nvlink': 'NVLink',
  'network': 'network',
}


class Memory(NamedTuple):
  """Memory of one chip by use, in bytes of HBM.

  Attributes:
    arguments: the program's arguments.
    outputs: results that do not reuse the memory of donated arguments.
    temporaries: intermediate values.
    code: the program itself.
    unread_state: training state that the program does not read but that stays
      in memory while it runs.
  """

  arguments: int
  outputs: int
  temporaries: int
  code: int
  unread_state: int

  @property
  def peak(self) -> int:
    """Total bytes."""
    return sum(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One compiled program, per chip.

  Attributes:
    memory: peak memory by use; `None` if the program does not fit.
    needed_bytes: peak memory in bytes, known even if the program does not fit.
    cost: operations and traffic; `None` if the program does not fit.
    model_flops: FLOPs that the model requires.
    ideal_bytes: bytes that a decoding step must read: weights and full KV
      cache; `None` for other programs.
    decoding: estimates of the time of an iteration's decoding, by lengths of
      responses; empty for other programs.
    network: links of the mesh that it was compiled for.
    calls: maximal number of calls per iteration.
  """

  memory: Memory | None
  needed_bytes: int
  cost: Cost | None
  model_flops: float
  ideal_bytes: float | None = None
  decoding: tuple[DecodingTime, ...] = ()
  network: Interconnect
  calls: int = 1

  @property
  def limit(self) -> int:
    """Bytes of HBM available to a program."""
    return self.network.topology.chip.hbm

  @property
  def fits(self) -> bool:
    """Whether the program fits into a chip's memory."""
    return self.cost is not None and self.needed_bytes <= self.limit

  def seconds(self) -> dict[str, float]:
    """Returns the busy time of each unit of a chip, without any waiting."""
    if self.cost is None:
      return {}
    chip = self.network.topology.chip
    times = {
      'compute': self._compute_seconds(self.cost),
      'hbm': self.cost.bytes / chip.bandwidth,
      **dict.fromkeys(self.network.links, 0.0),
    }
    for each, count in self.cost.collectives:
      for link, seconds in self.network.busy_seconds(each).items():
        times[link] += count * seconds
    return times

  def _compute_seconds(self, cost: Cost) -> float:
    """Returns the time of all operations, products at their type's peak rate."""
    topology = self.network.topology
    seconds = cost.flops / topology.chip.flops
    if isinstance(topology, GpuTopology):
      for (_, dtype), flops in cost.products.items():
        seconds += flops / topology.chip.rate(dtype)
        seconds -= flops / topology.chip.flops
    return seconds

  def roofline(self) -> tuple[str, float]:
    """Returns the binding unit and its time, a lower bound of a call's time."""
    times = self.seconds()
    binding_unit = max(times, key=lambda name: times[name])
    return binding_unit, times[binding_unit]

  def mfu_ceiling(self) -> float:
    """Returns the MFU (model FLOPs utilisation) at the roofline time."""
    _, seconds = self.roofline()
    return self.model_flops / (seconds * self.network.topology.chip.flops)

  def tokens_per_second_and_chip(self, time: DecodingTime) -> float:
    """Returns the tokens per second and chip of an iteration's decoding."""
    return time.tokens / (time.seconds * len(self.network.devices))

  def collective_totals(self) -> list[dict[str, Any]]:
    """Returns totals per kind, group size and link, most bytes sent first."""
    bytes_sent: collections.Counter[tuple[str, int, str]] = (
      collections.Counter()
    )
    counts: collections.Counter[tuple[str, int, str]] = collections.Counter()
    for each, count in self.cost.collectives if self.cost else ():
      chips = max(map(len, each.groups), default=1)
      key = each.kind, chips, self.network.link(each)
      bytes_sent[key] += int(each.sent_bytes * count)
      counts[key] += count
    return [
      {
        'kind': kind,
        'chips': chips,
        'network': link,
        'count': counts[kind, chips, link],
        'bytes': sent,
      }
      for (kind, chips, link), sent in bytes_sent.most_common()
    ]

  def as_json(self) -> dict[str, Any]:
    """Returns plain JSON; unknown numbers of a program that does not fit are `None`."""
    fields: dict[str, Any] = {
      'fits': self.fits,
      'hbm_bytes': self.needed_bytes,
      'hbm_limit_bytes': self.limit,
      'hbm': self.memory._asdict() if self.memory else None,
      'flops': None,
      'bytes': None,
      'collectives': [],
      'roofline_seconds': None,
      'model_flops': self.model_flops,
    }
    if self.cost is None:
      return fields
    binding_unit, seconds = self.roofline()
    fields |= {
      'flops': self.cost.flops,
      'bytes': self.cost.bytes,
      'host_bytes': self.cost.host_bytes,
      'collectives': self.collective_totals(),
      'roofline_seconds': seconds,
      'seconds': self.seconds(),
      'bound': binding_unit,
      'mfu_ceiling': self.mfu_ceiling(),
      'uncounted_kernels': sorted(self.cost.unknown_kernels),
      'assumed_loops': self.cost.assumed_loops,
      'calls': self.calls,
    }
    if self.ideal_bytes is not None:
      fields['ideal_bytes'] = self.ideal_bytes
      fields['sampled'] = [
        {
          **each._asdict(),
          'tokens_per_second_and_chip': self.tokens_per_second_and_chip(each),
        }
        for each in self.decoding
      ]
    if self.cost.products:
      fields['products'] = [
        {'kernel': kernel, 'type': dtype, 'flops': flops}
        for (kernel, dtype), flops in by_size(self.cost.products)
      ]
    return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """All compiled programs of a recipe on a topology.

  Attributes:
    recipe: name of the recipe.
    config: all fields of the configuration by dotted name.
    topology: the TPU slice or the hosts of GPUs.
    num_slices: number of slices.
    mesh: axis sizes of the training mesh.
    sampler_mesh: axis sizes of the sampling mesh.
    admission: when prompts of further draws are begun; see `RolloutConfig`.
    parameters: number of model parameters.
    programs: programs by name.
  """

  recipe: str
  config: dict[str, Any]
  topology: AnyTopology
  num_slices: int
  mesh: dict[str, int]
  sampler_mesh: dict[str, int]
  admission: Literal['draws', 'slots']
  parameters: int
  programs: dict[str, Program]

  @property
  def fits(self) -> bool:
    """Whether every program fits."""
    return all(program.fits for program in self.programs.values())

  def as_json(self) -> dict[str, Any]:
    """Returns the report as plain JSON."""
    return {
      'fits': self.fits,
      'recipe': self.recipe,
      'config': self.config,
      'topology': self.topology.name,
      'accelerator': self.topology.accelerator,
      'num_slices': self.num_slices,
      'chips': self.topology.chips * self.num_slices,
      'mesh': self.mesh,
      'sampler_mesh': self.sampler_mesh,
      'admission': self.admission,
      'parameters': self.parameters,
      'programs': {
        name: program.as_json() for name, program in self.programs.items()
      },
      'estimates_against_measurements_on_cpus': accuracy.as_json(),
    }

  def lines(self) -> Iterator[str]:
    """Yields the lines of the report as text."""
    slices = f'{self.num_slices} slices of ' if self.num_slices > 1 else ''
    yield (
      f'{self.recipe}, {self.parameters:,} parameters, on {slices}'
      f'{self.topology.name} ({self.topology.accelerator}, '
      f'{self.topology.chips} {self._unit}s), compiled and not run'
    )
    yield f'training   {_axes_text(self.mesh)}'
    by_slots = ', prompts begun as slots are free'
    yield f'sampling   {_axes_text(self.sampler_mesh)}' + (
      by_slots if self.admission == 'slots' else ''
    )
    for name, program in self.programs.items():
      yield ''
      yield from _lines(name, program, self._unit)
    yield ''
    yield from accuracy.lines(self.topology.chip.kind)
    yield ''
    yield self._verdict()

  @property
  def _unit(self) -> str:
    """Name of a device in the report."""
    return 'GPU' if isinstance(self.topology, GpuTopology) else 'chip'

  def _verdict(self) -> str:
    """Returns one sentence on whether all programs fit."""
    too_large = [n for n, program in self.programs.items() if not program.fits]
    if not too_large:
      fullest = max(self.programs, key=lambda n: self.programs[n].needed_bytes)
      share = self.programs[fullest].needed_bytes / self.programs[fullest].limit
      return f'It fits: {fullest} needs the most memory, {_percent(share)}.'
    each = [
      f'{name} needs {bytes_text(self.programs[name].needed_bytes)} of '
      f'{bytes_text(self.programs[name].limit)}'
      for name in too_large
    ]
    return f'It does not fit: {", ".join(each)} per {self._unit}.'


def _lines(name: str, program: Program, unit: str) -> Iterator[str]:
  """Yields the lines of the report on one program."""
  share = program.needed_bytes / program.limit
  yield (
    f'{name}: {bytes_text(program.needed_bytes)} of {bytes_text(program.limit)} HBM per {unit} '
    f'({_percent(share)}){"" if program.fits else ", does not fit"}'
  )
  if program.memory is not None:
    parts = program.memory._asdict().items()
    yield '  ' + ', '.join(f'{part} {bytes_text(size)}' for part, size in parts)
  if program.cost is None:
    return
  flops_ratio = program.cost.flops / program.model_flops
  yield (
    f'  {program.cost.flops:.3g} FLOPs per {unit}, {flops_ratio:.2f} times the '
    f"model's own; {traffic_text(program.cost.bytes)} to and from HBM"
  )
  if program.ideal_bytes is not None:
    ratio = program.cost.bytes / program.ideal_bytes
    yield f'  {ratio:.2f} times the bytes of weights and a full cache'
  if program.cost.products:
    yield f'  products: {_products_text(program.cost)}, chosen without timing them'
  for each in program.collective_totals():
    yield (
      f'  {each["kind"]:<18} {traffic_text(each["bytes"]):>9} sent per {unit}, '
      f'{_LINKS[each["network"]]}, groups of {each["chips"]}, '
      f'{each["count"]} times'
    )
  binding_unit, seconds = program.roofline()
  times = ', '.join(
    f'{part} {time_text(time)}'
    for part, time in program.seconds().items()
    if time
  )
  yield (
    f'  at least {time_text(seconds)}, bound by {binding_unit} ({times}); MFU at most '
    f'{program.mfu_ceiling():.0%}; an estimate'
  )
  for each in program.decoding:
    yield (
      f'  {each.lengths} lengths, mean {each.mean:,.0f}: an iteration in at '
      f'least {time_text(each.seconds)}, {program.tokens_per_second_and_chip(each):,.0f} tokens/s '
      f'per {unit}; an estimate'
    )
  if program.cost.unknown_kernels:
    yield f'  operations not counted: {", ".join(sorted(program.cost.unknown_kernels))}'


def _products_text(cost: Cost) -> str:
  """Describes the kernels of matrix products by their share of the operations.

  >>> _products_text(Cost(products={('Triton', 'bf16'): 3.0}))
  '100% by Triton in bf16'
  """
  total = sum(cost.products.values()) or 1.0
  return ', '.join(
    f'{_percent(flops / total)} by {kernel} in {dtype}'
    for (kernel, dtype), flops in by_size(cost.products)
  )


def by_size(
  products: dict[tuple[str, str], float],
) -> list[tuple[tuple[str, str], float]]:
  """Returns kernels and their operations, those with the most first."""
  return sorted(products.items(), key=lambda each: -each[1])


def _percent(share: float) -> str:
  """Formats a share; small ones are not 0.

  >>> _percent(0.516), _percent(0.004)
  ('52%', 'below 1%')
  """
  return 'below 1%' if 0 < share < 0.01 else f'{share:.0%}'


def _axes_text(mesh: dict[str, int]) -> str:
  """Formats the axes of a mesh that have more than one device."""
  return ' × '.join(f'{axis} {size}' for axis, size in mesh.items() if size > 1)
