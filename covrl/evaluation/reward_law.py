# SPDX-License-Identifier: Apache-2.0
"""The law R = −a e^H + b on a run: a fit, its rival, and a forecast.

The law is linear in a and b, so the fit is least squares. Points of a run
depend on those before, so intervals come from a moving-block bootstrap of the
residuals rather than from a formula for independent ones.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Numbers = Float[np.ndarray, ' n']
Pair = Float[np.ndarray, '2']


class Interval(NamedTuple):
  """An estimate and its 95 % interval."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Fit:
  """A line R = b − a x through a run, x a function of entropy.

  Attributes:
    a: reward lost per unit of x.
    b: reward at x = 0.
    r_squared: share of the variance of R that it explains.
    residual: root mean square of what it leaves, in units of R.
    forecast: R at the end's entropy, from a fit to the first third alone.
    error: that forecast less what the end was.
  """

  a: Interval
  b: Interval
  r_squared: float
  residual: float
  forecast: float
  error: float


@dataclasses.dataclass(frozen=True)
class RewardLaw:
  """How reward follows entropy along a run.

  Attributes:
    exponential: R = −a e^H + b.
    linear: R = −a H + b, to compare with.
  """

  exponential: Fit
  linear: Fit

  def at(self, entropy: Numbers) -> Numbers:
    """R by the exponential law."""
    fit = self.exponential
    return fit.b.value - fit.a.value * np.exp(entropy)


def reward_law(
  entropy: Numbers,
  reward: Numbers,
  *,
  resamples: int = 2000,
  seed: int = 0,
) -> RewardLaw:
  """Fits R = −a e^H + b to a run, and R = −a H + b beside it.

  The end is the mean of the last tenth of the points; the forecast of it uses
  the law fitted to the first third and the entropy of the end.

  Args:
    entropy: per token, in nats, in the order of training.
    reward: at the same points, in any unit.
    resamples: of the bootstrap.
    seed: of the resampling: the same points give the same intervals.

  Raises:
    ValueError: if there are fewer than nine points, or their entropies are all
      the same.

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
  if entropy.size != reward.size or entropy.size < 9:
    raise ValueError(
      'a law of reward needs nine points or more of entropy and of reward, got '
      f'{entropy.size} and {reward.size}'
    )
  if np.ptp(entropy[: entropy.size // 3]) == 0:
    raise ValueError(
      'a law of reward needs entropies that differ in the first third of the '
      f'run, got {entropy[0]:g} everywhere'
    )
  random = np.random.default_rng(seed)
  draws = _blocks(random, entropy.size, resamples)
  return RewardLaw(
    exponential=_fit(np.exp(entropy), reward, draws),
    linear=_fit(entropy, reward, draws),
  )


def _fit(x: Numbers, y: Numbers, draws: np.ndarray) -> Fit:
  """Least squares, bootstrapped, and a forecast from the first third."""
  coefficients = _line(x, y)
  left = y - _of(coefficients, x)
  design = np.linalg.pinv(np.stack([-x, np.ones_like(x)], axis=1))
  resampled = design @ (_of(coefficients, x) + left[draws]).T
  low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
  third, tenth = x.size // 3, max(1, x.size // 10)
  end = x[-tenth:].mean(keepdims=True)
  forecast = float(_of(_line(x[:third], y[:third]), end)[0])
  a, b = (
    Interval(float(v), float(bottom), float(top))
    for v, bottom, top in zip(coefficients, low, high, strict=True)
  )
  variance = float(y.var())
  return Fit(
    a=a,
    b=b,
    r_squared=1 - float((left**2).mean()) / variance if variance else 0.0,
    residual=float(np.sqrt((left**2).mean())),
    forecast=forecast,
    error=forecast - float(y[-tenth:].mean()),
  )


def _line(x: Numbers, y: Numbers) -> Pair:
  """a and b of y ≈ b − a x."""
  slope, intercept = np.polyfit(x, y, 1)
  return np.array([-slope, intercept])


def _of(coefficients: Pair, x: Numbers) -> Numbers:
  return coefficients[1] - coefficients[0] * x


def _blocks(
  random: np.random.Generator, size: int, resamples: int
) -> np.ndarray:
  """Indices of resampled runs, made of blocks of neighbours."""
  length = max(1, round(size ** (1 / 3)))
  count = -(-size // length)
  starts = random.integers(0, size - length + 1, (resamples, count, 1))
  return (starts + np.arange(length)).reshape(resamples, -1)[:, :size]
