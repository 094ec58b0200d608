# SPDX-License-Identifier: Apache-2.0
"""Scales from numbers to pixels, with ticks at round numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from covrl.report import words

Numbers = Float[np.ndarray, ' n']


@dataclasses.dataclass(frozen=True)
class Axis:
  """A scale from numbers to pixels, with its ticks.

  Attributes:
    low: number at `start`.
    high: number at `end`.
    start: pixel.
    end: pixel.
    log: logarithmic.
    ticks: pixels and labels.
  """

  low: float
  high: float
  start: float
  end: float
  log: bool = False
  ticks: Sequence[tuple[float, str]] = ()

  def place(self, numbers: Numbers) -> Numbers:
    """Pixels of numbers."""
    low, high = self.low, self.high
    if self.log:
      numbers, low, high = np.log(numbers), math.log(low), math.log(high)
    share = (numbers - low) / (high - low)
    return self.start + share * (self.end - self.start)


def linear_axis(
  numbers: Numbers, start: float, end: float, *, zero: bool = False
) -> Axis:
  """An axis over all numbers, a little longer than they need.

  Args:
    numbers: what must fit; finite, at least one.
    start: pixel of the lower end.
    end: pixel of the upper end.
    zero: whether the axis includes 0; it then ends there if nothing crosses.
  """
  low, high = float(numbers.min()), float(numbers.max())
  if zero:
    low, high = min(low, 0.0), max(high, 0.0)
  size = max(abs(low), abs(high))
  flat = high - low <= 1e-9 * size or size == 0
  pad = (size / 10 or 1.0) if flat else 0.06 * (high - low)
  low -= 0.0 if zero and low == 0 else pad
  high += 0.0 if zero and high == 0 and low < 0 else pad
  axis = Axis(low, high, start, end)
  return dataclasses.replace(axis, ticks=_labels(axis, nice_ticks(low, high)))


def counting_axis(
  low: float, high: float, start: float, end: float, *, margin: float = 0.0
) -> Axis:
  """An axis of iterations or steps: exact ends, ticks at whole numbers."""
  if 0 < low <= high / 10:
    low = 0.0  # the same beginning for all figures of a run
  if high - low + 2 * margin <= 0:
    margin = 0.5
  axis = Axis(low - margin, high + margin, start, end)
  ticks = nice_ticks(axis.low, axis.high)
  whole = np.unique(np.round(ticks))
  whole = whole[(whole >= axis.low) & (whole <= axis.high)]
  return dataclasses.replace(
    axis, ticks=_labels(axis, whole if whole.size else ticks)
  )


def log_axis(numbers: Numbers, start: float, end: float) -> Axis:
  """An axis of whole decades, at most six of them labelled."""
  first = math.floor(math.log10(float(numbers.min())) + 1e-9)
  last = math.ceil(math.log10(float(numbers.max())) - 1e-9)
  last = max(last, first + 1)
  axis = Axis(10.0**first, 10.0**last, start, end, log=True)
  exponents = range(first, last + 1, max(1, math.ceil((last - first) / 5)))
  pixels = axis.place(10.0 ** np.array(exponents, float))
  names = [
    words.number(10.0**e, 1) if -3 <= e <= 4 else words.power(e)
    for e in exponents
  ]
  ticks = [(float(p), n) for p, n in zip(pixels, names, strict=True)]
  return dataclasses.replace(axis, ticks=ticks)


def nice_ticks(low: float, high: float, count: int = 5) -> Numbers:
  """Round numbers within a range, about `count` of them.

  >>> nice_ticks(0.0, 1.0)
  array([0. , 0.2, 0.4, 0.6, 0.8, 1. ])
  """
  rough = (high - low) / count
  scale = 10.0 ** math.floor(math.log10(rough))
  step = scale * next(
    s for s in (1, 2, 2.5, 5, 10) if s * scale >= 0.99 * rough
  )
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return np.arange(first, last + 1) * step


def _labels(axis: Axis, ticks: Numbers) -> list[tuple[float, str]]:
  """Ticks with as many digits as their distance needs, and the same for all."""
  step = float(np.diff(ticks).min()) if ticks.size > 1 else abs(ticks[0]) or 1.0
  digits = max(0, -math.floor(math.log10(step) + 1e-9))
  digits += not math.isclose(step * 10**digits, round(step * 10**digits))
  large = max(abs(axis.low), abs(axis.high)) >= 1e6
  scientific = digits > 4 or large
  return [
    (
      float(pixel),
      _scientific(tick) if scientific else words.fixed(tick, digits),
    )
    for pixel, tick in zip(axis.place(ticks), ticks, strict=True)
  ]


def _scientific(tick: float) -> str:
  """A very small or very large tick, with a power of ten."""
  if tick == 0:
    return '0'
  exponent = math.floor(math.log10(abs(tick)) + 1e-9)
  mantissa = words.number(tick / 10.0**exponent, 2)
  return f'{mantissa.removesuffix(".0")}×{words.power(exponent)}'
