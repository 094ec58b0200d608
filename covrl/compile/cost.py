# SPDX-License-Identifier: Apache-2.0
"""Operations, memory traffic and collectives of a compiled program, per chip.

Differs from XLA's own cost analysis in two ways: loop bodies are multiplied by
their trip counts, and bytes are those of padded tiles that move to or from HBM
(values that stay in VMEM do not count). Caches of GPUs are not modelled.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from covrl.compile.collectives import (
  Collective,
  begins_collective,
  collectives_in,
)
from covrl.compile.flops import flops_of
from covrl.compile.gpu_kernels import gpu_kernel_cost, kernel_and_type_of
from covrl.compile.hlo import Computation, Instruction, Module
from covrl.compile.kernels import pallas_kernel_cost
from covrl.compile.traffic import traffic_of

# Assumed trips of a loop whose number depends on data and is not stated by its
# scope, `about_N_trips`: such loops are bisections over the bits of a float.
ASSUMED_TRIPS = 32


class Scopes(NamedTuple):
  """JAX scopes whose cost is left out or reduced.

  Attributes:
    unused: scopes of options that are off; of a conditional in them, the cost of
      the cheapest branch counts.
    omitted: scopes whose cost is left out.
  """

  unused: frozenset[str] = frozenset()
  omitted: frozenset[str] = frozenset()


ALL_SCOPES = Scopes()


@dataclasses.dataclass(kw_only=True)
class Cost:
  """The cost of a program, or of a part of it, on one chip.

  Attributes:
    flops: arithmetic operations.
    bytes: traffic to and from HBM.
    host_bytes: traffic to and from host memory.
    collectives: collectives with their numbers of executions.
    unknown_kernels: names of kernels of unknown cost.
    assumed_loops: number of loops whose trip count depends on data, is stated
      nowhere, and is assumed to be `ASSUMED_TRIPS`.
    products: operations of matrix products on GPUs, by kernel and type of the
      factors.
  """

  flops: float = 0.0
  bytes: float = 0.0
  host_bytes: float = 0.0
  collectives: list[tuple[Collective, int]] = dataclasses.field(
    default_factory=list
  )
  unknown_kernels: set[str] = dataclasses.field(default_factory=set)
  assumed_loops: int = 0
  products: dict[tuple[str, str], float] = dataclasses.field(
    default_factory=dict
  )

  def add(self, other: Cost, times: int = 1) -> None:
    """Adds the cost of a part that runs `times` times."""
    self.flops += times * other.flops
    self.bytes += times * other.bytes
    self.host_bytes += times * other.host_bytes
    self.collectives += [
      (collective, executions * times)
      for collective, executions in other.collectives
    ]
    self.unknown_kernels |= other.unknown_kernels
    self.assumed_loops += other.assumed_loops
    for key, flops in other.products.items():
      self.products[key] = self.products.get(key, 0.0) + times * flops


def cost_of(
  module: Module,
  computation: Computation | None = None,
  *,
  scopes: Scopes = ALL_SCOPES,
) -> Cost:
  """Returns the cost of a computation, including all that it calls.

  Of a conditional's branches, the most expensive one counts.

  Args:
    module: the program.
    computation: a part of the program; the entry computation if absent.
    scopes: parts whose cost is left out or reduced.
  """
  computation = computation or module.entry
  total, begun_channels = Cost(), set[str | None]()
  for instruction in computation.instructions.values():
    if not scopes.omitted.isdisjoint(instruction.scope.split('/')):
      continue
    if instruction.opcode == 'while':
      _add_loop(total, module, computation, instruction, scopes)
    elif instruction.opcode == 'conditional':
      branches = sorted(
        (cost_of(module, c, scopes=scopes) for c in module.called(instruction)),
        key=lambda cost: (cost.bytes, cost.flops),
      )
      is_unused = not scopes.unused.isdisjoint(instruction.scope.split('/'))
      total.add(branches[0 if is_unused else -1])
    elif instruction.opcode == 'call':
      for called in module.called(instruction):
        total.add(cost_of(module, called, scopes=scopes))
    else:
      cost = _cost_of_instruction(module, computation, instruction)
      if instruction.opcode == 'fusion':
        cost.collectives = [
          (collective, executions)
          for collective, executions in cost.collectives
          if collective.channel not in begun_channels
        ]
      if begins_collective(instruction):
        begun_channels |= {
          collective.channel for collective, _ in cost.collectives
        } - {None}
      total.add(cost)
  return total


def _add_loop(
  total: Cost,
  module: Module,
  computation: Computation,
  loop: Instruction,
  scopes: Scopes,
) -> None:
  """Adds the cost of all trips of a loop."""
  trips = module.trip_count(loop, computation)
  if trips is None:
    stated_trips = re.search(r'about_(\d+)_trips/while$', loop.scope)
    trips = int(stated_trips[1]) if stated_trips else ASSUMED_TRIPS
    total.assumed_loops += stated_trips is None
  body = module.computations[loop.attribute('body') or '']
  total.add(cost_of(module, body, scopes=scopes), trips)


def _cost_of_instruction(
  module: Module, computation: Computation, instruction: Instruction
) -> Cost:
  """Returns the cost of one instruction other than a loop."""
  cost = Cost(flops=flops_of(module, computation, instruction))
  cost.collectives = [
    (collective, 1) for collective in collectives_in(module, instruction)
  ]
  kernel_cost = (
    gpu_kernel_cost if module.platform == 'gpu' else pallas_kernel_cost
  )
  kernel = kernel_cost(instruction, computation)
  if kernel is not None:
    cost.flops += kernel.flops
  if module.platform == 'gpu':
    kernel_and_type = kernel_and_type_of(module, computation, instruction)
    if kernel_and_type is not None:
      cost.products[kernel_and_type] = cost.flops
  if kernel is None:
    cost.bytes, cost.host_bytes = traffic_of(module, computation, instruction)
    return cost
  min_bytes, cost.host_bytes = traffic_of(module, computation, instruction)
  cost.bytes = (
    kernel.bytes if kernel.is_stated else max(min_bytes, kernel.bytes)
  )
  if not kernel.is_known:
    cost.unknown_kernels.add(instruction.name.split('.')[0])
  return cost
