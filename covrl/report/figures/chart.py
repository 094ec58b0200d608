# SPDX-License-Identifier: Apache-2.0
"""Lays figures out as SVG paths and ticks, which a template draws.

No plotting library is used because pages must open offline, be small, follow
the reader's light or dark theme, and print. Interactive plotting bundles have
megabytes, and libraries that write SVG fix colours and fonts. Here a curve is
one path whose colour is a CSS class, and tooltips use the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from covrl.report import formats
from covrl.report.figures.axes import (
  Axis,
  Numbers,
  integer_axis,
  linear_axis,
  log_axis,
  with_exponent_ticks,
  with_linear_ticks,
)

_MAX_POINTS = 300  # per series; neighbours are averaged beyond that
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 32, 38  # margins in pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """One curve.

  Attributes:
    name: legend entry.
    x: ascending x values.
    y: y values in the figure's unit.
    low: lower ends of a band or of error bars.
    high: upper ends.
    color: index of one of the eight colours.
    kind: `'line'`; `'points'`, with markers and error bars; `'faint'`, a thin
      line; `'bars'`, stacked on earlier series of bars.
    dashed: whether the line is dashed.
  """

  name: str
  x: Numbers
  y: Numbers
  low: Numbers | None = None
  high: Numbers | None = None
  color: int = 0
  kind: Literal['line', 'points', 'faint', 'bars'] = 'line'
  dashed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """Data and text of a figure.

  Attributes:
    key: identifier, unique on the page.
    title: title.
    caption: text below the figure; may be empty.
    y_label: y quantity with its unit.
    series: series in drawing order, the first at the bottom.
    x_label: x quantity.
    x_ticks: `'integer'`; `'linear'`; or `'exponent'` if x values are log₁₀ of
      the quantity.
    unit: unit of numbers in tooltips.
    log: whether the y axis is logarithmic, without non-positive numbers.
    includes_zero: whether the y axis includes 0.
  """

  key: str
  title: str
  y_label: str
  series: Sequence[Series]
  caption: str = ''
  x_label: str = 'iteration'
  x_ticks: Literal['integer', 'linear', 'exponent'] = 'integer'
  unit: str = ''
  log: bool = False
  includes_zero: bool = False


LARGE_SIZE, SMALL_SIZE = (480, 276), (340, 226)  # width and height in pixels


@dataclasses.dataclass(frozen=True)
class Mark:
  """An SVG path with its CSS class and colour index.

  Attributes:
    kind: CSS class, such as `line`.
    color: index of the series' colour.
    path: the `d` attribute, in pixels.
  """

  kind: str
  color: int
  path: str


@dataclasses.dataclass(frozen=True)
class FigureLayout:
  """A figure with the pixels, paths and text that the template draws.

  Attributes:
    figure: the figure.
    width: width in pixels.
    height: height in pixels.
    x: horizontal axis.
    y: vertical axis.
    marks: lines, bands and error bars, in drawing order.
    dots: colour index and pixels of each dot.
    description: text for screen readers.
    hover: numbers for tooltips, which the page holds as JSON.
  """

  figure: Figure
  width: int
  height: int
  x: Axis
  y: Axis
  marks: Sequence[Mark]
  dots: Sequence[tuple[int, float, float]]
  description: str
  hover: dict[str, Any]


def lay_out(figure: Figure, size: tuple[int, int] = LARGE_SIZE) -> FigureLayout:
  """Lays a figure out.

  Args:
    figure: the figure.
    size: width and height in pixels; the size of text does not depend on it.

  Raises:
    ValueError: no series has a point to draw.
  """
  width, height = size
  drawn_series = [_thinned(series, figure.log) for series in figure.series]
  drawn_series = [series for series in drawn_series if series.x.size]
  if not drawn_series:
    raise ValueError(
      f'figure {figure.key!r} must have a point to draw, got none'
    )
  figure = dataclasses.replace(figure, series=_stacked(drawn_series))
  x = _x_axis(figure, width)
  y = _y_axis(figure, height)
  marks = [_marks(series, x, y) for series in figure.series]
  dots = [
    (series.color, *point)
    for series in figure.series
    if series.kind == 'points' or series.x.size == 1
    for point in _pixel_pairs(x.to_pixels(series.x), y.to_pixels(series.y))
  ]
  return FigureLayout(
    figure=dataclasses.replace(figure, series=drawn_series),
    width=width,
    height=height,
    x=x,
    y=y,
    # Bands are drawn first, behind all curves.
    marks=sorted(
      (mark for series_marks in marks for mark in series_marks),
      key=lambda mark: mark.kind != 'band',
    ),
    dots=dots,
    description=_describe(figure, drawn_series),
    hover=_hover(figure, drawn_series, x, y),
  )


def smooth(y: Numbers, window: int) -> Numbers:
  """Centred running mean, over fewer points near the ends.

  >>> smooth(np.array([0.0, 3.0, 0.0]), 3)
  array([1.5, 1. , 1.5])
  """
  kernel, first = np.ones(window), (window - 1) // 2
  total, count = (
    np.convolve(values, kernel)[first : first + y.size]
    for values in (y, np.ones_like(y))
  )
  return total / count


def _x_axis(figure: Figure, width: int) -> Axis:
  """The x axis over all series."""
  low = min(float(series.x[0]) for series in figure.series)
  high = max(float(series.x[-1]) for series in figure.series)
  bars = [s.x for s in figure.series if s.kind == 'bars']
  gaps = [float(np.diff(x).min()) for x in bars if x.size > 1]
  margin = min(gaps, default=1.0) / 2 if bars else 0.0
  axis = integer_axis(low, high, _LEFT, width - _RIGHT, margin=margin)
  if figure.x_ticks == 'linear':
    return with_linear_ticks(axis)
  if figure.x_ticks == 'exponent':
    return with_exponent_ticks(axis)
  return axis


def _y_axis(figure: Figure, height: int) -> Axis:
  """The y axis over all series and their bands."""
  edges = [s.y for s in figure.series]
  if figure.log:
    return log_axis(np.concatenate(edges), height - _BOTTOM, _TOP)
  edges += [e for s in figure.series for e in (s.low, s.high) if e is not None]
  numbers = np.concatenate(edges)
  return linear_axis(
    numbers, height - _BOTTOM, _TOP, includes_zero=figure.includes_zero
  )


def _thinned(series: Series, log: bool) -> Series:
  """The series with at most `_MAX_POINTS` points, averages of neighbours."""
  is_drawn = np.isfinite(series.y) & ((series.y > 0) | (not log))
  columns = {
    name: None if value is None else value[is_drawn]
    for name in ('x', 'y', 'low', 'high')
    if (value := getattr(series, name)) is not None or name in ('low', 'high')
  }
  size = int(is_drawn.sum())
  if size > _MAX_POINTS:
    starts = np.unique(np.arange(_MAX_POINTS) * size // _MAX_POINTS)
    counts = np.diff(np.append(starts, size))
    columns = {
      name: None if v is None else np.add.reduceat(v, starts) / counts
      for name, v in columns.items()
    }
  return dataclasses.replace(series, **columns)


def _stacked(drawn_series: Sequence[Series]) -> list[Series]:
  """Stacks series of bars by setting `low` and `high`."""
  base: Any = 0.0
  result = []
  for series in drawn_series:
    if series.kind == 'bars':
      top = base + series.y
      series = dataclasses.replace(series, y=top, low=top - series.y, high=top)
      base = top
    result.append(series)
  return result


def _marks(series: Series, x: Axis, y: Axis) -> list[Mark]:
  """The paths of one series."""
  x_pixels, y_pixels = x.to_pixels(series.x), y.to_pixels(series.y)
  marks = []
  if series.low is not None and series.high is not None:
    min_value = y.low if y.log else -math.inf
    low = y.to_pixels(np.maximum(series.low, min_value))
    high = y.to_pixels(np.maximum(series.high, min_value))
    if series.kind == 'bars':
      return [Mark('bar', series.color, _bars(x_pixels, low, high, x))]
    if series.kind == 'points':
      marks.append(
        Mark('error', series.color, _error_bars(x_pixels, low, high))
      )
    else:
      edge = _pixel_pairs(x_pixels, high) + _pixel_pairs(
        x_pixels[::-1], low[::-1]
      )
      marks.append(Mark('band', series.color, _path(edge) + 'Z'))
  if series.x.size > 1:
    kind = 'faint' if series.kind == 'faint' else 'line'
    kind += ' dashed' * series.dashed
    marks.append(
      Mark(kind, series.color, _path(_pixel_pairs(x_pixels, y_pixels)))
    )
  return marks


def _bars(x_pixels: Numbers, low: Numbers, high: Numbers, x: Axis) -> str:
  """Rectangles around x values, as one path."""
  gaps = np.diff(x_pixels)
  half_width = 0.42 * (
    float(gaps.min()) if gaps.size else (x.end - x.start) / 4
  )
  return ''.join(
    f'M{left:.1f},{bottom:.1f}h{2 * half_width:.1f}V{top:.1f}h{-2 * half_width:.1f}Z'
    for left, bottom, top in zip(x_pixels - half_width, low, high, strict=True)
    if bottom - top > 0.05
  )


def _error_bars(x_pixels: Numbers, low: Numbers, high: Numbers) -> str:
  """Vertical error bars, as one path."""
  return ''.join(
    f'M{x:.1f},{bottom:.1f}V{top:.1f}'
    for x, bottom, top in zip(x_pixels, low, high, strict=True)
    if math.isfinite(bottom) and math.isfinite(top)
  )


def _path(points: Sequence[tuple[float, float]]) -> str:
  """A path through points."""
  return 'M' + 'L'.join(f'{px:g},{py:g}' for px, py in points)


def _pixel_pairs(
  x_pixels: Numbers, y_pixels: Numbers
) -> list[tuple[float, float]]:
  """Pairs of pixels, rounded to a tenth."""
  pairs = zip(x_pixels, y_pixels, strict=True)
  return [(round(float(px), 1), round(float(py), 1)) for px, py in pairs]


def _describe(figure: Figure, drawn_series: Sequence[Series]) -> str:
  """Text alternative of the figure for screen readers."""
  unit = f' {figure.unit}' if figure.unit else ''
  parts = [
    f'{s.name}: {formats.number(s.y[0])}{unit} at {figure.x_label} '
    f'{formats.number(s.x[0])}, {formats.number(s.y[-1])}{unit} at '
    f'{formats.number(s.x[-1])}, between {formats.number(s.y.min())} and '
    f'{formats.number(s.y.max())}'
    for s in drawn_series
    if s.kind != 'faint'
  ]
  return f'{figure.y_label}. {"; ".join(parts)}.'


def _hover(
  figure: Figure, drawn_series: Sequence[Series], x: Axis, y: Axis
) -> dict[str, Any]:
  """Numbers for tooltips."""
  label = figure.x_label
  if figure.x_ticks == 'exponent':
    label = f'log₁₀ of {label}:'
  return {
    'x': [x.low, x.high, x.start, x.end],
    'y': [y.low, y.high, y.start, y.end, int(y.log)],
    'label': label,
    'unit': figure.unit,
    'series': [
      {
        'name': series.name,
        'color': series.color,
        'mark': int(series.kind != 'bars'),
        'x': _compact(series.x),
        'y': _compact(series.y),
      }
      for series in drawn_series
    ],
  }


def _compact(numbers: Numbers) -> list[float]:
  """Numbers rounded to four significant digits."""
  rounded = [float(f'{value:.4g}') for value in numbers]
  return [int(v) if v == int(v) else v for v in rounded]
