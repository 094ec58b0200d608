# SPDX-License-Identifier: Apache-2.0
"""Figures of several configurations: overlaid curves, and differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from covrl.report import formats
from covrl.report.comparison import Comparison, Group
from covrl.report.figures.axes import Axis, linear_axis
from covrl.report.figures.chart import Figure, FigureLayout, Series, smooth
from covrl.report.figures.series import lay_out_all

_NUM_COLORS = 7  # used again with dashed lines beyond that
_SMOOTHING_WINDOW = 7  # iterations per running mean

# Title, y label and unit of metrics of training; others are accuracies.
_TRAINING_METRICS = {
  'entropy': ('Entropy of the policy', 'nats per token', 'nats'),
  'reward': (
    'Reward of sampled responses',
    'mean reward, % of the maximum',
    '%',
  ),
  'covariance': ('Mean covariance', 'covariance, nats', 'nats'),
}
_SMOOTHED_METRICS = ('reward', 'covariance')


@dataclasses.dataclass(frozen=True)
class DifferencePlot:
  """Differences from the baseline, one per row, with their intervals.

  Attributes:
    metric: name of the metric.
    unit: unit of the axis.
    axis: scale from differences to pixels.
    zero: pixel of a difference of 0.
    rows: name, colour, and pixels of the estimate and the interval's ends.
    description: text alternative.
  """

  metric: str
  unit: str
  axis: Axis
  zero: float
  rows: Sequence[tuple[str, int, float, float | None, float | None]]
  description: str


def comparison_figures(comparison: Comparison) -> list[FigureLayout]:
  """Curves of all configurations, mean over seeds."""
  names = ('entropy', comparison.main_accuracy, *comparison.metrics)
  fields = dict.fromkeys((*names, 'reward', 'covariance'))
  return lay_out_all([comparison_figure(comparison, field) for field in fields])


def comparison_figure(comparison: Comparison, field: str) -> Figure:
  """Curves of one metric of training or evaluation, for all configurations."""
  title, y_label, unit = _TRAINING_METRICS.get(
    field, (f'Held-out {field}', 'problems solved, %', '%')
  )
  return Figure(
    key=f'compare-{field.replace("@", "-")}',
    title=title,
    caption=_caption(comparison, field),
    y_label=y_label,
    series=[
      _series(group, index, field, 100.0 if unit == '%' else 1.0)
      for index, group in enumerate(comparison.groups)
    ],
    unit=unit,
    includes_zero=unit == 'nats',
  )


def _series(group: Group, index: int, field: str, scale: float) -> Series:
  """Mean over a configuration's seeds, with their range as a band."""
  phase = 'train' if field in _TRAINING_METRICS else 'evals'
  curves = group.curve(phase, field)
  mean, low, high = (
    scale
    * (
      smooth(c.y, _SMOOTHING_WINDOW)
      if field in _SMOOTHED_METRICS and c
      else c.y
    )
    for c in curves
  )
  has_band = len(group.runs) > 1
  return Series(
    name=group.short_name,
    x=curves[0].x,
    y=mean,
    low=low if has_band else None,
    high=high if has_band else None,
    color=index % _NUM_COLORS,
    dashed=index >= _NUM_COLORS,
  )


def _caption(comparison: Comparison, field: str) -> str:
  """Explanation of bands and running means."""
  parts = []
  if len(comparison.seeds) > 1:
    parts.append('Mean over seeds; the band is from the lowest to the highest.')
  if field in _SMOOTHED_METRICS:
    parts.append(f'Running means over {_SMOOTHING_WINDOW} iterations.')
  return ' '.join(parts)


def difference_plot(
  comparison: Comparison, metric: str
) -> DifferencePlot | None:
  """Differences from the baseline as points with intervals."""
  differences = comparison.differences(metric)
  if not differences:
    return None
  scale, digits = display_scale(metric)
  ends = [
    scale * end
    for _, e in differences
    for end in (e.value, e.low, e.high)
    if end is not None
  ]
  max_name_length = max(len(group.short_name) for group, _ in differences)
  left = float(np.clip(7.6 * max_name_length, 100, 280))
  axis = linear_axis(np.array([0.0, *ends]), left, 468.0)

  def pixel(value: float | None) -> float | None:
    if value is None:
      return None
    return round(float(axis.to_pixels(np.array([scale * value]))[0]), 1)

  order = list(comparison.groups)
  rows = [
    (
      group.short_name,
      order.index(group) % _NUM_COLORS,
      pixel(e.value) or 0.0,
      pixel(e.low),
      pixel(e.high),
    )
    for group, e in differences
  ]
  descriptions = [
    f'{group.short_name}: {formats.signed(scale * e.value, digits)}, '
    f'{formats.interval_text(e, scale=scale, digits=digits)}'
    for group, e in differences
  ]
  description = f'{"; ".join(descriptions)}.'
  zero = pixel(0.0) or 0.0
  return DifferencePlot(metric, _unit(metric), axis, zero, rows, description)


def display_scale(metric: str) -> tuple[float, int]:
  """Factor and decimals of a metric: accuracies in %, entropy in nats."""
  return (1.0, 3) if metric == 'entropy' else (100.0, 1)


def _unit(metric: str) -> str:
  """Unit of differences of a metric."""
  return 'nats' if metric == 'entropy' else 'points'


def legend_entries(
  names: Sequence[str], width: int
) -> list[tuple[int, int, int, str]]:
  """Legend entries in rows of a width: x, row, colour, name."""
  entries, x, row = [], 0, 0
  for index, name in enumerate(names):
    entry_width = 46 + round(6.8 * len(name))
    if x and x + entry_width > width:
      x, row = 0, row + 1
    entries.append((x, row, index % _NUM_COLORS, name))
    x += entry_width
  return entries
