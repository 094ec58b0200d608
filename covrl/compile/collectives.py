# SPDX-License-Identifier: Apache-2.0
"""Collectives of a compiled program: bytes, groups and networks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from covrl.compile.hlo import Instruction, Module, Shape

COLLECTIVE_OPCODES = (
  'all-reduce',
  'all-reduce-start',
  'all-gather',
  'all-gather-start',
  'all-to-all',
  'all-to-all-start',
  'reduce-scatter',
  'reduce-scatter-start',
  'collective-permute',
  'collective-permute-start',
  'collective-broadcast',
  'collective-broadcast-start',
  'ragged-all-to-all',
  'ragged-all-to-all-start',
)

# Opcodes whose result is a tuple of arguments, results and context values.
_WITH_ARGUMENTS = frozenset(
  opcode
  for opcode in COLLECTIVE_OPCODES
  if opcode.endswith('-start') and opcode != 'all-reduce-start'
)

# Bytes that a chip sends in a ring of g chips, relative to the size of the whole
# array.
_SENT_SHARE = {
  'all-reduce': lambda g: 2 * (g - 1) / g,
  'all-gather': lambda g: (g - 1) / g,
  'reduce-scatter': lambda g: (g - 1) / g,
  'all-to-all': lambda g: (g - 1) / g,
  'ragged-all-to-all': lambda g: (g - 1) / g,
  'collective-permute': lambda g: 1.0,
  'collective-broadcast': lambda g: 1.0,
}


class Collective(NamedTuple):
  """One collective operation.

  Attributes:
    kind: `'all-reduce'`, `'all-gather'`, …; `'reduce-scatter'` also where XLA
      fuses an all-reduce and a slice.
    size: bytes of the whole arrays.
    sent_bytes: bytes that one chip sends.
    groups: device ids, one group per row; slice ids between slices.
    scope: JAX's `op_name` of the operation.
    network: `'ici'` within a slice of TPUs or between GPUs, `'dcn'` between
      slices.
    channel: XLA's number of the operation, if stated.
  """

  kind: str
  size: int
  sent_bytes: float
  groups: tuple[tuple[int, ...], ...]
  scope: str
  network: Literal['ici', 'dcn'] = 'ici'
  channel: str | None = None


def collectives_in(
  module: Module, instruction: Instruction
) -> Iterator[Collective]:
  """Yields the collectives of an instruction and of its fused computation."""
  if instruction.opcode in COLLECTIVE_OPCODES:
    yield _parse_collective(
      instruction, instruction.opcode.removesuffix('-start')
    )
  elif (
    instruction.opcode == 'send' and 'xla_megascale_runtime' in instruction.text
  ):
    yield _parse_slice_transfer(instruction)
  elif instruction.opcode in ('fusion', 'async-start'):
    for called in module.called(instruction):
      is_reduce_scatter = called.name.startswith('all-reduce-scatter')
      for inner in called.instructions.values():
        for collective in collectives_in(module, inner):
          if is_reduce_scatter and collective.kind == 'all-reduce':
            yield collective._replace(
              kind='reduce-scatter', sent_bytes=collective.sent_bytes / 2
            )
          else:
            yield collective


def _parse_collective(instruction: Instruction, kind: str) -> Collective:
  """Parses one collective instruction."""
  groups = groups_of(instruction.text)
  size = sum(shape.size for shape in written_arrays(instruction))
  group_size = len(groups[0]) if groups else 1
  if kind == 'reduce-scatter':
    size *= group_size
  return Collective(
    kind=kind,
    size=size,
    sent_bytes=size * _SENT_SHARE[kind](group_size),
    groups=groups,
    scope=instruction.scope,
    channel=instruction.attribute('channel_id'),
  )


def begins_collective(instruction: Instruction) -> bool:
  """Whether a fusion begins a collective that other fusions continue.

  A TPU's compiler may divide a collective over fusions with other operations,
  each of which contains the whole operation, of the same channel.
  """
  return instruction.opcode == 'fusion' and instruction.name.startswith(
    'async-collective-start'
  )


def written_arrays(instruction: Instruction) -> list[Shape]:
  """Returns the arrays that a collective writes."""
  if instruction.opcode not in _WITH_ARGUMENTS:
    return [shape for shape in instruction.shapes if shape.elements]
  arrays = [
    s for s in instruction.shapes if s.dims or s.dtype not in ('u32', 's32')
  ]
  return arrays[len(arrays) // 2 :]


def _parse_slice_transfer(instruction: Instruction) -> Collective:
  """Parses a transfer between the hosts of slices.

  Reductions and gathers within a slice are separate collectives.
  """
  attributes = dict(
    re.findall(r'_xla_megascale_(\w+)="([^"]*)"', instruction.text)
  )
  kind = attributes['transfer_type'].lower().replace('_', '-')
  slices = _numbers(attributes['target'].partition('x')[0])
  if kind not in _SENT_SHARE:
    raise ValueError(
      f'an exchange between slices must be one of {tuple(_SENT_SHARE)}, got {kind!r}'
    )
  size = instruction.shapes[0].size
  return Collective(
    kind=kind,
    size=size,
    sent_bytes=size * _SENT_SHARE[kind](len(slices)),
    groups=(slices,),
    scope=instruction.scope,
    network='dcn',
  )


def groups_of(text: str) -> tuple[tuple[int, ...], ...]:
  """Parses the groups of a collective, in any of XLA's notations.

  >>> groups_of('replica_groups={{0,2},{1,3}}')
  ((0, 2), (1, 3))
  >>> groups_of('replica_groups=[2,2]<=[4]')
  ((0, 1), (2, 3))
  >>> groups_of('replica_groups=[2,2]<=[2,2]T(1,0)')
  ((0, 2), (1, 3))
  >>> groups_of("replica_groups=mesh['a'=2,'b'=2] {'b'}")
  ((0, 1), (2, 3))
  >>> groups_of("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}")
  ((0, 2), (1, 3))
  >>> groups_of('source_target_pairs={{0,1},{1,0}}')
  ((0, 1), (1, 0))
  """
  listed_match = re.search(
    r'(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}', text
  )
  if listed_match:
    return tuple(
      _numbers(group) for group in re.findall(r'\{([\d,]+)\}', listed_match[1])
    )
  iota_match = re.search(r'replica_groups=(\[[\d,]+\])<=(\S+)', text)
  if iota_match:
    return _to_tuples(
      _parse_ids(iota_match[2]).reshape(_numbers(iota_match[1]))
    )
  mesh_match = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+?\)?)\))?'
    r' \{([^}]*)\}',
    text,
  )
  return (
    _mesh_groups(mesh_match[1], mesh_match[2], mesh_match[3])
    if mesh_match
    else ()
  )


def _mesh_groups(
  axes: str, ids: str | None, group_axes: str
) -> tuple[tuple[int, ...], ...]:
  """Returns the groups along axes of a mesh.

  Args:
    axes: names and sizes of all axes, `'a'=2,'b'=4`.
    ids: device ids in the mesh's order, see `_parse_ids`; all in order if absent.
    group_axes: the axes, or parts of them, that a group extends over, `'a','b':(2)2`.
  """
  sizes = {
    name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)
  }
  order = _parse_ids(ids) if ids else np.arange(math.prod(sizes.values()))
  dims: list[int] = []
  grouped_dims: list[int] = []
  whole_axes = dict(re.findall(r"'([^']+)'(?::\((\d+)\)\d+)?", group_axes))
  sub_axes = re.findall(r"'([^']+)':\((\d+)\)(\d+)", group_axes)
  for name, size in sizes.items():
    sub_axis = next((p for p in sub_axes if p[0] == name), None)
    if sub_axis is not None:
      # A sub-axis, given by the sizes before it and of it.
      size_before, size_inside = int(sub_axis[1]), int(sub_axis[2])
      grouped_dims.append(len(dims) + 1)
      dims += [size_before, size_inside, size // (size_before * size_inside)]
    else:
      if name in whole_axes:
        grouped_dims.append(len(dims))
      dims.append(size)
  array = order.reshape(dims)
  others = [axis for axis in range(len(dims)) if axis not in grouped_dims]
  group_size = math.prod(dims[axis] for axis in grouped_dims)
  return _to_tuples(
    array.transpose(others + grouped_dims).reshape(-1, group_size)
  )


def _parse_ids(text: str) -> Int[np.ndarray, '...']:
  """Parses device ids such as `[4,16]T(1,0)`: an iota, then a transpose."""
  dims, _, order = text.rstrip(',').partition('T')
  sizes = _numbers(dims)
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(_numbers(order)) if order else ids


def _to_tuples(
  groups: Int[np.ndarray, 'groups chips'],
) -> tuple[tuple[int, ...], ...]:
  """Returns the rows of an array of device ids as tuples."""
  return tuple(tuple(row) for row in groups.tolist())


def _numbers(text: str) -> tuple[int, ...]:
  """Returns all non-negative integers in a text."""
  return tuple(int(number) for number in re.findall(r'\d+', text))
