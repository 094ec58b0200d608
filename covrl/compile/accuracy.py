# SPDX-License-Identifier: Apache-2.0
"""Ratios of estimates of cost and memory to counts and measurements.

Only XLA's CPU compiler gives programs that run without a TPU or GPU.
`tests/compile` repeats the comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Comparison(NamedTuple):
  """The error of an estimate.

  Attributes:
    estimate: the quantity, and the programs.
    reference: the count or measurement that it was compared with.
    least: smallest ratio of estimate to reference.
    most: largest ratio.
  """

  estimate: str
  reference: str
  least: float
  most: float

  @property
  def ratios(self) -> str:
    """The ratios as text.

    >>> OPERATIONS.ratios, MEMORY.ratios
    ('1.00', '0.65 to 1.00')
    """
    ends = dict.fromkeys(f'{end:.2f}' for end in (self.least, self.most))
    return ' to '.join(ends)


OPERATIONS = Comparison(
  'operations of matrix products, three models, forward and backward',
  'a count by hand',
  1.0,
  1.0,
)
ARITHMETIC = Comparison(
  'all operations, programs without loops', "XLA's count", 1.0, 1.01
)
TRAFFIC = Comparison(
  'memory traffic, programs without loops', "XLA's count", 0.97, 1.0
)
COLLECTIVES = Comparison(
  'bytes sent by collectives, eight devices', 'a count by hand', 1.0, 1.0
)
STATE = Comparison(
  'memory of the arguments of an update, eight devices',
  'a count by hand',
  1.0,
  1.0,
)
MEMORY = Comparison(
  'memory of an update and of scoring, without arguments',
  'the peak of the process',
  0.65,
  1.0,
)
COMPARISONS = (OPERATIONS, ARITHMETIC, TRAFFIC, COLLECTIVES, STATE, MEMORY)


def as_json() -> list[dict[str, Any]]:
  """Returns all comparisons as plain JSON."""
  return [comparison._asdict() for comparison in COMPARISONS]


def lines(device: str) -> Iterator[str]:
  """Yields the lines of the report on comparisons.

  Args:
    device: name of the chip or GPU of the report.
  """
  yield 'estimates against measurements, on CPUs only:'
  for comparison in COMPARISONS:
    yield f'  {comparison.estimate}: {comparison.ratios} of {comparison.reference}'
  yield f'  {device}: nothing was run, and neither time nor memory compared'
