# SPDX-License-Identifier: Apache-2.0
"""From columns of metrics to the curves of a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from covrl.report.chart import LARGE, Drawing, Figure, Series, draw, smooth
from covrl.report.run import Curve, Lines

# Indices of the page's palette (Okabe and Ito's, in `style.css`).
INK, BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = range(8)


def lines_of(
  lines: Lines,
  names: dict[str, str],
  colors: Sequence[int] = (BLUE,),
  *,
  over: str = 'iteration',
  scale: float = 1.0,
) -> list[Series]:
  """One line a field."""
  return [
    Series(name=name, x=curve.x, y=scale * curve.y, color=color)
    for (field, name), color in zip(names.items(), colors, strict=False)
    if (curve := lines.curve(field, over))
  ]


def smoothed(
  curve: Curve, name: str, color: int, scale: float
) -> tuple[list[Series], str]:
  """A noisy quantity: each iteration thin, its running mean bold."""
  x, y = curve.x, scale * curve.y
  if x.size < 12:
    return [Series(name=name, x=x, y=y, color=color)], ''
  window = 2 * (x.size // 24) + 3
  mean = Series(name=name, x=x, y=smooth(y, window), color=color)
  each = Series(name='each iteration', x=x, y=y, color=GREY, kind='faint')
  return [each, mean], f'Bold: running mean over {window} iterations.'


def drawn(
  figures: Sequence[Figure], size: tuple[int, int] = LARGE
) -> list[Drawing]:
  """Lays out the figures that have something to show."""
  return [
    draw(figure, size)
    for figure in figures
    if any(_has_points(series, figure.log) for series in figure.series)
  ]


def _has_points(series: Series, log: bool) -> bool:
  return bool((np.isfinite(series.y) & ((series.y > 0) | (not log))).any())
