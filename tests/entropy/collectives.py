# SPDX-License-Identifier: Apache-2.0
"""Collectives of a compiled program and the bytes that they deliver.

Counted per device and call: the bytes that a collective delivers there, times
how often it runs. In a loop that is the trip count if the compiler knows it,
else a bound by the caller. All branches of a conditional are counted.
"""

import collections
import math
import re

COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'all-to-all',
  'reduce-scatter',
  'collective-permute',
  'collective-broadcast',
  'ragged-all-to-all',
)
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%?[\w.-]+ = (?P<type>.+?) (?P<op>[a-z][a-z0-9-]*)\('
)
_CALLED = re.compile(
  r'(?:body|condition|to_apply|calls|true_computation|false_computation)'
  r'=%?([\w.-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def collective_bytes(hlo: str, rounds: int) -> dict[str, int]:
  """Bytes by kind of collective; loops of unknown length run `rounds` times."""
  computations, entry = _computations(hlo)
  totals: collections.Counter[str] = collections.Counter()

  def visit(name: str, executions: int) -> None:
    for line in computations[name]:
      match = _INSTRUCTION.match(line)
      if match is None:
        continue
      op = match['op'].removesuffix('-start')
      if op in COLLECTIVES:
        totals[op] += executions * size_of(_delivered_type(match))
        continue
      trips = 1
      if op == 'while':
        trip_count = _TRIPS.search(line)
        trips = int(trip_count[1]) if trip_count else rounds
      for called in _called_computations(line):
        visit(called, executions * trips)

  visit(entry, 1)
  return dict(totals)


def operation_sizes(hlo: str, op: str) -> list[int]:
  """Elements in the largest array of each operation of a kind."""
  sizes = []
  for line in hlo.splitlines():
    match = _INSTRUCTION.match(line)
    if match and match['op'].removesuffix('-start') == op:
      sizes.append(max(math.prod(dims) for _, dims in _arrays(match['type'])))
  return sizes


def _delivered_type(match: re.Match[str]) -> str:
  """The type of the arrays that a collective delivers."""
  if match['op'] in ('collective-permute-start', 'all-gather-start'):
    # A tuple of inputs, outputs and two numbers for internal use.
    arrays = re.findall(r'[a-z]+\d*\[\d[\d,]*\]', match['type'])
    return ' '.join(arrays[len(arrays) // 2 :])
  return match['type']


def size_of(type_: str) -> int:
  """Bytes of an HLO type, tuples added up.

  >>> size_of('(s32[7]{0}, pred[2,3]{1,0})')
  34
  """
  return sum(
    math.prod(dims) * (1 if dtype == 'pred' else int(dtype.strip('bfsu')) // 8)
    for dtype, dims in _arrays(type_)
  )


def _arrays(type_: str) -> list[tuple[str, list[int]]]:
  """Dtype and dimensions of each array in an HLO type."""
  return [
    (dtype, [int(size) for size in dims.split(',') if size])
    for dtype, dims in re.findall(r'([a-z]+\d*)\[([\d,]*)\]', type_)
  ]


def _called_computations(line: str) -> list[str]:
  """Names of the computations that an instruction calls."""
  names = _CALLED.findall(line)
  for branches in _BRANCHES.findall(line):
    names += [name.strip().lstrip('%') for name in branches.split(',')]
  return names


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation, and the name of the entry."""
  by_name: dict[str, list[str]] = {}
  name = entry = ''
  for line in hlo.splitlines():
    head = re.match(r'^(ENTRY )?%?([\w.-]+) .*\{$', line)
    if head and ' = ' not in line:
      name = head[2]
      by_name[name] = []
      entry = name if head[1] else entry
    elif name:
      by_name[name].append(line)
  return by_name, entry
