# SPDX-License-Identifier: Apache-2.0
"""Parser for the text of a compiled program (scheduled XLA HLO).

Reads only the parts that cost analysis needs: computations, instructions, shapes with
tiles and memory spaces, and trip counts of loops.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

Platform: TypeAlias = Literal['tpu', 'gpu']

# Bits per element of types whose name does not state them.
_BITS = {'pred': 8, 'bf16': 16, 'c64': 64, 'c128': 128, 'token': 0}
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?')
_TILE = re.compile(r'T((?:\([\d,*]+\))+)')
# Beginnings of computations and of instructions.
_COMPUTATION_START = re.compile(r'^(ENTRY )?%?([\w.<>-]+) \(.*\{$')
_INSTRUCTION_START = re.compile(r'^\s+(ROOT )?%?([\w.<>-]+) = ')
_OPCODE = re.compile(r'\s*([a-z][a-z0-9-]*)\(')
_NAME = re.compile(r'%([\w.<>-]+)')
_PARENTHESIS = re.compile(r'[()]')
# Memory spaces by number; device memory is not annotated. On GPUs, 1 is device
# memory that NCCL has registered.
_MEMORY_SPACES = {
  'tpu': {'1': 'vmem', '5': 'host'},
  'gpu': {'1': 'hbm', '5': 'host'},
}


class Shape(NamedTuple):
  """An array's type.

  Attributes:
    dtype: element type, such as `'bf16'`.
    dims: sizes of the axes.
    order: axes from minor to major; empty if not stated.
    tiles: the minor axes are padded to multiples of these sizes.
    space: memory space: `'hbm'`, `'vmem'`, `'host'` or `'other'`.
  """

  dtype: str
  dims: tuple[int, ...]
  order: tuple[int, ...] = ()
  tiles: tuple[int, ...] = ()
  space: str = 'hbm'

  @property
  def elements(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def bits(self) -> int:
    """Bits per element."""
    match = re.search(r'\d+', self.dtype)
    return _BITS.get(self.dtype, int(match[0]) if match else 0)

  @property
  def size(self) -> int:
    """Bytes without padding."""
    return self.elements * self.bits // 8

  @property
  def padded_size(self) -> int:
    """Bytes with tiles padded, as in memory."""
    sizes = [self.dims[axis] for axis in self.order] or list(self.dims[::-1])
    for axis, tile in enumerate(reversed(self.tiles)):
      if axis < len(sizes):
        sizes[axis] = -(-sizes[axis] // tile) * tile
    return math.prod(sizes) * self.bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An HLO instruction.

  Attributes:
    name: name, unique within its computation.
    opcode: operation, such as `'fusion'`.
    shapes: shapes of the result, one per element of a tuple.
    operands: names of the instructions that it reads.
    text: the rest of the line, after the operands.
    argument: the text between the parentheses.
    is_root: whether it is the result of its computation.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  text: str
  argument: str
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """Returns the value of a simple attribute, if present."""
    match = re.search(rf'\b{name}=%?([^\s,]+)', self.text)
    return match[1] if match else None

  @property
  def index(self) -> int:
    """Number of a parameter, or index of a tuple element."""
    if self.opcode == 'parameter':
      return int(self.argument)
    return int(self.attribute('index') or 0)

  @property
  def called(self) -> tuple[str, ...]:
    """Names of the computations that it calls."""
    names = re.findall(
      r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)'
      r'=%?([\w.<>-]+)',
      self.text,
    )
    for branches in re.findall(r'branch_computations=\{([^}]*)\}', self.text):
      names += [name.strip().lstrip('%') for name in branches.split(',')]
    return tuple(names)

  @property
  def scope(self) -> str:
    """JAX's `op_name` of the operation; empty if absent."""
    match = re.search(r'op_name="([^"]*)"', self.text)
    return match[1] if match else ''


@dataclasses.dataclass(frozen=True)
class Computation:
  """A computation: a named list of instructions.

  Attributes:
    name: unique name.
    instructions: instructions by name, in order.
  """

  name: str
  instructions: dict[str, Instruction]

  @functools.cached_property
  def root(self) -> Instruction:
    """The instruction that produces the result."""
    return next(
      instruction
      for instruction in self.instructions.values()
      if instruction.is_root
    )

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """Parameters by number."""
    return {
      instruction.index: instruction
      for instruction in self.instructions.values()
      if instruction.opcode == 'parameter'
    }

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Instructions that read each instruction's result."""
    users: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
      for name in dict.fromkeys(instruction.operands):
        users.setdefault(name, []).append(instruction)
    return users

  def operands(self, instruction: Instruction) -> Iterator[Instruction]:
    """Yields the instructions whose results are read."""
    for name in instruction.operands:
      if name in self.instructions:
        yield self.instructions[name]


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: computations by name.
    entry: the entry computation.
    platform: platform that it was compiled for; programs for CPUs are parsed as
      'gpu'.
  """

  computations: dict[str, Computation]
  entry: Computation
  platform: Platform = 'tpu'

  def called(self, instruction: Instruction) -> Iterator[Computation]:
    """Yields the computations that an instruction calls."""
    for name in instruction.called:
      yield self.computations[name]

  def trip_count(
    self, loop: Instruction, computation: Computation
  ) -> int | None:
    """Returns the trip count of a loop; `None` if it depends on data.

    Known if XLA states it, or if the condition compares a counter with a
    constant and the counter starts at a constant and grows by a constant (two,
    where XLA unrolls a collective matrix product).
    """
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if stated:
      return int(stated[1])
    condition = self.computations[loop.attribute('condition') or '']
    counter_and_bound = self._counter_and_bound(condition)
    if counter_and_bound is None:
      return None
    counter, bound = counter_and_bound
    start = _tuple_element(computation, loop.operands[0], counter)
    if start is None or start.opcode != 'constant':
      return None
    body = self.computations[loop.attribute('body') or '']
    step = self._increment(body, _tuple_element(body, body.root.name, counter))
    return None if step is None else -((int(start.argument) - bound) // step)

  def _counter_and_bound(
    self, condition: Computation
  ) -> tuple[int, int] | None:
    """Returns the tuple index of a loop's counter and its upper bound.

    On GPUs the comparison may be a fusion of its own.
    """
    fusion, comparison, computation = None, condition.root, condition
    if comparison.opcode == 'fusion':
      fusion, (computation,) = comparison, self.called(comparison)
      comparison = computation.root
    if comparison.opcode != 'compare' or 'direction=LT' not in comparison.text:
      return None
    counter, bound = computation.operands(comparison)
    if fusion is not None and counter.opcode == 'parameter':
      counter = condition.instructions[fusion.operands[counter.index]]
    if counter.opcode != 'get-tuple-element' or bound.opcode != 'constant':
      return None
    return counter.index, int(bound.argument)

  def _increment(
    self, computation: Computation, next_counter: Instruction | None
  ) -> int | None:
    """Returns the positive constant added to a counter, if there is one."""
    if next_counter is not None and next_counter.opcode == 'fusion':
      (computation,) = self.called(next_counter)
      next_counter = computation.root
    if next_counter is None or next_counter.opcode != 'add':
      return None
    steps = [
      int(instruction.argument)
      for instruction in computation.operands(next_counter)
      if instruction.opcode == 'constant'
    ]
    return steps[0] if len(steps) == 1 and steps[0] > 0 else None


def _tuple_element(
  computation: Computation, name: str, index: int
) -> Instruction | None:
  """Returns the instruction behind one element of a tuple, through copies."""
  instruction = computation.instructions.get(name)
  if instruction is None or instruction.opcode != 'tuple':
    return None
  element = computation.instructions.get(instruction.operands[index])
  while element is not None and element.opcode in ('copy', 'bitcast'):
    element = computation.instructions.get(element.operands[0])
  return element


def parse(text: str, platform: Platform = 'tpu') -> Module:
  """Parses a program.

  >>> module = parse('''
  ... ENTRY %main (x: f32[2]) -> f32[2] {
  ...   %x = f32[2]{0:T(128)} parameter(0)
  ...   ROOT %y = f32[2]{0:T(128)S(1)} negate(%x)
  ... }''')
  >>> module.entry.root.opcode, module.entry.root.shapes[0].space
  ('negate', 'vmem')
  >>> module.entry.root.shapes[0].padded_size
  512
  """
  computations: dict[str, Computation] = {}
  entry = name = ''
  for line in _logical_lines(text):
    head = _COMPUTATION_START.match(line)
    if head:
      name = head[2]
      computations[name] = Computation(name, {})
      entry = name if head[1] else entry
    elif name and (instruction := _parse_instruction(line, platform)):
      computations[name].instructions[instruction.name] = instruction
  return Module(computations, computations[entry], platform)


def _logical_lines(text: str) -> Iterator[str]:
  """Yields lines, joined where an instruction spans several of them.

  Backend configurations of kernels may contain line breaks.
  """
  logical_line = ''
  for line in text.splitlines():
    if (
      line == '}'
      or not line
      or _INSTRUCTION_START.match(line)
      or _COMPUTATION_START.match(line)
    ):
      yield logical_line
      logical_line = line
    else:
      logical_line += line
  yield logical_line


def _parse_instruction(line: str, platform: Platform) -> Instruction | None:
  """Parses a line, if it is an instruction."""
  start = _INSTRUCTION_START.match(line)
  if start is None:
    return None
  end = _end_of_type(line, start.end())
  opcode = _OPCODE.match(line, end)
  if opcode is None:
    return None
  closing = _closing_position(line, opcode.end() - 1)
  argument = line[opcode.end() : closing]
  return Instruction(
    name=start[2],
    opcode=opcode[1],
    shapes=tuple(shapes_of(line[start.end() : end], platform)),
    operands=tuple(_NAME.findall(argument)),
    text=line[closing + 1 :],
    argument=argument,
    is_root=bool(start[1]),
  )


def _end_of_type(line: str, start: int) -> int:
  """Returns the end of the type that begins at `start`."""
  if line[start] == '(':
    return _closing_position(line, start) + 1
  return line.index(' ', start)


def _closing_position(line: str, start: int) -> int:
  """Returns the position of the parenthesis that closes the one at `start`."""
  depth = 0
  for parenthesis in _PARENTHESIS.finditer(line, start):
    depth += 1 if parenthesis[0] == '(' else -1
    if depth == 0:
      return parenthesis.start()
  raise ValueError(f'HLO must close its parentheses, got {line[start:]!r}')


def shapes_of(text: str, platform: Platform = 'tpu') -> Iterator[Shape]:
  """Yields the array shapes of a type.

  >>> [shape.size for shape in shapes_of('(s32[7]{0}, pred[2,3]{1,0})')]
  [28, 6]
  """
  for dtype, dims, order, layout in _SHAPE.findall(text):
    tile = _TILE.search(layout)
    space = re.search(r'S\((\d+)\)', layout)
    yield Shape(
      dtype=dtype,
      dims=_numbers(dims),
      order=_numbers(order),
      tiles=_numbers(tile[1][1:].split(')')[0]) if tile else (),
      space=_MEMORY_SPACES[platform].get(space[1], 'other') if space else 'hbm',
    )


def _numbers(text: str) -> tuple[int, ...]:
  """Returns all non-negative integers in a text."""
  return tuple(int(number) for number in re.findall(r'\d+', text))
