# SPDX-License-Identifier: Apache-2.0
"""Costs of library calls in GPU programs, and the kernels of matrix products.

Matrix products are calls of cuBLAS, Triton kernels that XLA generates, or plain
loops; attention is cuDNN's. Without a GPU XLA cannot time the candidates and
takes its default, so that a run may choose others.
"""

from __future__ import annotations

import math
import re

from covrl.compile.hlo import Computation, Instruction, Module
from covrl.compile.kernels import KernelCost, visible_block_pairs

# Number of matrix products of size queries × keys × width in cuDNN's attention:
# two forward; five backward, one of which computes the scores again.
_FORWARD_PRODUCTS, _BACKWARD_PRODUCTS = 2, 5
# Number of queries, and of keys, of a block; cuDNN skips blocks that the causal
# mask covers.
_BLOCK = 128


def gpu_kernel_cost(
  instruction: Instruction, computation: Computation
) -> KernelCost | None:
  """Returns the cost of a library call; `None` for other instructions."""
  target = target_of(instruction)
  if target.startswith('__cudnn$fmha'):
    return _attention_cost(instruction, computation)
  if target.startswith('__cublas$'):
    return KernelCost(_product_flops(instruction, computation), 0.0)
  if target in ('__gpu$xla.gpu.triton', 'triton_kernel_call'):
    return KernelCost(0.0, 0.0, is_known=False)
  return None


def target_of(instruction: Instruction) -> str:
  """Returns the target of a custom call; empty for other instructions."""
  if instruction.opcode != 'custom-call':
    return ''
  match = re.search(r'custom_call_target="([^"]*)"', instruction.text)
  return match[1] if match else ''


def _attention_cost(
  instruction: Instruction, computation: Computation
) -> KernelCost:
  """Returns the cost of cuDNN's fused attention, whose scores stay on chip.

  Queries, keys and values are read once; blocks that causality masks are
  skipped.
  """
  dims = re.search(
    r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]',
    instruction.text,
  )
  if dims is None:
    return KernelCost(0.0, 0.0, is_known=False)
  rows, heads, queries, keys = map(int, re.findall(r'\d+', dims[1]))
  query_operand = next(computation.operands(instruction))
  width = query_operand.shapes[0].dims[-1]
  pairs = queries * keys
  if 'CAUSAL' in instruction.text and queries == keys and keys % _BLOCK == 0:
    window = re.search(r'"sliding_window_length": ?"?(\d+)', instruction.text)
    visible = visible_block_pairs(keys, _BLOCK, int(window[1]) if window else 0)
    pairs = visible * _BLOCK**2
  products = (
    _BACKWARD_PRODUCTS
    if 'Backward' in target_of(instruction)
    else _FORWARD_PRODUCTS
  )
  return KernelCost(2.0 * products * rows * heads * pairs * width, 0.0)


def _product_flops(instruction: Instruction, computation: Computation) -> float:
  """Returns the operations of a matrix product of cuBLAS."""
  left, right = list(computation.operands(instruction))[:2]
  contracted = re.search(
    r'"lhs_contracting_dimensions": ?\[([^\]]*)\]', instruction.text
  )
  batched = re.search(
    r'"rhs_batch_dimensions": ?\[([^\]]*)\]', instruction.text
  )
  if contracted is None:
    return 0.0
  left_dims, right_dims = left.shapes[0].dims, right.shapes[0].dims
  contracted_size = math.prod(
    left_dims[int(n)] for n in re.findall(r'\d+', contracted[1])
  )
  batch_size = math.prod(
    right_dims[int(n)]
    for n in re.findall(r'\d+', batched[1] if batched else '')
  )
  columns = math.prod(right_dims) / (contracted_size * batch_size)
  return 2.0 * math.prod(left_dims) * columns


def kernel_and_type_of(
  module: Module, computation: Computation, instruction: Instruction
) -> tuple[str, str] | None:
  """Returns a product's kernel and the type of its factors; `None` for others.

  >>> from covrl.compile.hlo import parse
  >>> module = parse('''
  ... ENTRY %main (x: bf16[2,2]) -> bf16[2,2] {
  ...   %x = bf16[2,2]{1,0} parameter(0)
  ...   ROOT %y = bf16[2,2]{1,0} dot(%x, %x), lhs_contracting_dims={1}
  ... }''', 'gpu')
  >>> kernel_and_type_of(module, module.entry, module.entry.root)
  ('loops', 'bf16')
  """
  target = target_of(instruction)
  if target.startswith(('__cudnn$', '__cublas$')):
    dtype = next(computation.operands(instruction)).shapes[0].dtype
    if target.startswith('__cudnn$fmha'):
      return 'cuDNN attention', dtype
    return ('cuDNN' if target.startswith('__cudnn$') else 'cuBLAS'), dtype
  if instruction.opcode == 'dot':
    return 'loops', _factor_type(computation, instruction)
  if instruction.opcode == 'fusion':
    factor_type = _find_product_type(module, instruction)
    if factor_type is not None:
      return (
        'Triton' if '"__triton' in instruction.text else 'loops'
      ), factor_type
  return None


def _find_product_type(module: Module, instruction: Instruction) -> str | None:
  """Returns the type of the factors of a product in a fusion, if there is one."""
  for called in module.called(instruction):
    for inner in called.instructions.values():
      if inner.opcode == 'dot':
        return _factor_type(called, inner)
      if inner.opcode == 'fusion':
        factor_type = _find_product_type(module, inner)
        if factor_type is not None:
          return factor_type
  return None


def _factor_type(computation: Computation, dot: Instruction) -> str:
  """Returns the type of a product's factors; 'f32 highest' for exact float32."""
  dtype = computation.instructions[dot.operands[0]].shapes[0].dtype
  is_exact = 'highest' in dot.text or 'algorithm=dot_f32_f32_f32' in dot.text
  return 'f32 highest' if dtype == 'f32' and is_exact else dtype
