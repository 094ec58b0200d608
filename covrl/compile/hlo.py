# SPDX-License-Identifier: Apache-2.0
"""Reads the text of a compiled program: XLA's HLO, as it is scheduled.

Only what costs are counted from is understood: computations, instructions,
shapes with their tiles and memory spaces, and how often loops run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {'pred': 8, 'bf16': 16, 'c64': 64, 'c128': 128, 'token': 0}
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?')
_TILE = re.compile(r'T((?:\([\d,*]+\))+)')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.<>-]+) \(.*\{$')
_START = re.compile(r'^\s+(ROOT )?%?([\w.<>-]+) = ')
_OPCODE = re.compile(r'\s*([a-z][a-z0-9-]*)\(')
_NAME = re.compile(r'%([\w.<>-]+)')
_PARENTHESIS = re.compile(r'[()]')
# Memory spaces of a TPU: none is written for HBM.
_SPACES = {'1': 'vmem', '5': 'host'}


class Shape(NamedTuple):
  """An array's type.

  Attributes:
    kind: element type, such as `'bf16'`.
    dims: sizes.
    order: axes, the fastest first; empty where the text does not say.
    tiles: sizes that the fastest axes are filled up to multiples of.
    space: `'hbm'`, `'vmem'`, `'host'` or another of the chip's memories.
  """

  kind: str
  dims: tuple[int, ...]
  order: tuple[int, ...] = ()
  tiles: tuple[int, ...] = ()
  space: str = 'hbm'

  @property
  def elements(self) -> int:
    """How many there are."""
    return math.prod(self.dims)

  @property
  def bits(self) -> int:
    """Bits of an element."""
    found = re.search(r'\d+', self.kind)
    return _BITS.get(self.kind, int(found[0]) if found else 0)

  @property
  def size(self) -> int:
    """Bytes of the elements."""
    return self.elements * self.bits // 8

  @property
  def padded_size(self) -> int:
    """Bytes that the array takes in memory, tiles filled up."""
    sizes = [self.dims[axis] for axis in self.order] or list(self.dims[::-1])
    for place, tile in enumerate(reversed(self.tiles)):
      if place < len(sizes):
        sizes[place] = -(-sizes[place] // tile) * tile
    return math.prod(sizes) * self.bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line.

  Attributes:
    name: unique in its computation.
    opcode: such as `'fusion'`.
    shapes: of the result, the parts of a tuple in order.
    operands: names of other instructions.
    text: all that follows the operands.
    argument: what stands between the parentheses.
    is_root: whether it is its computation's result.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  text: str
  argument: str
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """A simple attribute's value."""
    found = re.search(rf'\b{name}=%?([^\s,]+)', self.text)
    return found[1] if found else None

  @property
  def index(self) -> int:
    """Which parameter, or which part of a tuple, it is."""
    if self.opcode == 'parameter':
      return int(self.argument)
    return int(self.attribute('index') or 0)

  @property
  def called(self) -> tuple[str, ...]:
    """Computations that it runs."""
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
    """Where in the source's trace it is from."""
    found = re.search(r'op_name="([^"]*)"', self.text)
    return found[1] if found else ''


@dataclasses.dataclass(frozen=True)
class Computation:
  """A function of the program.

  Attributes:
    name: unique.
    instructions: by name, in their order.
  """

  name: str
  instructions: dict[str, Instruction]

  @functools.cached_property
  def root(self) -> Instruction:
    """The result."""
    return next(each for each in self.instructions.values() if each.is_root)

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """The arguments, by number."""
    return {
      each.index: each
      for each in self.instructions.values()
      if each.opcode == 'parameter'
    }

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Who reads each instruction's result."""
    users: dict[str, list[Instruction]] = {}
    for each in self.instructions.values():
      for name in dict.fromkeys(each.operands):
        users.setdefault(name, []).append(each)
    return users

  def operands(self, instruction: Instruction) -> Iterator[Instruction]:
    """The instructions whose results it reads."""
    for name in instruction.operands:
      if name in self.instructions:
        yield self.instructions[name]


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: by name.
    entry: where it begins.
  """

  computations: dict[str, Computation]
  entry: Computation

  def called(self, instruction: Instruction) -> Iterator[Computation]:
    """Computations that an instruction runs."""
    for name in instruction.called:
      yield self.computations[name]

  def trips(self, loop: Instruction, around: Computation) -> int | None:
    """How often a loop's body runs; `None` where that depends on data.

    Known where the condition compares a counter with a constant, and the
    counter begins at a constant and grows by one: one, or two where XLA puts two
    rounds of a product with other chips' parts into one.
    """
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if stated:
      return int(stated[1])
    condition = self.computations[loop.attribute('condition') or '']
    bound = _bound(condition)
    if bound is None:
      return None
    counter, most = bound
    start = _part(around, loop.operands[0], counter)
    if start is None or start.opcode != 'constant':
      return None
    body = self.computations[loop.attribute('body') or '']
    step = self._step(body, _part(body, body.root.name, counter))
    return None if step is None else -((int(start.argument) - most) // step)

  def _step(
    self, computation: Computation, counted: Instruction | None
  ) -> int | None:
    """The positive constant that was added to a counter."""
    if counted is not None and counted.opcode == 'fusion':
      (computation,) = self.called(counted)
      counted = computation.root
    if counted is None or counted.opcode != 'add':
      return None
    steps = [
      int(each.argument)
      for each in computation.operands(counted)
      if each.opcode == 'constant'
    ]
    return steps[0] if len(steps) == 1 and steps[0] > 0 else None


def _bound(condition: Computation) -> tuple[int, int] | None:
  """The part of the loop's tuple that counts, and what it must stay below."""
  test = condition.root
  if test.opcode != 'compare' or 'direction=LT' not in test.text:
    return None
  counter, most = condition.operands(test)
  if counter.opcode != 'get-tuple-element' or most.opcode != 'constant':
    return None
  return counter.index, int(most.argument)


def _part(
  computation: Computation, name: str, index: int
) -> Instruction | None:
  """The instruction that made one part of a tuple, through copies."""
  made = computation.instructions.get(name)
  if made is None or made.opcode != 'tuple':
    return None
  part = computation.instructions.get(made.operands[index])
  while part is not None and part.opcode in ('copy', 'bitcast'):
    part = computation.instructions.get(part.operands[0])
  return part


def parse(text: str) -> Module:
  """Reads a program.

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
  for line in _joined(text):
    head = _HEAD.match(line)
    if head:
      name = head[2]
      computations[name] = Computation(name, {})
      entry = name if head[1] else entry
    elif name and (found := _instruction(line)):
      computations[name].instructions[found.name] = found
  return Module(computations, computations[entry])


def _joined(text: str) -> Iterator[str]:
  """Lines, with those that go on in the next ones made whole.

  What kernels say of themselves may have lines of its own.
  """
  whole = ''
  for line in text.splitlines():
    if line == '}' or not line or _START.match(line) or _HEAD.match(line):
      yield whole
      whole = line
    else:
      whole += line
  yield whole


def _instruction(line: str) -> Instruction | None:
  """One line, if it is an instruction."""
  start = _START.match(line)
  if start is None:
    return None
  end = _end_of_type(line, start.end())
  opcode = _OPCODE.match(line, end)
  if opcode is None:
    return None
  close = _closing(line, opcode.end() - 1)
  argument = line[opcode.end() : close]
  return Instruction(
    name=start[2],
    opcode=opcode[1],
    shapes=tuple(shapes_of(line[start.end() : end])),
    operands=tuple(_NAME.findall(argument)),
    text=line[close + 1 :],
    argument=argument,
    is_root=bool(start[1]),
  )


def _end_of_type(line: str, start: int) -> int:
  """Where a type that begins here ends."""
  if line[start] == '(':
    return _closing(line, start) + 1
  return line.index(' ', start)


def _closing(line: str, start: int) -> int:
  """The parenthesis that closes the one here."""
  depth = 0
  for found in _PARENTHESIS.finditer(line, start):
    depth += 1 if found[0] == '(' else -1
    if depth == 0:
      return found.start()
  raise ValueError(f'a closed parenthesis is required, got {line[start:]!r}')


def shapes_of(text: str) -> Iterator[Shape]:
  """The arrays of a type.

  >>> [shape.size for shape in shapes_of('(s32[7]{0}, pred[2,3]{1,0})')]
  [28, 6]
  """
  for kind, dims, order, rest in _SHAPE.findall(text):
    tile = _TILE.search(rest)
    space = re.search(r'S\((\d+)\)', rest)
    yield Shape(
      kind=kind,
      dims=_numbers(dims),
      order=_numbers(order),
      tiles=_numbers(tile[1][1:].split(')')[0]) if tile else (),
      space=_SPACES.get(space[1], 'other') if space else 'hbm',
    )


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in re.findall(r'\d+', text))
