# SPDX-License-Identifier: Apache-2.0
"""Means with 95 % intervals of three kinds.

Over the *problems* of one run (do other held-out problems give the same
result?): the paired bootstrap. Over *seeds* (do other runs?): Student's t. If
only standard errors are known: the normal approximation. A single value has no
interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from covrl.array_checks import check_integer, check_number

_Z = 1.959964  # .975 quantile of the normal distribution
_MANY_DEGREES = 1000  # degrees of freedom beyond which t's quantile is a series


@dataclasses.dataclass(frozen=True)
class Estimate:
  """An estimate with its 95 % interval.

  Attributes:
    value: the estimate.
    low: lower end of the interval; `None` without an interval.
    high: upper end of the interval; `None` without an interval.
    kind: description of the interval.
    values: the averaged values, if they are too few for an interval; else empty.
  """

  value: float
  low: float | None = None
  high: float | None = None
  kind: str = 'no interval'
  values: tuple[float, ...] = ()

  @property
  def sign(self) -> int:
    """1 or −1 if the interval excludes 0, else 0."""
    if self.low is None or self.high is None:
      return 0
    return int(self.low > 0) - int(self.high < 0)


def bootstrap_mean(
  values: Float[np.ndarray, ' n'], *, resamples: int = 10_000, seed: int = 0
) -> Estimate:
  """Mean with the percentile interval of the bootstrap.

  On differences per problem it is the paired bootstrap. Of values that are all equal
  the interval has width 0, however few they are.

  Args:
    values: one value per problem; a single one has no interval.
    resamples: number of resamples.
    seed: seed of the resampling.

  Raises:
    TypeError: the values are not an array of numbers without a mask.
    ValueError: there are no values, or one is not finite.

  References:
    Efron, B. (1979). Bootstrap methods: another look at the jackknife.

  >>> bootstrap_mean(np.array([0.0, 1.0, 1.0, 0.0])).value
  0.5
  """
  values = _checked(values)
  check_integer('resamples', resamples, 1)
  check_integer('seed', seed, 0)
  if values.size == 1:
    return Estimate(float(values[0]), kind='one problem, no interval')
  generator = np.random.default_rng(seed)
  chunk = max(1, 1_000_000 // values.size)
  means = [
    values[generator.integers(values.size, size=(rows, values.size))].mean(1)
    for rows in _chunks(resamples, chunk)
  ]
  low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
  kind = f'paired over {values.size:,} problems'
  return Estimate(float(values.mean()), float(low), float(high), kind)


def bootstrap_sets(
  sets: Sequence[Float[np.ndarray, ' n']],
  *,
  resamples: int = 10_000,
  seed: int = 0,
) -> Estimate:
  """Unweighted mean of several sets' means, with the bootstrap's interval.

  Problems are resampled within each set, so that sets keep their sizes and
  weights. The numbers of draws of each distinct value are multinomial, which
  makes few distinct values fast. On differences it is the paired bootstrap. Of
  values that are all equal the interval has width 0.

  Args:
    sets: for each set one value per problem. A set with a single one has no
      interval, nor has a mean over sets of which one is such a set.
    resamples: number of resamples.
    seed: seed of the resampling.

  Raises:
    TypeError: a set is not an array of numbers without a mask.
    ValueError: there is no set, or a set has no values or one that is not finite.

  >>> bootstrap_sets([np.array([0.0, 1.0]), np.ones(5)]).value
  0.75
  """
  sets = [_checked(values) for values in sets]
  if not sets:
    raise ValueError('sets of an estimate must not be empty, got none')
  check_integer('resamples', resamples, 1)
  check_integer('seed', seed, 0)
  value = float(np.mean([values.mean() for values in sets]))
  if any(values.size == 1 for values in sets):
    subject = 'one problem' if len(sets) == 1 else 'a set of one problem'
    return Estimate(value, kind=f'{subject}, no interval')
  generator = np.random.default_rng(seed)
  means = np.zeros(resamples)
  for values in sets:
    levels, counts = np.unique(values, return_counts=True)
    drawn = generator.multinomial(
      values.size, counts / values.size, size=resamples
    )
    means += drawn @ levels / values.size
  low, high = np.quantile(means / len(sets), [0.025, 0.975])
  kind = f'over {sum(values.size for values in sets):,} problems'
  if len(sets) > 1:
    kind += f' of {len(sets)} sets'
  return Estimate(value, float(low), float(high), kind)


def student_mean(values: Float[np.ndarray, ' n']) -> Estimate:
  """Mean over seeds, with Student's t interval.

      mean ± t(.975, n − 1) s / √n

  Args:
    values: one value per seed; a single one has no interval.

  Raises:
    TypeError: the values are not an array of numbers without a mask.
    ValueError: there are no values, or one is not finite.

  >>> estimate = student_mean(np.array([1.0, 2.0, 3.0]))
  >>> round(estimate.high - estimate.value, 3)
  2.484
  >>> student_mean(np.array([1.0])).low is None
  True
  """
  values = _checked(values)
  mean, count = float(values.mean()), values.size
  if count == 1:
    return Estimate(mean, kind='one seed, no interval')
  standard_error = float(values.std(ddof=1)) / count**0.5
  half = student_quantile(count - 1) * standard_error
  return Estimate(mean, mean - half, mean + half, f't over {count} seeds')


def normal_difference(
  first: float,
  last: float,
  first_stderr: float | None,
  last_stderr: float | None,
) -> Estimate:
  """Difference of two independent means with known standard errors.

  last − first ± 1.96 √(σ_first² + σ_last²)

  Raises:
    TypeError: an argument is not a number.
    ValueError: a mean is not finite, or a standard error is negative or not
      finite.
  """
  check_number('first', first, -math.inf)
  check_number('last', last, -math.inf)
  for stderr in (first_stderr, last_stderr):
    if stderr is not None:
      check_number('standard errors', stderr, 0)
  difference = last - first
  if first_stderr is None or last_stderr is None:
    return Estimate(difference)
  half = _Z * float(np.hypot(first_stderr, last_stderr))
  kind = 'unpaired, from the standard errors'
  return Estimate(difference, difference - half, difference + half, kind)


def student_quantile(degrees: int) -> float:
  """The .975 quantile of Student's t distribution.

  With t = √ν tan θ the density is proportional to cos^(ν−1) θ; its integral over
  a grid is inverted. Beyond 1,000 degrees t is expanded in 1/ν around the normal
  quantile.

  Raises:
    TypeError: the degrees of freedom are not an integer.
    ValueError: there is no degree of freedom.

  >>> round(student_quantile(2), 3)
  4.303
  """
  check_integer('degrees', degrees, 1)
  if degrees > _MANY_DEGREES:
    first = (_Z**3 + _Z) / 4
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    return _Z + first / degrees + second / degrees**2
  angles = np.linspace(0.0, np.pi / 2, 200_001)
  heights = np.cos(angles) ** (degrees - 1)
  mass = np.concatenate([[0.0], np.cumsum(heights[1:] + heights[:-1])])
  return float(
    np.sqrt(degrees) * np.tan(np.interp(0.95, mass / mass[-1], angles))
  )


def _chunks(total: int, size: int) -> list[int]:
  """Splits a count into chunks of at most `size`."""
  return [min(size, total - start) for start in range(0, total, size)]


def _checked(values: Float[np.ndarray, ' n']) -> Float[np.ndarray, ' n']:
  """Checks values and returns them as float64."""
  array: object = values
  if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
    raise TypeError(
      'values of an estimate must be an array without a mask, got a'
      f' {type(values).__name__}'
    )
  if array.dtype.kind not in 'biuf':
    raise TypeError(f'values of an estimate must be numbers, got {array.dtype}')
  if array.size == 0:
    raise ValueError('values of an estimate must not be empty, got none')
  if array.ndim != 1:
    raise ValueError(f'values of an estimate must be [n], got {array.shape}')
  numbers = array.astype(float)
  if not np.isfinite(numbers).all():
    wrong = numbers[~np.isfinite(numbers)][0]
    raise ValueError(f'values of an estimate must be finite, got {wrong:g}')
  return numbers
