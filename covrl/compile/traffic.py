# SPDX-License-Identifier: Apache-2.0
"""Memory traffic of instructions: bytes to and from HBM and host memory."""

from __future__ import annotations

from collections.abc import Iterator

from covrl.compile.collectives import COLLECTIVE_OPCODES, written_arrays
from covrl.compile.hlo import Computation, Instruction, Module, Shape

# Opcodes of instructions without a cost of their own.
FREE_OPCODES = frozenset(
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


def traffic_of(
  module: Module, computation: Computation, instruction: Instruction
) -> tuple[float, float]:
  """Returns the bytes to and from HBM, and to and from the host."""
  if instruction.opcode in FREE_OPCODES or instruction.opcode.endswith(
    ('-done', '-update')
  ):
    return 0.0, 0.0
  if 'custom_call_target="AllocateBuffer"' in instruction.text:
    return 0.0, 0.0
  moved_shapes = [
    *_read_shapes(module, computation, instruction),
    *_written_shapes(module, instruction),
  ]
  if module.platform == 'gpu' and instruction.opcode in COLLECTIVE_OPCODES:
    moved_shapes = [
      *_read_shapes(module, computation, instruction),
      *written_arrays(instruction),
    ]
  if instruction.opcode == 'dynamic-update-slice':
    update = computation.instructions[instruction.operands[1]].shapes[0]
    moved_shapes = [update, update._replace(space=instruction.shapes[0].space)]
  elif instruction.opcode == 'scatter' and module.platform == 'gpu':
    moved_shapes = [*_scattered_shapes(computation, instruction)]
  elif instruction.opcode in ('dynamic-slice', 'slice', 'gather'):
    source = computation.instructions[instruction.operands[0]].shapes[0]
    moved_shapes = [
      instruction.shapes[0],
      instruction.shapes[0]._replace(space=source.space),
    ]
  elif instruction.opcode in ('send', 'recv'):
    moved_shapes = [instruction.shapes[0]]
  elif instruction.opcode in ('copy-start', 'async-start', 'slice-start'):
    # The tuple holds destination, source and a semaphore.
    target, source, *rest = instruction.shapes
    if instruction.opcode == 'copy-start':
      moved_shapes = [target, source]
    else:
      moved_shapes = [[target, source, *rest][-2] if rest else target]
      moved_shapes = [
        moved_shapes[0],
        moved_shapes[0]._replace(space=target.space),
      ]
  hbm = sum(shape.padded_size for shape in moved_shapes if shape.space == 'hbm')
  host = sum(
    shape.padded_size for shape in moved_shapes if shape.space == 'host'
  )
  return float(hbm), float(host)


def _scattered_shapes(
  computation: Computation, instruction: Instruction
) -> Iterator[Shape]:
  """Yields the arrays that a scatter in place moves: indices, and updates twice."""
  _, indices, updates = (x.shapes[0] for x in computation.operands(instruction))
  yield from (indices, updates, updates)


def _read_shapes(
  module: Module, computation: Computation, instruction: Instruction
) -> Iterator[Shape]:
  """Yields the arrays, or slices of them, that an instruction reads."""
  for number, operand in enumerate(computation.operands(instruction)):
    if len(operand.shapes) != 1:
      continue
    shape = operand.shapes[0]
    if instruction.opcode == 'fusion':
      called = next(module.called(instruction))
      slices = _read_slices_of_parameter(module, called, number)
      is_returned = (
        _returned_parameter(module, called) is called.parameters[number]
      )
      if slices is not None and not is_returned:
        yield from (
          array_slice._replace(space=shape.space) for array_slice in slices
        )
        continue
    yield shape


def _read_slices_of_parameter(
  module: Module, computation: Computation, number: int
) -> list[Shape] | None:
  """Returns the slices of a fusion's parameter that are read, if not all."""
  return _read_slices(module, computation, computation.parameters[number])


def _read_slices(
  module: Module, computation: Computation, value: Instruction
) -> list[Shape] | None:
  """Returns the slices of a fused value that are read; `None` for all of it.

  Values that the fusion, or one within it, returns unread are not included.
  """
  slices: list[Shape] = []
  for user in computation.users.get(value.name, []):
    is_first_operand = user.operands[0] == value.name
    if user.opcode in ('dynamic-slice', 'slice', 'gather') and is_first_operand:
      slices.append(user.shapes[0])
    elif user.opcode == 'dynamic-update-slice' and is_first_operand:
      continue  # Updated in place.
    elif (
      user.opcode == 'scatter' and is_first_operand and module.platform == 'gpu'
    ):
      continue  # Updated in place: only the updated elements are read.
    elif user.opcode in ('bitcast', 'reshape'):
      read_slices = _read_slices(module, computation, user)
      if read_slices is None:
        return None
      slices += read_slices
    elif user.opcode == 'fusion':
      called = next(module.called(user))
      returned = _returned_parameter(module, called)
      for number, name in enumerate(user.operands):
        if name != value.name:
          continue
        read_slices = _read_slices_of_parameter(module, called, number)
        if read_slices is not None and returned is called.parameters[number]:
          later_slices = _read_slices(module, computation, user)
          read_slices = (
            None if later_slices is None else [*read_slices, *later_slices]
          )
        if read_slices is None:
          return None
        slices += read_slices
    else:
      return None
  full_size = value.shapes[0].padded_size
  return (
    slices
    if sum(array_slice.padded_size for array_slice in slices) < full_size
    else None
  )


def _returned_parameter(
  module: Module, computation: Computation
) -> Instruction | None:
  """Returns the parameter that a fusion returns reshaped and unread, if any."""
  value = computation.root
  while value.opcode != 'parameter':
    operand = 0
    if value.opcode == 'fusion':
      called = next(module.called(value))
      parameter = _returned_parameter(module, called)
      if parameter is None:
        return None
      operand = parameter.index
    elif value.opcode not in ('bitcast', 'reshape'):
      return None
    value = computation.instructions[value.operands[operand]]
  return value


def _written_shapes(
  module: Module, instruction: Instruction
) -> Iterator[Shape]:
  """Yields the arrays that an instruction writes, with their memory spaces."""
  if instruction.opcode != 'fusion':
    yield from instruction.shapes
    return
  called = next(module.called(instruction))
  roots = _result_elements(called, called.root)
  for shape, root in zip(instruction.shapes, roots, strict=False):
    yield _update_of(module, called, root, shape)


def _result_elements(
  computation: Computation, root: Instruction
) -> list[Instruction]:
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
