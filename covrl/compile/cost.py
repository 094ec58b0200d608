# SPDX-License-Identifier: Apache-2.0
"""Operations, memory traffic and collectives of a compiled program, per chip.

Differs from XLA's own cost analysis in two ways: loop bodies are multiplied by
their trip counts, and bytes are those of padded tiles that move to or from HBM
(values that stay in VMEM do not count). Caches of GPUs are not modelled.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from covrl.compile.collectives import (
  OPCODES,
  Collective,
  collectives_in,
  results,
)
from covrl.compile.gpu_kernels import gpu_kernel, kernel_names
from covrl.compile.hlo import Computation, Instruction, Module, Shape
from covrl.compile.kernels import kernel_of

# Trip count of loops whose trip count depends on data and that state none in their
# scope, `about_N_trips`: bisections over the bits of a float.
SEARCH_TRIPS = 32

_FREE = frozenset(
  (
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'after-all',
    'partition-id',
    'replica-id',
    'opt-barrier',
    'while',
    'conditional',
    'call',
  )
)
# Operations without traffic of their own.
_THROUGH = frozenset(('bitcast', 'reshape', 'copy', 'convert', 'transpose'))
_UNCOUNTED = _FREE | {
  'copy',
  'reshape',
  'transpose',
  'broadcast',
  'slice',
  'dynamic-slice',
  'dynamic-update-slice',
  'concatenate',
  'pad',
  'reverse',
  'iota',
  'gather',
  'custom-call',
  'copy-start',
  'copy-done',
  'convert',
  'fusion',
  'async-start',
  'async-update',
  'async-done',
  'rng-bit-generator',
  'sort',
  'send',
  'send-done',
  'recv',
  'recv-done',
  *OPCODES,
  *(each.replace('-start', '-done') for each in OPCODES),
}


class Scopes(NamedTuple):
  """JAX scopes that are counted in a way of their own.

  Attributes:
    unused: options that are off; of conditionals in them, the cheapest branch
      counts.
    omitted: parts that do not count.
  """

  unused: frozenset[str] = frozenset()
  omitted: frozenset[str] = frozenset()


EVERYTHING = Scopes()


@dataclasses.dataclass(kw_only=True)
class Cost:
  """The cost of a program, or of a part of it, on one chip.

  Attributes:
    flops: arithmetic operations.
    bytes: traffic to and from HBM.
    host_bytes: traffic to and from host memory.
    collectives: collectives with their numbers of executions.
    unknown: names of kernels of unknown cost.
    searches: number of loops whose trip count depends on data and is stated
      nowhere.
    products: operations of matrix products on GPUs, by kernel and type of the
      factors.
  """

  flops: float = 0.0
  bytes: float = 0.0
  host_bytes: float = 0.0
  collectives: list[tuple[Collective, int]] = dataclasses.field(
    default_factory=list
  )
  unknown: set[str] = dataclasses.field(default_factory=set)
  searches: int = 0
  products: dict[tuple[str, str], float] = dataclasses.field(
    default_factory=dict
  )

  def add(self, other: Cost, times: int = 1) -> None:
    """Adds the cost of a part that runs `times` times."""
    self.flops += times * other.flops
    self.bytes += times * other.bytes
    self.host_bytes += times * other.host_bytes
    self.collectives += [(each, n * times) for each, n in other.collectives]
    self.unknown |= other.unknown
    self.searches += other.searches
    for key, flops in other.products.items():
      self.products[key] = self.products.get(key, 0.0) + times * flops


def cost_of(
  module: Module,
  computation: Computation | None = None,
  *,
  scopes: Scopes = EVERYTHING,
) -> Cost:
  """Returns the cost of a computation, including all that it calls.

  Of a conditional's branches, the most expensive one counts.

  Args:
    module: the program.
    computation: a part of the program; the entry computation if absent.
    scopes: parts that do not count.
  """
  computation = computation or module.entry
  total = Cost()
  for each in computation.instructions.values():
    if not scopes.omitted.isdisjoint(each.scope.split('/')):
      continue
    if each.opcode == 'while':
      _add_loop(total, module, computation, each, scopes)
    elif each.opcode == 'conditional':
      branches = sorted(
        (cost_of(module, c, scopes=scopes) for c in module.called(each)),
        key=lambda cost: (cost.bytes, cost.flops),
      )
      is_unused = not scopes.unused.isdisjoint(each.scope.split('/'))
      total.add(branches[0 if is_unused else -1])
    elif each.opcode == 'call':
      for called in module.called(each):
        total.add(cost_of(module, called, scopes=scopes))
    else:
      total.add(_cost_of_one(module, computation, each))
  return total


def _add_loop(
  total: Cost,
  module: Module,
  around: Computation,
  loop: Instruction,
  scopes: Scopes,
) -> None:
  """Adds the cost of all trips of a loop."""
  trips = module.trips(loop, around)
  if trips is None:
    stated = re.search(r'about_(\d+)_trips/while$', loop.scope)
    trips = int(stated[1]) if stated else SEARCH_TRIPS
    total.searches += stated is None
  body = module.computations[loop.attribute('body') or '']
  total.add(cost_of(module, body, scopes=scopes), trips)


def _cost_of_one(
  module: Module, computation: Computation, each: Instruction
) -> Cost:
  """Returns the cost of one instruction other than a loop."""
  cost = Cost(flops=flops_of(module, computation, each))
  cost.collectives = [(found, 1) for found in collectives_in(module, each)]
  find = gpu_kernel if module.platform == 'gpu' else kernel_of
  kernel = find(each, computation)
  if kernel is not None:
    cost.flops += kernel.flops
  if module.platform == 'gpu':
    names = kernel_names(module, computation, each)
    if names is not None:
      cost.products[names] = cost.flops
  if kernel is None:
    cost.bytes, cost.host_bytes = _traffic(module, computation, each)
    return cost
  least, cost.host_bytes = _traffic(module, computation, each)
  cost.bytes = kernel.bytes if kernel.stated else max(least, kernel.bytes)
  if not kernel.known:
    cost.unknown.add(each.name.split('.')[0])
  return cost


def flops_of(
  module: Module, computation: Computation, each: Instruction
) -> float:
  """Returns the FLOPs of an instruction and of its fused computation."""
  if each.opcode in ('fusion', 'async-start'):
    return sum(
      flops_of(module, called, inner)
      for called in module.called(each)
      for inner in called.instructions.values()
    )
  if each.opcode == 'convolution':
    return _flops_of_convolution(computation, each)
  if each.opcode == 'dot':
    return _flops_of_dot(computation, each)
  if each.opcode in ('reduce', 'reduce-window', 'scatter'):
    first = next(computation.operands(each), None)
    read = first.shapes[0].elements if first else 0
    return float(max(read, each.shapes[0].elements))
  if each.opcode in _UNCOUNTED:
    return 0.0
  return float(each.shapes[0].elements) if each.shapes else 0.0


def _flops_of_dot(computation: Computation, dot: Instruction) -> float:
  """Returns 2 × result elements × contracted size."""
  left = computation.instructions[dot.operands[0]].shapes[0]
  axes = dot.text.split('lhs_contracting_dims={')[1].split('}')[0]
  summed = [left.dims[int(axis)] for axis in axes.split(',') if axis]
  return 2.0 * dot.shapes[0].elements * math.prod(summed)


def _flops_of_convolution(computation: Computation, each: Instruction) -> float:
  """Returns 2 × multiplications, without those by padding and dilation gaps.

  TPU programs express matrix products as convolutions, with batch axes as
  spatial ones.
  """
  left, right = (
    computation.instructions[name].shapes[0] for name in each.operands[:2]
  )
  labels = each.attribute('dim_labels') or ''
  into, rest = labels.split('_')
  kernel, out = rest.split('->')
  result = each.shapes[0]
  batch = result.dims[out.index('b')]
  features = result.dims[out.index('f')]
  summed = right.dims[kernel.index('i')]
  window = _Window.of(each.text)
  positions = 1
  for axis in range(sum(label.isdigit() for label in out)):
    positions *= window.valid(
      axis,
      left.dims[into.index(str(axis))],
      right.dims[kernel.index(str(axis))],
      result.dims[out.index(str(axis))],
    )
  return 2.0 * batch * features * summed * positions / window.batch_groups


@dataclasses.dataclass(frozen=True)
class _Window:
  """The window of a convolution, per spatial axis."""

  fields: dict[str, list[str]]
  batch_groups: int

  @classmethod
  def of(cls, text: str) -> _Window:
    """Parses `window={size=4x7 pad=3_3x6_6 …}`."""
    inside = (
      text.split('window={')[1].split('}')[0] if 'window={' in text else ''
    )
    fields = dict(part.split('=') for part in inside.split())
    groups = text.split('batch_group_count=')
    count = groups[1].split(',')[0] if len(groups) > 1 else '1'
    return cls({k: v.split('x') for k, v in fields.items()}, int(count))

  def _get(self, name: str, axis: int, default: str) -> str:
    values = self.fields.get(name)
    return default if values is None else values[axis]

  def valid(self, axis: int, size: int, kernel: int, results: int) -> int:
    """Counts pairs of output and kernel positions that meet an input."""
    stride = int(self._get('stride', axis, '1'))
    low = int(self._get('pad', axis, '0_0').split('_')[0])
    gap = int(self._get('lhs_dilate', axis, '1'))
    spread = int(self._get('rhs_dilate', axis, '1'))
    count = 0
    for position in range(kernel):
      # Output r reads dilated input position r·stride + offset.
      offset = position * spread - low
      if stride == 1 and gap == 1:
        count += max(min(results, size - offset) - max(0, -offset), 0)
        continue
      for result in range(results):
        at = result * stride + offset
        count += at % gap == 0 and 0 <= at // gap < size
    return count


def _traffic(
  module: Module, computation: Computation, each: Instruction
) -> tuple[float, float]:
  """Returns the bytes to and from HBM, and to and from the host."""
  if each.opcode in _FREE or each.opcode.endswith(('-done', '-update')):
    return 0.0, 0.0
  if 'custom_call_target="AllocateBuffer"' in each.text:
    return 0.0, 0.0
  moved = [*_read(module, computation, each), *_written(module, each)]
  if module.platform == 'gpu' and each.opcode in OPCODES:
    moved = [*_read(module, computation, each), *results(each)]
  if each.opcode == 'dynamic-update-slice':
    update = computation.instructions[each.operands[1]].shapes[0]
    moved = [update, update._replace(space=each.shapes[0].space)]
  elif each.opcode == 'scatter' and module.platform == 'gpu':
    moved = [*_scattered(computation, each)]
  elif each.opcode in ('dynamic-slice', 'slice', 'gather'):
    source = computation.instructions[each.operands[0]].shapes[0]
    moved = [each.shapes[0], each.shapes[0]._replace(space=source.space)]
  elif each.opcode in ('send', 'recv'):
    moved = [each.shapes[0]]
  elif each.opcode in ('copy-start', 'async-start', 'slice-start'):
    # The tuple holds destination, source and a semaphore.
    target, source, *rest = each.shapes
    if each.opcode == 'copy-start':
      moved = [target, source]
    else:
      moved = [[target, source, *rest][-2] if rest else target]
      moved = [moved[0], moved[0]._replace(space=target.space)]
  hbm = sum(shape.padded_size for shape in moved if shape.space == 'hbm')
  host = sum(shape.padded_size for shape in moved if shape.space == 'host')
  return float(hbm), float(host)


def _scattered(computation: Computation, each: Instruction) -> Iterator[Shape]:
  """Yields what a scatter in place moves: indices, and each update twice."""
  _, indices, updates = (x.shapes[0] for x in computation.operands(each))
  yield from (indices, updates, updates)


def _read(
  module: Module, computation: Computation, each: Instruction
) -> Iterator[Shape]:
  """Yields the arrays, or slices of them, that an instruction reads."""
  for number, operand in enumerate(computation.operands(each)):
    if len(operand.shapes) != 1:
      continue
    shape = operand.shapes[0]
    if each.opcode == 'fusion':
      called = next(module.called(each))
      parts = _read_of_parameter(module, called, number)
      if parts is not None:
        yield from (part._replace(space=shape.space) for part in parts)
        continue
    yield shape


def _read_of_parameter(
  module: Module, computation: Computation, number: int
) -> list[Shape] | None:
  """Returns the slices of a fusion's parameter that are read, if not all."""
  return _read_of(module, computation, computation.parameters[number])


def _read_of(
  module: Module, computation: Computation, value: Instruction
) -> list[Shape] | None:
  """Returns the slices of a fused value that are read; `None` for all of it."""
  parts: list[Shape] = []
  for user in computation.users.get(value.name, []):
    first = user.operands[0] == value.name
    if user.opcode in ('dynamic-slice', 'slice', 'gather') and first:
      parts.append(user.shapes[0])
    elif user.opcode == 'dynamic-update-slice' and first:
      continue  # Updated in place.
    elif user.opcode == 'scatter' and first and module.platform == 'gpu':
      continue  # Updated in place, and read where it is.
    elif user.opcode in ('bitcast', 'reshape'):
      found = _read_of(module, computation, user)
      if found is None:
        return None
      parts += found
    elif user.opcode == 'fusion':
      called = next(module.called(user))
      for number, name in enumerate(user.operands):
        if name != value.name:
          continue
        found = _read_of_parameter(module, called, number)
        if found is None:
          return None
        parts += found
    else:
      return None
  whole = value.shapes[0].padded_size
  return parts if sum(part.padded_size for part in parts) < whole else None


def _written(module: Module, each: Instruction) -> Iterator[Shape]:
  """Yields the arrays that an instruction writes, with their memory spaces."""
  if each.opcode != 'fusion':
    yield from each.shapes
    return
  called = next(module.called(each))
  roots = _results(called, called.root)
  for shape, root in zip(each.shapes, roots, strict=False):
    yield _update_of(module, called, root, shape)


def _results(computation: Computation, root: Instruction) -> list[Instruction]:
  """Returns the instructions that produce each part of a result."""
  if root.opcode != 'tuple':
    return [root]
  return [computation.instructions[name] for name in root.operands]


def _update_of(
  module: Module, computation: Computation, root: Instruction, shape: Shape
) -> Shape:
  """Returns the written part of a fusion's result: the update, if in place."""
  while root.opcode in ('bitcast', 'reshape') and root.operands:
    root = computation.instructions[root.operands[0]]
  if root.opcode == 'dynamic-update-slice':
    update = computation.instructions[root.operands[1]].shapes[0]
    return update._replace(space=shape.space)
  if root.opcode == 'scatter' and module.platform == 'gpu':
    operand, *_, update = computation.operands(root)
    if operand.opcode == 'parameter':
      return update.shapes[0]._replace(space=shape.space)
  if root.opcode == 'fusion':
    called = next(module.called(root))
    inner = called.root
    if inner.opcode != 'tuple':
      return _update_of(module, called, inner, shape)
  return shape
