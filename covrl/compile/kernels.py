# SPDX-License-Identifier: Apache-2.0
"""Costs of Pallas kernels, which XLA cannot analyse.

A kernel's stated `cost_estimate` is used where present; the cost of JAX's splash
attention, which states none, is derived from its shapes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from covrl.compile.hlo import Computation, Instruction

# Number of matrix products of size queries × keys × width in a splash kernel.
_PRODUCTS_BY_PHASE = {'fwd': 2, 'dkv': 5, 'dq': 3}


class KernelCost(NamedTuple):
  """The cost of one call of a kernel.

  Attributes:
    flops: arithmetic operations.
    bytes: traffic to and from HBM.
    is_known: whether the cost could be determined.
    is_stated: whether the kernel states its cost, so that it may be less than the
      size of its arguments.
  """

  flops: float
  bytes: float
  is_known: bool = True
  is_stated: bool = False


def pallas_kernel_cost(
  instruction: Instruction, computation: Computation
) -> KernelCost | None:
  """Returns the cost of a Pallas kernel; `None` for other instructions."""
  if 'custom_call_target="tpu_custom_call"' not in instruction.text:
    return None
  stated = re.search(
    r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"',
    instruction.text,
  )
  if stated and int(stated[1]):
    return KernelCost(float(stated[1]), float(stated[2]), is_stated=True)
  phase = re.match(r'splash_mha_(fwd|dkv|dq)', instruction.name)
  if phase:
    return _splash_cost(instruction, computation, phase[1])
  return KernelCost(0.0, 0.0, is_known=False)


def _splash_cost(
  instruction: Instruction, computation: Computation, phase: str
) -> KernelCost:
  """Returns the cost of the visible query–key blocks of splash attention.

  Keys and values are read once per block of queries (forward), queries and
  gradients once per block of keys (backward).
  """
  shapes = [
    operand.shapes[0]
    for operand in computation.operands(instruction)
    if operand.shapes[0].dtype in ('bf16', 'f32')
    and len(operand.shapes[0].dims) >= 3
  ]
  queries, keys = shapes[0], shapes[1]
  *rows, length, width = queries.dims
  # Heads of all rows.
  num_heads = rows[-1] * (rows[0] if len(rows) > 1 else 1)
  window = re.search(r'window_(\d+)', instruction.scope)
  block_sizes = [
    int(size) for size in re.findall(r'block_q\w*\W+(\d+)', instruction.text)
  ]
  block = block_sizes[0] if block_sizes else 512
  visible = visible_block_pairs(length, block, int(window[1]) if window else 0)
  pairs = num_heads * visible * block * block
  flops = 2.0 * _PRODUCTS_BY_PHASE[phase] * pairs * width
  item_bytes = keys.bits // 8
  # Forward: keys and values per block of queries; backward: queries and gradients
  # per block of keys.
  moved_bytes = 2.0 * num_heads * visible * block * width * item_bytes
  return KernelCost(
    flops, moved_bytes + sum(s.padded_size for s in instruction.shapes)
  )


def visible_block_pairs(length: int, block: int, window: int) -> int:
  """Returns the number of visible pairs of query and key blocks.

  >>> visible_block_pairs(1024, 256, 0), visible_block_pairs(1024, 256, 256)
  (10, 7)
  """
  count = length // block
  if not window:
    return count * (count + 1) // 2
  blocks_back = -(-(window - 1) // block)
  return sum(min(i, blocks_back) + 1 for i in range(count))
