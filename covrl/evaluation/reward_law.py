# SPDX-License-Identifier: Apache-2.0
"""Fits the law R = −a e^H + b between entropy and reward to a run.

The law is linear in a and b, so the fit is least squares. The points of a run
are not independent, so intervals come from a moving-block bootstrap of the
residuals. A line R = −a H + b is fitted for comparison, and the law fitted to
the first third of the run predicts its end.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from covrl.array_checks import check_array, check_integer

# Entropies beyond any vocabulary's, in nats, whose exponential may overflow.
_MAX_ENTROPY = 100.0
# Entropies of nearly deterministic policies are below 0 by at most this.
_ROUNDING = 1e-3

Numbers = Float[np.ndarray, ' n']
Pair = Float[np.ndarray, '2']


class Interval(NamedTuple):
  """An estimate and its 95 % interval.

  Attributes:
    value: the estimate.
    low: lower end of the interval.
    high: upper end of the interval.
  """

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Fit:
  """A line R = b − a x fitted to a run, where x is a function of entropy.

  Attributes:
    a: reward lost per unit of x.
    b: reward at x = 0.
    r_squared: fraction of the variance of R that the line explains; NaN where R is
      constant.
    residual: root mean square of the residuals, in units of R.
    forecast: R at the final entropy by a fit to the first third only.
    error: the forecast minus the final reward.
  """

  a: Interval
  b: Interval
  r_squared: float
  residual: float
  forecast: float
  error: float


@dataclasses.dataclass(frozen=True)
class RewardLaw:
  """Two fits of reward as a function of entropy.

  Attributes:
    exponential: R = −a e^H + b.
    linear: R = −a H + b, for comparison.
  """

  exponential: Fit
  linear: Fit

  def at(self, entropy: Numbers) -> Numbers:
    """Returns R by the exponential law."""
    fit = self.exponential
    return fit.b.value - fit.a.value * np.exp(entropy)


def reward_law(
  entropy: Numbers,
  reward: Numbers,
  *,
  resamples: int = 2000,
  seed: int = 0,
) -> RewardLaw:
  """Fits R = −a e^H + b and R = −a H + b to a run.

  Final entropy and reward are the means over the last tenth of the points.

  Args:
    entropy: mean token entropy in nats, in the order of training.
    reward: mean reward at the same points, in any unit.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.

  Raises:
    TypeError: they are not arrays of numbers without a mask.
    ValueError: there are fewer than nine points, a number is not finite, an entropy
      is negative, or the entropies of the first third are all equal.

  References:
    Cui et al., `The Entropy Mechanism of Reinforcement Learning for Reasoning
    Language Models <https://arxiv.org/abs/2505.22617>`_, 2025, section 2.4
    (the law).

  >>> entropy = np.linspace(1.0, 0.1, 30)
  >>> law = reward_law(entropy, 0.9 - 0.2 * np.exp(entropy))
  >>> round(law.exponential.a.value, 6), round(law.exponential.error, 6)
  (0.2, 0.0)
  >>> law.linear.r_squared < law.exponential.r_squared
  True
  """
  for name, numbers in (('entropy', entropy), ('reward', reward)):
    if isinstance(numbers, np.ma.MaskedArray):
      raise TypeError(
        f'{name} must be an array without a mask, got a masked one'
      )
    check_array(name, numbers, 'real', 'n')
  check_integer('resamples', resamples, 1)
  check_integer('seed', seed, 0)
  if entropy.size != reward.size or entropy.size < 9:
    raise ValueError(
      'entropy and reward must have the same number of points, at least 9, got '
      f'{entropy.size} and {reward.size}'
    )
  is_valid_entropy = (entropy >= -_ROUNDING) & (entropy <= _MAX_ENTROPY)
  is_valid = np.isfinite(reward) & is_valid_entropy
  if not is_valid.all():
    raise ValueError(
      'rewards must be finite and entropies lie in [0,'
      f' {_MAX_ENTROPY:g}] nats, got {entropy[~is_valid][0]:g} with the reward'
      f' {reward[~is_valid][0]:g}'
    )
  if np.ptp(entropy[: entropy.size // 3]) == 0:
    raise ValueError(
      'entropies must differ in the first third of the '
      f'run, got {entropy[0]:g} everywhere'
    )
  generator = np.random.default_rng(seed)
  indices = _block_indices(generator, entropy.size, resamples)
  return RewardLaw(
    exponential=_fit(np.exp(entropy), reward, indices),
    linear=_fit(entropy, reward, indices),
  )


def _fit(x: Numbers, y: Numbers, indices: np.ndarray) -> Fit:
  """Least-squares fit with bootstrap intervals and a forecast."""
  coefficients = _fit_line(x, y)
  residuals = y - _line_at(coefficients, x)
  design = np.linalg.pinv(np.stack([-x, np.ones_like(x)], axis=1))
  resampled = design @ (_line_at(coefficients, x) + residuals[indices]).T
  low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
  third, tenth = x.size // 3, max(1, x.size // 10)
  end = x[-tenth:].mean(keepdims=True)
  forecast = float(_line_at(_fit_line(x[:third], y[:third]), end)[0])
  a, b = (
    Interval(float(v), float(bottom), float(top))
    for v, bottom, top in zip(coefficients, low, high, strict=True)
  )
  variance = float(y.var())
  return Fit(
    a=a,
    b=b,
    r_squared=1 - float((residuals**2).mean()) / variance
    if variance
    else math.nan,
    residual=float(np.sqrt((residuals**2).mean())),
    forecast=forecast,
    error=forecast - float(y[-tenth:].mean()),
  )


def _fit_line(x: Numbers, y: Numbers) -> Pair:
  """Returns a and b of y ≈ b − a x."""
  slope, intercept = np.polyfit(x, y, 1)
  return np.array([-slope, intercept])


def _line_at(coefficients: Pair, x: Numbers) -> Numbers:
  """Values of the line b − a x."""
  return coefficients[1] - coefficients[0] * x


def _block_indices(
  generator: np.random.Generator, size: int, resamples: int
) -> np.ndarray:
  """Returns indices of resampled runs, made of blocks of consecutive points."""
  length = max(1, round(size ** (1 / 3)))
  count = -(-size // length)
  starts = generator.integers(0, size - length + 1, (resamples, count, 1))
  return (starts + np.arange(length)).reshape(resamples, -1)[:, :size]
