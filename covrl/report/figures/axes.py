# SPDX-License-Identifier: Apache-2.0
"""Axes of figures: scales from numbers to pixels, with ticks at round numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from covrl.report import formats

Numbers = Float[np.ndarray, ' n']


@dataclasses.dataclass(frozen=True)
class Axis:
  """A scale from numbers to pixels, with ticks.

  Attributes:
    low: number at `start`.
    high: number at `end`.
    start: pixel of the lower end.
    end: pixel of the upper end.
    log: whether the scale is logarithmic.
    ticks: pixel and label of each tick.
  """

  low: float
  high: float
  start: float
  end: float
  log: bool = False
  ticks: Sequence[tuple[float, str]] = ()

  def to_pixels(self, numbers: Numbers) -> Numbers:
    """Pixels of numbers."""
    low, high = self.low, self.high
    if self.log:
      numbers, low, high = np.log(numbers), math.log(low), math.log(high)
    fraction = (numbers - low) / (high - low)
    return self.start + fraction * (self.end - self.start)

  def with_ticks(self, numbers: Numbers, labels: Sequence[str]) -> Axis:
    """The same axis with other ticks."""
    pixels = self.to_pixels(np.asarray(numbers, float))
    pairs = zip(pixels, labels, strict=True)
    ticks = [(float(pixel), label) for pixel, label in pairs]
    return dataclasses.replace(self, ticks=ticks)


def linear_axis(
  numbers: Numbers, start: float, end: float, *, includes_zero: bool = False
) -> Axis:
  """An axis that contains all numbers, with some padding.

  Args:
    numbers: at least one finite number.
    start: pixel of the lower end.
    end: pixel of the upper end.
    includes_zero: whether the axis includes 0, without padding beyond it.
  """
  low, high = float(numbers.min()), float(numbers.max())
  if includes_zero:
    low, high = min(low, 0.0), max(high, 0.0)
  size = max(abs(low), abs(high))
  is_flat = high - low <= 1e-9 * size or size == 0
  pad = (size / 10 or 1.0) if is_flat else 0.06 * (high - low)
  low -= 0.0 if includes_zero and low == 0 else pad
  high += 0.0 if includes_zero and high == 0 and low < 0 else pad
  return with_linear_ticks(Axis(low, high, start, end))


def integer_axis(
  low: float, high: float, start: float, end: float, *, margin: float = 0.0
) -> Axis:
  """An axis of iterations or steps, with ticks at integers.

  Args:
    low: smallest number.
    high: largest number.
    start: pixel of the lower end.
    end: pixel of the upper end.
    margin: padding at both ends, in units of the numbers.
  """
  if 0 < low <= high / 10:
    low = 0.0  # all figures of a run then start at the same iteration
  if high - low + 2 * margin <= 0:
    margin = 0.5
  axis = Axis(low - margin, high + margin, start, end)
  ticks = nice_ticks(axis.low, axis.high)
  integers = np.unique(np.round(ticks))
  integers = integers[(integers >= axis.low) & (integers <= axis.high)]
  ticks = integers if integers.size else ticks
  return axis.with_ticks(ticks, _labels(axis, ticks))


def log_axis(numbers: Numbers, start: float, end: float) -> Axis:
  """A logarithmic axis of whole decades with at most six labels."""
  first_exponent = math.floor(math.log10(float(numbers.min())) + 1e-9)
  last_exponent = math.ceil(math.log10(float(numbers.max())) - 1e-9)
  last_exponent = max(last_exponent, first_exponent + 1)
  axis = Axis(10.0**first_exponent, 10.0**last_exponent, start, end, log=True)
  exponents = range(
    first_exponent,
    last_exponent + 1,
    max(1, math.ceil((last_exponent - first_exponent) / 5)),
  )
  labels = [
    formats.number(10.0**e, 1) if -3 <= e <= 4 else formats.power_of_ten(e)
    for e in exponents
  ]
  return axis.with_ticks(10.0 ** np.array(exponents, float), labels)


def with_linear_ticks(axis: Axis) -> Axis:
  """The axis with ticks at round numbers."""
  ticks = nice_ticks(axis.low, axis.high)
  return axis.with_ticks(ticks, _labels(axis, ticks))


def with_exponent_ticks(axis: Axis) -> Axis:
  """The axis of log₁₀ x with ticks at the integers, labelled as x."""
  exponents = np.arange(
    np.ceil(axis.low - 1e-9), np.floor(axis.high + 1e-9) + 1
  )
  labels = [
    f'{10 ** round(exponent):,}'
    if 0 <= exponent <= 4
    else formats.power_of_ten(round(exponent))
    for exponent in exponents
  ]
  return axis.with_ticks(exponents, labels)


def nice_ticks(low: float, high: float, count: int = 5) -> Numbers:
  """About `count` round numbers within a range.

  >>> nice_ticks(0.0, 1.0)
  array([0. , 0.2, 0.4, 0.6, 0.8, 1. ])
  """
  rough_step = (high - low) / count
  scale = 10.0 ** math.floor(math.log10(rough_step))
  step = scale * next(
    s for s in (1, 2, 2.5, 5, 10) if s * scale >= 0.99 * rough_step
  )
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return np.arange(first, last + 1) * step


def _labels(axis: Axis, ticks: Numbers) -> list[str]:
  """Labels of ticks, all with the digits that their distance needs."""
  step = float(np.diff(ticks).min()) if ticks.size > 1 else abs(ticks[0]) or 1.0
  digits = max(0, -math.floor(math.log10(step) + 1e-9))
  digits += not math.isclose(step * 10**digits, round(step * 10**digits))
  is_large = max(abs(axis.low), abs(axis.high)) >= 1e6
  if digits > 4 or is_large:
    return [_scientific(tick) for tick in ticks]
  return [formats.fixed(tick, digits) for tick in ticks]


def _scientific(tick: float) -> str:
  """A label with a power of ten."""
  if tick == 0:
    return '0'
  exponent = math.floor(math.log10(abs(tick)) + 1e-9)
  mantissa = formats.number(tick / 10.0**exponent, 2)
  return f'{mantissa.removesuffix(".0")}×{formats.power_of_ten(exponent)}'
