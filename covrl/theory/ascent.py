# SPDX-License-Identifier: Apache-2.0
"""Exact gradient ascent in random bandits, forty at once, in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from covrl.theory import softmax as sm
from covrl.theory.claims import Lab

Many = Float[np.ndarray, '*n K']
BANDITS = 40


def bandits(lab: Lab) -> tuple[Many, Many]:
  """Logits to start from, and rewards in [0, 1] of five actions."""
  random = lab.random()
  return random.normal(size=(BANDITS, 5)), random.uniform(size=(BANDITS, 5))


def gradient(z: Many, rewards: Many, alpha: float = 0.0) -> Many:
  """∇(E r + α H): π (r − E r − α f)."""
  pi = sm.softmax(z)
  return pi * (sm.centred(pi, rewards) - alpha * sm.surprise(pi))


def value(
  z: Many, rewards: Many, alpha: float = 0.0
) -> Float[np.ndarray, '*n']:
  """E r + α H."""
  pi = sm.softmax(z)
  return sm.mean(pi, rewards) + alpha * sm.entropy(pi)


def lost(z: Many, rewards: Many) -> Float[np.ndarray, '*n']:
  """max r − E r, without cancellation."""
  return sm.mean(sm.softmax(z), rewards.max(-1, keepdims=True) - rewards)


def square(x: Many) -> Float[np.ndarray, '*n']:
  """‖x‖²."""
  return np.asarray((x**2).sum(-1))


def towards_a_peak(lab: Lab, size: float = 1e-3) -> tuple[Many, float, float]:
  """Where bounds of ascent are tight: near the maximum of H alone.

  There the Hessian is −L on all directions in which logits move, L = 1/K, and
  a step of 1/L goes straight to the maximum.

  Returns:
    Logits at a distance of `size`, L, and what H still lacks there.
  """
  z = lab.random().normal(size=(1, 5))
  z = size * (z - z.mean()) / np.linalg.norm(z - z.mean())
  return z, 1 / 5, float(np.log(5) - sm.entropy(sm.softmax(z))[0])


SCHEDULES: dict[str, Callable[[int], float]] = {
  'none': lambda t: 0.0,
  'exponential': lambda t: 0.3 * np.exp(-t / 300),
  '1/t': lambda t: 0.3 / t,
  '1/√t': lambda t: 0.3 * t**-0.5,
  '1/∜t': lambda t: 0.3 * t**-0.25,
  '1/log t': lambda t: 0.3 / np.log(t + 2),
  'constant': lambda t: 0.3,
}


def moments(steps: int) -> Float[np.ndarray, ' t']:
  """Forty steps or fewer, evenly spread in logarithm, the last included."""
  return np.unique(np.logspace(0, np.log10(steps), 40).round()).astype(float)


@functools.cache
def annealed(
  lab: Lab,
) -> tuple[Float[np.ndarray, ' t'], dict[str, Float[np.ndarray, ' t']]]:
  """Mean reward lost along runs with a bonus, by its schedule; η = 1."""
  steps = lab.size(30_000, 3000)
  times = moments(steps)
  start, rewards = bandits(lab)
  z = np.repeat(start[None], len(SCHEDULES), 0)
  rewards = np.broadcast_to(rewards, z.shape)
  gaps = []
  for step in range(1, steps + 1):
    alpha = np.array([at(step) for at in SCHEDULES.values()])[:, None, None]
    pi = sm.softmax(z)
    z = z + pi * (sm.centred(pi, rewards) - alpha * sm.surprise(pi))
    if step in times:
      gaps.append(lost(z, rewards).mean(-1))
  columns = np.array(gaps).T
  return times, dict(zip(SCHEDULES, columns, strict=True))


class Ascent(NamedTuple):
  """Exact ascent in a bandit under schedules of the bonus.

  Attributes:
    times: steps.
    lost: reward lost at them, by schedule.
    entropy: at them, by schedule, in nats.
    logits: at the end, by schedule.
    middle: half-way.
    pushes: Σ ‖λ_t ∇H‖ after half-way, by schedule.
    weights: Σ λ_t after half-way, by schedule.
  """

  times: Float[np.ndarray, ' t']
  lost: Float[np.ndarray, 'A t']
  entropy: Float[np.ndarray, 'A t']
  logits: Float[np.ndarray, 'A K']
  middle: Float[np.ndarray, 'A K']
  pushes: Float[np.ndarray, ' A']
  weights: Float[np.ndarray, ' A']


NAMES = ('none', 'linear', 'exponential', '1/t', '1/√t')


@functools.cache
def ascend(lab: Lab, rewards: tuple[float, ...]) -> Ascent:
  """Runs five schedules from the same logits."""
  steps = lab.size(40_000, 10_000)
  start = 0.5 * lab.random().normal(size=len(rewards))
  z = np.repeat(start[None], len(NAMES), 0)
  r = np.array([rewards])
  times = moments(steps)
  lost, entropy = [], []
  middle, pushes, weights = z, np.zeros(5), np.zeros(5)
  for t in range(1, steps + 1):
    alpha = schedules(t, steps)
    pi = sm.softmax(z)
    bonus = -alpha[:, None] * pi * sm.surprise(pi)
    z = z + pi * sm.centred(pi, r) + bonus
    if t == steps // 2:
      middle = z
    if t > steps // 2:
      pushes += np.linalg.norm(bonus, axis=-1)
      weights += alpha
    if t in times:
      pi = sm.softmax(z)
      lost.append(r.max() - sm.mean(pi, r))
      entropy.append(sm.entropy(pi))
  return Ascent(
    times,
    np.array(lost).T,
    np.array(entropy).T,
    z,
    middle,
    pushes,
    weights,
  )


def schedules(t: int, steps: int) -> Float[np.ndarray, ' A']:
  """λ_t of each schedule, 0.3 at first; the linear one ends half-way."""
  shapes = [0.0, max(0.0, 1 - 2 * (t - 1) / steps)]
  shapes += [np.exp(-t / 100), 1 / t, t**-0.5]
  return 0.3 * np.array(shapes)
