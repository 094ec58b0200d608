# SPDX-License-Identifier: Apache-2.0
"""Number of arithmetic operations of HLO instructions, from their shapes."""

from __future__ import annotations

import dataclasses
import math

from covrl.compile.collectives import COLLECTIVE_OPCODES
from covrl.compile.hlo import Computation, Instruction, Module
from covrl.compile.traffic import FREE_OPCODES

# Opcodes that compute nothing, or whose operations are counted elsewhere.
_UNCOUNTED_OPCODES = FREE_OPCODES | {
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
  *COLLECTIVE_OPCODES,
  *(opcode.replace('-start', '-done') for opcode in COLLECTIVE_OPCODES),
}


def flops_of(
  module: Module, computation: Computation, instruction: Instruction
) -> float:
  """Returns the FLOPs of an instruction and of its fused computation."""
  if instruction.opcode in ('fusion', 'async-start'):
    return sum(
      flops_of(module, called, inner)
      for called in module.called(instruction)
      for inner in called.instructions.values()
    )
  if instruction.opcode == 'convolution':
    return _flops_of_convolution(computation, instruction)
  if instruction.opcode == 'dot':
    return _flops_of_dot(computation, instruction)
  if instruction.opcode in ('reduce', 'reduce-window', 'scatter'):
    first_operand = next(computation.operands(instruction), None)
    read_elements = first_operand.shapes[0].elements if first_operand else 0
    return float(max(read_elements, instruction.shapes[0].elements))
  if instruction.opcode in _UNCOUNTED_OPCODES:
    return 0.0
  return float(instruction.shapes[0].elements) if instruction.shapes else 0.0


def _flops_of_dot(computation: Computation, dot: Instruction) -> float:
  """Returns 2 × result elements × contracted size."""
  left = computation.instructions[dot.operands[0]].shapes[0]
  axes = dot.text.split('lhs_contracting_dims={')[1].split('}')[0]
  contracted_sizes = [left.dims[int(axis)] for axis in axes.split(',') if axis]
  return 2.0 * dot.shapes[0].elements * math.prod(contracted_sizes)


def _flops_of_convolution(
  computation: Computation, instruction: Instruction
) -> float:
  """Returns 2 × multiplications, without those by padding and dilation gaps.

  TPU programs express matrix products as convolutions, with batch axes as
  spatial ones.
  """
  left, right = (
    computation.instructions[name].shapes[0]
    for name in instruction.operands[:2]
  )
  labels = instruction.attribute('dim_labels') or ''
  input_labels, other_labels = labels.split('_')
  kernel_labels, output_labels = other_labels.split('->')
  result = instruction.shapes[0]
  batch = result.dims[output_labels.index('b')]
  features = result.dims[output_labels.index('f')]
  contracted_size = right.dims[kernel_labels.index('i')]
  window = _Window.of(instruction.text)
  positions = 1
  for axis in range(sum(label.isdigit() for label in output_labels)):
    positions *= window.count_valid(
      axis,
      left.dims[input_labels.index(str(axis))],
      right.dims[kernel_labels.index(str(axis))],
      result.dims[output_labels.index(str(axis))],
    )
  return (
    2.0 * batch * features * contracted_size * positions / window.batch_groups
  )


@dataclasses.dataclass(frozen=True)
class _Window:
  """The window of a convolution, per spatial axis.

  Attributes:
    fields: the window's entries, such as `size` and `pad`, as text per axis.
    batch_groups: number of groups into which the batch is divided.
  """

  fields: dict[str, list[str]]
  batch_groups: int

  @classmethod
  def of(cls, text: str) -> _Window:
    """Parses `window={size=4x7 pad=3_3x6_6 …}`."""
    window_text = (
      text.split('window={')[1].split('}')[0] if 'window={' in text else ''
    )
    fields = dict(part.split('=') for part in window_text.split())
    groups = text.split('batch_group_count=')
    batch_groups = groups[1].split(',')[0] if len(groups) > 1 else '1'
    return cls({k: v.split('x') for k, v in fields.items()}, int(batch_groups))

  def _get(self, name: str, axis: int, default: str) -> str:
    """Returns an entry of the window for an axis, or a default."""
    values = self.fields.get(name)
    return default if values is None else values[axis]

  def count_valid(
    self, axis: int, size: int, kernel_size: int, num_results: int
  ) -> int:
    """Counts pairs of output and kernel positions that read an input element."""
    stride = int(self._get('stride', axis, '1'))
    low_padding = int(self._get('pad', axis, '0_0').split('_')[0])
    input_dilation = int(self._get('lhs_dilate', axis, '1'))
    kernel_dilation = int(self._get('rhs_dilate', axis, '1'))
    count = 0
    for position in range(kernel_size):
      # Output r reads dilated input position r·stride + offset.
      offset = position * kernel_dilation - low_padding
      if stride == 1 and input_dilation == 1:
        count += max(min(num_results, size - offset) - max(0, -offset), 0)
        continue
      for result in range(num_results):
        dilated_position = result * stride + offset
        count += (
          dilated_position % input_dilation == 0
          and 0 <= dilated_position // input_dilation < size
        )
    return count
