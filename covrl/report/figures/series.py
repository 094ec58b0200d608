# SPDX-License-Identifier: Apache-2.0
"""Turns columns of metrics into series and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from covrl.report.figures.chart import (
  LARGE_SIZE,
  Figure,
  FigureLayout,
  Series,
  lay_out,
  smooth,
)
from covrl.report.inputs.phase_metrics import Curve, PhaseMetrics

# Indices of the palette in `figure.css`, by Okabe and Ito.
INK, BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = range(8)


def metric_series(
  metrics: PhaseMetrics,
  names: dict[str, str],
  colors: Sequence[int] = (BLUE,),
  *,
  over: str = 'iteration',
  scale: float = 1.0,
) -> list[Series]:
  """Makes a curve for each field.

  Args:
    metrics: metrics of one phase.
    names: legend entries by field; fields without values are left out.
    colors: colour indices in the order of the fields.
    over: field of the x values.
    scale: factor of the values.
  """
  return [
    Series(name=name, x=curve.x, y=scale * curve.y, color=color)
    for (field, name), color in zip(names.items(), colors, strict=False)
    if (curve := metrics.curve(field, over))
  ]


def metric_figure(
  metrics: PhaseMetrics,
  key: str,
  title: str,
  y_label: str,
  names: dict[str, str],
  colors: Sequence[int] = (BLUE,),
  *,
  over: str = 'iteration',
  scale: float = 1.0,
  **options: Any,
) -> Figure:
  """Makes a figure with a curve for each field.

  Args:
    metrics: metrics of one phase.
    key: identifier, unique on the page.
    title: title of the figure.
    y_label: y quantity with its unit.
    names: legend entries by field; fields without values are left out.
    colors: colour indices in the order of the fields.
    over: field of the x values.
    scale: factor of the values.
    **options: further attributes of `Figure`.
  """
  return Figure(
    key=key,
    title=title,
    y_label=y_label,
    x_label=over,
    series=metric_series(metrics, names, colors, over=over, scale=scale),
    **options,
  )


def smoothed_series(
  curve: Curve, name: str, color: int, scale: float
) -> tuple[list[Series], str]:
  """Series of each iteration and of the running mean, and a caption."""
  x, y = curve.x, scale * curve.y
  if x.size < 12:
    return [Series(name=name, x=x, y=y, color=color)], ''
  window = 2 * (x.size // 24) + 3
  running_mean = Series(name=name, x=x, y=smooth(y, window), color=color)
  single_values = Series(
    name='each iteration', x=x, y=y, color=GREY, kind='faint'
  )
  return [
    single_values,
    running_mean,
  ], f'Bold: running mean over {window} iterations.'


def lay_out_all(
  figures: Sequence[Figure], size: tuple[int, int] = LARGE_SIZE
) -> list[FigureLayout]:
  """Lays out the figures that have points."""
  return [
    lay_out(figure, size)
    for figure in figures
    if any(_has_points(series, figure.log) for series in figure.series)
  ]


def _has_points(series: Series, log: bool) -> bool:
  """Returns whether a value can be drawn, on a logarithmic axis if `log`."""
  return bool((np.isfinite(series.y) & ((series.y > 0) | (not log))).any())
