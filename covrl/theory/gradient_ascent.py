# SPDX-License-Identifier: Apache-2.0
"""Exact gradient ascent in bandits, with and without an entropy bonus.

Functions refuse, with `TypeError` or `ValueError`, logits without a softmax,
rewards of another number of actions, and numbers that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from covrl.array_checks import check_integer, check_number
from covrl.theory import categorical
from covrl.theory.argument_checks import check_finite
from covrl.theory.claim import Settings
from covrl.theory.float64 import cached_in_float64

Vectors = Float[np.ndarray, '*n K']
BANDITS = 40  # number of bandits that `random_bandits` returns


def random_bandits(settings: Settings) -> tuple[Vectors, Vectors]:
  """Forty bandits of five actions: initial logits, and rewards in [0, 1]."""
  rng = settings.rng()
  return rng.normal(size=(BANDITS, 5)), rng.uniform(size=(BANDITS, 5))


def gradient(z: Vectors, rewards: Vectors, alpha: float = 0.0) -> Vectors:
  """∇(E r + α H) = π (r − E r − α f), with f = log π + H."""
  check_number('alpha', alpha, -math.inf)
  check_finite('rewards', rewards)
  pi = categorical.softmax(z)
  f = categorical.centred_logprobs(pi)
  return pi * (categorical.centred(pi, rewards) - alpha * f)


def value(
  z: Vectors, rewards: Vectors, alpha: float = 0.0
) -> Float[np.ndarray, '*n']:
  """E r + α H."""
  check_number('alpha', alpha, -math.inf)
  check_finite('rewards', rewards)
  pi = categorical.softmax(z)
  return categorical.expectation(pi, rewards) + alpha * categorical.entropy(pi)


def reward_gap(z: Vectors, rewards: Vectors) -> Float[np.ndarray, '*n']:
  """max r − E r, without cancellation."""
  check_finite('rewards', rewards)
  pi = categorical.softmax(z)
  return categorical.expectation(pi, rewards.max(-1, keepdims=True) - rewards)


def squared_norm(x: Vectors) -> Float[np.ndarray, '*n']:
  """‖x‖²."""
  check_finite('x', x)
  return np.asarray((x**2).sum(-1))


def near_entropy_maximum(
  settings: Settings, size: float = 1e-3
) -> tuple[Vectors, float, float]:
  """A point near the maximum of H, where bounds of gradient ascent are tight.

  There the Hessian is −L on all directions in which logits move, L = 1/K, and
  a step of 1/L goes straight to the maximum.

  Args:
    settings: settings of the run.
    size: distance from the maximum in logits.

  Returns:
    Logits, the smoothness L, and the entropy gap log K − H.
  """
  check_number('size', size, 0, is_open=True)
  z = settings.rng().normal(size=(1, 5))
  z = size * (z - z.mean()) / np.linalg.norm(z - z.mean())
  entropy = categorical.entropy(categorical.softmax(z))[0]
  return z, 1 / 5, float(np.log(5) - entropy)


SCHEDULES: dict[str, Callable[[int], float]] = {
  'none': lambda t: 0.0,
  'exponential': lambda t: 0.3 * np.exp(-t / 300),
  '1/t': lambda t: 0.3 / t,
  '1/√t': lambda t: 0.3 * t**-0.5,
  '1/∜t': lambda t: 0.3 * t**-0.25,
  '1/log t': lambda t: 0.3 / np.log(t + 2),
  'constant': lambda t: 0.3,
}
"""Coefficients of the entropy bonus as functions of the step."""


def log_spaced_steps(steps: int) -> Float[np.ndarray, ' t']:
  """At most forty steps, evenly spaced in logarithm, including the last."""
  check_integer('steps', steps, 1)
  return np.unique(np.logspace(0, np.log10(steps), 40).round()).astype(float)


@cached_in_float64
def annealed_reward_gaps(
  settings: Settings,
) -> tuple[Float[np.ndarray, ' t'], dict[str, Float[np.ndarray, ' t']]]:
  """Runs ascent (η = 1) in the random bandits under each of `SCHEDULES`.

  Returns:
    Steps, and the mean reward gap at these steps by schedule.
  """
  steps = settings.choose(30_000, 3000)
  recorded_steps = log_spaced_steps(steps)
  start, rewards = random_bandits(settings)
  z = np.repeat(start[None], len(SCHEDULES), 0)
  rewards = np.broadcast_to(rewards, z.shape)
  gaps = []
  for step in range(1, steps + 1):
    alpha = np.array([schedule(step) for schedule in SCHEDULES.values()])[
      :, None, None
    ]
    pi = categorical.softmax(z)
    f = categorical.centred_logprobs(pi)
    z = z + pi * (categorical.centred(pi, rewards) - alpha * f)
    if step in recorded_steps:
      gaps.append(reward_gap(z, rewards).mean(-1))
  columns = np.array(gaps).T
  return recorded_steps, dict(zip(SCHEDULES, columns, strict=True))


class ScheduleRuns(NamedTuple):
  """Exact ascent in one bandit under each of `BOUNDED_SCHEDULES` (axis `A`).

  Attributes:
    times: recorded steps.
    reward_gap: reward gap at these steps.
    entropy: entropy at these steps, in nats.
    logits: logits after the last step.
    bonus_norms: Σ ‖λ_t ∇H‖ over the second half of the run.
    coefficient_sums: Σ λ_t over the second half of the run.
  """

  times: Float[np.ndarray, ' t']
  reward_gap: Float[np.ndarray, 'A t']
  entropy: Float[np.ndarray, 'A t']
  logits: Float[np.ndarray, 'A K']
  bonus_norms: Float[np.ndarray, ' A']
  coefficient_sums: Float[np.ndarray, ' A']


BOUNDED_SCHEDULES = ('none', 'linear', 'exponential', '1/t', '1/√t')
"""Schedules of `run_schedules`, whose coefficients are at most 0.3."""


@cached_in_float64
def run_schedules(
  settings: Settings, rewards: tuple[float, ...]
) -> ScheduleRuns:
  """Runs ascent (η = 1) from the same logits under each schedule.

  Args:
    settings: settings of the run.
    rewards: reward of each of at least two actions.
  """
  check_finite('rewards', np.asarray(rewards), 'K')
  if len(rewards) < 2:
    raise ValueError(f'rewards must be of two or more actions, got {rewards}')
  steps = settings.choose(40_000, 10_000)
  start = 0.5 * settings.rng().normal(size=len(rewards))
  z = np.repeat(start[None], len(BOUNDED_SCHEDULES), 0)
  r = np.array([rewards])
  times = log_spaced_steps(steps)
  gaps, entropy = [], []
  norms, sums = np.zeros(5), np.zeros(5)
  for t in range(1, steps + 1):
    alpha = _coefficients(t, steps)
    pi = categorical.softmax(z)
    bonus = -alpha[:, None] * pi * categorical.centred_logprobs(pi)
    z = z + pi * categorical.centred(pi, r) + bonus
    if t > steps // 2:
      norms += np.linalg.norm(bonus, axis=-1)
      sums += alpha
    if t in times:
      pi = categorical.softmax(z)
      gaps.append(r.max() - categorical.expectation(pi, r))
      entropy.append(categorical.entropy(pi))
  return ScheduleRuns(
    times=times,
    reward_gap=np.array(gaps).T,
    entropy=np.array(entropy).T,
    logits=z,
    bonus_norms=norms,
    coefficient_sums=sums,
  )


def _coefficients(t: int, steps: int) -> Float[np.ndarray, ' A']:
  """λ_t of each bounded schedule, at most 0.3; the linear one ends half-way."""
  shapes = [0.0, max(0.0, 1 - 2 * (t - 1) / steps)]
  shapes += [np.exp(-t / 100), 1 / t, t**-0.5]
  return 0.3 * np.array(shapes)
