# SPDX-License-Identifier: Apache-2.0
"""Pictures of several configurations: overlaid curves, and differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from covrl.report import words
from covrl.report.axes import Axis, linear_axis
from covrl.report.chart import Drawing, Figure, Series, smooth
from covrl.report.compare import Comparison, Group
from covrl.report.series import drawn

_COLORS = 7  # of the palette; then they are used again, dashed
_WINDOW = 7  # iterations of a running mean

# Title, axis and unit of what training lines have; the rest are accuracies.
_OF_TRAINING = {
  'entropy': ('Entropy of the policy', 'nats per token', 'nats'),
  'reward': (
    'Reward of sampled responses',
    'mean reward, % of full marks',
    '%',
  ),
  'covariance': ('Mean covariance', 'covariance, nats', 'nats'),
}
_NOISY = ('reward', 'covariance')


@dataclasses.dataclass(frozen=True)
class Forest:
  """Differences to the baseline, one a row, with their intervals.

  Attributes:
    metric: what differs.
    unit: of the axis.
    axis: from differences to pixels.
    zero: pixel of no difference.
    rows: name, colour, and pixels of the estimate and its interval's ends.
    description: the same in words.
  """

  metric: str
  unit: str
  axis: Axis
  zero: float
  rows: Sequence[tuple[str, int, float, float | None, float | None]]
  description: str


def overlay_figures(comparison: Comparison) -> list[Drawing]:
  """Overlaid curves, mean over seeds."""
  greedy, mean, best, _ = comparison.metrics
  fields = ('entropy', mean, greedy, best, 'reward', 'covariance')
  return drawn([overlay(comparison, field) for field in fields])


def overlay(comparison: Comparison, field: str) -> Figure:
  """One quantity of all configurations: of training, or of evaluations."""
  title, y_label, unit = _OF_TRAINING.get(
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
    zero=unit == 'nats',
  )


def _series(group: Group, index: int, field: str, scale: float) -> Series:
  """A configuration's mean over seeds, and its range."""
  phase = 'train' if field in _OF_TRAINING else 'evals'
  curves = group.curve(phase, field)
  mean, low, high = (
    scale * (smooth(c.y, _WINDOW) if field in _NOISY and c else c.y)
    for c in curves
  )
  band = len(group.runs) > 1
  return Series(
    name=group.short,
    x=curves[0].x,
    y=mean,
    low=low if band else None,
    high=high if band else None,
    color=index % _COLORS,
    dashed=index >= _COLORS,
  )


def _caption(comparison: Comparison, field: str) -> str:
  """How to read the curves and their bands."""
  parts = []
  if len(comparison.seeds) > 1:
    parts.append('Mean over seeds; the band is from the lowest to the highest.')
  if field in _NOISY:
    parts.append(f'Running means over {_WINDOW} iterations.')
  return ' '.join(parts)


def forest_of(comparison: Comparison, metric: str) -> Forest | None:
  """Differences to the baseline as points with intervals."""
  differences = comparison.differences(metric)
  if not differences:
    return None
  scale, digits = scale_of(metric)
  ends = [
    scale * end
    for _, e in differences
    for end in (e.value, e.low, e.high)
    if end is not None
  ]
  longest = max(len(group.short) for group, _ in differences)
  left = float(np.clip(7.6 * longest, 100, 280))
  axis = linear_axis(np.array([0.0, *ends]), left, 468.0)

  def pixel(value: float | None) -> float | None:
    if value is None:
      return None
    return round(float(axis.place(np.array([scale * value]))[0]), 1)

  order = list(comparison.groups)
  rows = [
    (
      group.short,
      order.index(group) % _COLORS,
      pixel(e.value) or 0.0,
      pixel(e.low),
      pixel(e.high),
    )
    for group, e in differences
  ]
  said = [
    f'{group.short}: {words.signed(scale * e.value, digits)}, '
    f'{words.interval(e, scale=scale, digits=digits)}'
    for group, e in differences
  ]
  description = f'{"; ".join(said)}.'
  zero = pixel(0.0) or 0.0
  return Forest(metric, _unit(metric), axis, zero, rows, description)


def scale_of(metric: str) -> tuple[float, int]:
  """Accuracies are shown in percent, entropy in nats; and their digits."""
  return (1.0, 3) if metric == 'entropy' else (100.0, 1)


def _unit(metric: str) -> str:
  return 'nats' if metric == 'entropy' else 'points'


def legend_keys(
  names: Sequence[str], width: int
) -> list[tuple[int, int, int, str]]:
  """Places of a legend's entries, wrapped: x, row, colour, name."""
  keys, x, row = [], 0, 0
  for index, name in enumerate(names):
    needed = 46 + round(6.8 * len(name))
    if x and x + needed > width:
      x, row = 0, row + 1
    keys.append((x, row, index % _COLORS, name))
    x += needed
  return keys
