# SPDX-License-Identifier: Apache-2.0
"""Results of checking a claim: measured values with bounds, plots and tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from covrl.array_checks import check_number

EXACT_TOLERANCE = 1e-12  # for rounding errors of 64-bit algebra

Numbers = Float[np.ndarray, ' n']


class Check(NamedTuple):
  """A measured value and the interval in which it must lie.

  Attributes:
    label: description of the value.
    value: the measurement.
    low: smallest value that passes.
    high: largest value that passes.
  """

  label: str
  value: float
  low: float = -math.inf
  high: float = math.inf

  @property
  def passes(self) -> bool:
    """Whether the value lies in the interval; NaN and infinities do not."""
    return math.isfinite(self.value) and self.low <= self.value <= self.high

  @property
  def tolerance(self) -> str:
    """The interval as text.

    >>> at_most('error', 1e-17, 1e-12).tolerance
    '≤ 1e-12'
    >>> close_to('exponent', 2, 2, 0.1).tolerance
    '2 ± 0.1'
    """
    if self.low == -math.inf:
      return f'≤ {self.high:.3g}'
    if self.high == math.inf:
      return f'≥ {self.low:.3g}'
    middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
    return f'{middle:.3g} ± {half:.2g}'


def at_most(label: str, value: Any, bound: float | int) -> Check:
  """Returns the check that a value does not exceed a finite bound."""
  check_number('bound', bound, -math.inf)
  return Check(label, float(value), high=float(bound))


def at_least(label: str, value: Any, bound: float | int) -> Check:
  """Returns the check that a value reaches a finite bound."""
  check_number('bound', bound, -math.inf)
  return Check(label, float(value), low=float(bound))


def close_to(
  label: str, value: Any, expected: Any, tolerance: float | int
) -> Check:
  """Returns the check that a value equals another one up to an absolute tolerance."""
  check_number('tolerance', tolerance, 0)
  middle = float(expected)
  check_number('expected', middle, -math.inf)
  return Check(
    label, float(value), float(middle - tolerance), float(middle + tolerance)
  )


class Curve(NamedTuple):
  """One curve of a plot.

  Attributes:
    name: legend entry.
    x: ascending x values.
    y: y values, as many as `x`.
    points: whether to mark the points.
    dashed: whether to dash the line; used for theoretical curves.
    color: palette index; the next free one if `None`.
  """

  name: str
  x: Numbers
  y: Numbers
  points: bool = False
  dashed: bool = False
  color: int | None = None


class Plot(NamedTuple):
  """Data and labels of a plot; `covrl.report` draws it.

  Attributes:
    title: title of the plot.
    x_label: x quantity with its unit.
    y_label: y quantity with its unit.
    curves: curves in drawing order.
    caption: text below the plot.
    log_x: whether the x axis is logarithmic.
    log_y: whether the y axis is logarithmic.
    bars: whether curves are drawn as bars.
  """

  title: str
  x_label: str
  y_label: str
  curves: Sequence[Curve]
  caption: str = ''
  log_x: bool = False
  log_y: bool = False
  bars: bool = False


class Table(NamedTuple):
  """A table of results: column titles, and rows with one cell per column.

  Attributes:
    title: title of the table.
    header: titles of the columns.
    rows: cells of each row.
    caption: text below the table.
  """

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
  """Everything that the check of a claim measured.

  Attributes:
    printed: checks of the statement as printed; it holds if all pass.
    conditional: checks of the printed statement under the condition that the
      recorded verdict names.
    corrected: checks of the corrected statement; all must pass.
    plots: plots for the report.
    tables: tables for the report.

  Raises:
    ValueError: there is no check of the statement as printed.
  """

  printed: Sequence[Check]
  conditional: Sequence[Check] = ()
  corrected: Sequence[Check] = ()
  plots: Sequence[Plot] = ()
  tables: Sequence[Table] = ()

  def __post_init__(self) -> None:
    if not self.printed:
      raise ValueError('printed must have at least one check, got none')

  def checks(self) -> Iterator[tuple[str, Check]]:
    """Yields every check with the name of its group."""
    for group in ('printed', 'conditional', 'corrected'):
      for check in getattr(self, group):
        yield group, check
