# SPDX-License-Identifier: Apache-2.0
"""The study's tasks: prompts, warm start, reward, and exact measurements.

All have prompts of four tokens and responses of up to six of one vocabulary, so
that they share compiled programs. Few responses to a prompt are right, and all of
them are known: their probabilities are computed and not estimated from samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

from .grid import Grid
from .tokens import (
  ASK,
  END,
  FIRST_SYMBOL,
  FORWARD,
  GO,
  NONE,
  QUIT,
  REVERSE,
  Prompts,
  Rows,
  equal,
  response,
)

Measured = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyTask:
  """A task of the study.

  Attributes:
    name: name on the command line.
    title: name in tables.
    metric: the primary metric.
    higher_is_better: whether more of it is better.
    draw: generator, count -> prompts to train on.
    demonstrate: generator, count -> prompts and responses to imitate.
    score: prompts, responses, phase -> rewards.
    phases: iterations of each phase; rewards change between them.
    warm_start: supervised steps.
    probes: prompts and responses whose probabilities are computed at evaluations.
    measure: probabilities of the probes' responses, phase -> metrics.
    evaluate_every: iterations between evaluations.
    tuned_by: metric of the last evaluation by which variants choose their setting;
      empty for the primary one.
  """

  name: str
  title: str
  metric: str
  higher_is_better: bool = True
  draw: Callable[[np.random.Generator, int], Prompts]
  demonstrate: Callable[[np.random.Generator, int], tuple[Prompts, Rows]]
  score: Callable[[Prompts, Rows, int], Float[np.ndarray, ' n']]
  phases: tuple[int, ...]
  warm_start: int
  probes: tuple[Prompts, Rows]
  measure: Callable[[Float[np.ndarray, ' m'], int], Measured]
  evaluate_every: int = 5
  tuned_by: str = ''


# D1: a changed rule.

_DIGITS = 8


def _digits_answer(prompts: Prompts, mode: Int[np.ndarray, ' n']) -> Rows:
  """Answers that copy three digits, forwards or backwards."""
  digits = prompts[:, :3]
  copied = np.where((mode == FORWARD)[:, None], digits, digits[:, ::-1])
  end = np.full((len(prompts), 1), END)
  return np.concatenate([mode[:, None], copied, end, 0 * end], axis=1)


def _digit_prompts(rng: np.random.Generator, count: int) -> Prompts:
  """Prompts of three random digits."""
  digits = FIRST_SYMBOL + rng.integers(_DIGITS, size=(count, 3))
  return np.concatenate([digits, np.full((count, 1), ASK)], axis=1)


def changed_rule(before: int = 20, after: int = 40) -> StudyTask:
  """D1: copy digits forwards; then only backwards is rewarded.

  Args:
    before: iterations before the rule changes.
    after: iterations after it.
  """

  def demonstrate(rng: np.random.Generator, count: int) -> tuple[Prompts, Rows]:
    prompts = _digit_prompts(rng, count)
    mode = np.where(rng.random(count) < 0.1, REVERSE, FORWARD)
    return prompts, _digits_answer(prompts, mode)

  def score(
    prompts: Prompts, responses: Rows, phase: int
  ) -> Float[np.ndarray, ' n']:
    mode = np.full(len(prompts), (FORWARD, REVERSE)[phase])
    return equal(responses, _digits_answer(prompts, mode))

  held_out = _digit_prompts(np.random.default_rng(7), 64)
  probed_prompts = np.concatenate([held_out, held_out])
  modes = np.repeat([FORWARD, REVERSE], len(held_out))

  def measure(success_rates: Float[np.ndarray, ' m'], phase: int) -> Measured:
    old_rule_rate, new_rule_rate = success_rates.reshape(2, -1).mean(axis=1)
    return {
      'accuracy': float((old_rule_rate, new_rule_rate)[phase]),
      'old_rule': float(old_rule_rate),
      'new_rule': float(new_rule_rate),
    }

  return StudyTask(
    name='changed_rule',
    title='D1, a changed rule',
    metric='updates_to_half',
    higher_is_better=False,
    draw=_digit_prompts,
    demonstrate=demonstrate,
    score=score,
    phases=(before, after),
    warm_start=400,
    probes=(probed_prompts, _digits_answer(probed_prompts, modes)),
    measure=measure,
    evaluate_every=2,
  )


# D3: a combination lock with a distractor.

DEPTHS = (1, 2, 3, 4)
KEY_SYMBOLS = 2  # different symbols of keys
QUIT_SHARE = 0.2  # of the demonstrations


def _lock_prompts(depths: Int[np.ndarray, ' n']) -> Prompts:
  """Prompts that name the depth of a lock."""
  fixed = np.full(len(depths), NONE), np.full(len(depths), ASK)
  return np.stack([FIRST_SYMBOL + depths, fixed[0], *fixed], axis=1)


def _lock_key(depth: int) -> list[int]:
  """Key of the lock of a depth, as tokens."""
  rng = np.random.default_rng(depth)
  return [int(FIRST_SYMBOL + k) for k in rng.integers(KEY_SYMBOLS, size=depth)]


def _lock_answers(prompts: Prompts) -> Rows:
  """Responses that enter the right key of each prompt."""
  return np.array(
    [response(GO, *_lock_key(int(row[0]) - FIRST_SYMBOL)) for row in prompts]
  )


def lock(iterations: int = 80) -> StudyTask:
  """D3: quit for a reward of 0.5, or enter a key of depth d for a reward of 1."""

  def draw(rng: np.random.Generator, count: int) -> Prompts:
    return _lock_prompts(rng.choice(DEPTHS, size=count))

  def demonstrate(rng: np.random.Generator, count: int) -> tuple[Prompts, Rows]:
    prompts = draw(rng, count)
    rows = []
    for prompt in prompts:
      depth = int(prompt[0]) - FIRST_SYMBOL
      guess = FIRST_SYMBOL + rng.integers(KEY_SYMBOLS, size=depth)
      quits = rng.random() < QUIT_SHARE
      rows.append(response(QUIT) if quits else response(GO, *map(int, guess)))
    return prompts, np.array(rows)

  quitting = np.array(response(QUIT))

  def score(
    prompts: Prompts, responses: Rows, phase: int
  ) -> Float[np.ndarray, ' n']:
    del phase
    is_right = equal(responses, _lock_answers(prompts))
    return is_right + 0.5 * equal(responses, quitting[None])

  all_prompts = _lock_prompts(np.array(DEPTHS))

  def measure(success_rates: Float[np.ndarray, ' m'], phase: int) -> Measured:
    del phase
    # Prompts whose key is entered more often than not: the policy has left the
    # distractor.
    has_left = success_rates > 0.5
    return {
      'left_distractor': float(has_left.mean()),
      'accuracy': float(success_rates.mean()),
    } | {
      f'left_distractor/{depth}': float(solved)
      for depth, solved in zip(DEPTHS, has_left, strict=True)
    }

  return StudyTask(
    name='lock',
    title='D3, a combination lock',
    metric='left_distractor',
    draw=draw,
    demonstrate=demonstrate,
    score=score,
    phases=(iterations,),
    warm_start=300,
    probes=(all_prompts, _lock_answers(all_prompts)),
    measure=measure,
  )


# D2, D4 and D5: paths on a grid.


def many_solutions(
  iterations: int = 400, evaluate_every: int = 20
) -> StudyTask:
  """D2: paths on a grid, trained until long after the reward has saturated.

  Args:
    iterations: iterations.
    evaluate_every: iterations between evaluations.
  """
  grid = Grid()

  def draw(rng: np.random.Generator, count: int) -> Prompts:
    return grid.train[rng.integers(len(grid.train), size=count)]

  def demonstrate(rng: np.random.Generator, count: int) -> tuple[Prompts, Rows]:
    prompts = draw(rng, count)
    return prompts, grid.random_solutions(rng, prompts)

  def measure(
    path_probabilities: Float[np.ndarray, ' m'], phase: int
  ) -> Measured:
    del phase
    measures = grid.coverage(grid.held_out, path_probabilities)
    return {name: float(values.mean()) for name, values in measures.items()}

  return StudyTask(
    name='many_solutions',
    title='D2, many solutions',
    metric='distinct',
    tuned_by='accuracy',
    draw=draw,
    demonstrate=demonstrate,
    score=grid.score,
    phases=(iterations,),
    warm_start=250,
    probes=grid.probes(grid.held_out),
    measure=measure,
    evaluate_every=evaluate_every,
  )


def rates_and_passes(iterations: int = 60) -> StudyTask:
  """D5: the task of D2, for learning rates and passes over a rollout.

  It ends at about saturation; the primary metric is pass@1.
  """
  return dataclasses.replace(
    many_solutions(iterations, evaluate_every=5),
    name='rates_and_passes',
    title='D5, larger learning rates and more passes',
    metric='accuracy',
    tuned_by='',
  )


def out_of_distribution(iterations: int = 40) -> StudyTask:
  """D4: demonstrations go down and right; prompts have goals in all directions."""
  grid = Grid()
  # Usual goals are reached by the directions of the warm start.
  usual = grid.is_usual(grid.train)
  weights = np.where(usual, 1.0, 0.02)
  weights /= weights.sum()

  def draw(rng: np.random.Generator, count: int) -> Prompts:
    return grid.train[rng.integers(len(grid.train), size=count)]

  def demonstrate(rng: np.random.Generator, count: int) -> tuple[Prompts, Rows]:
    prompts = grid.train[rng.choice(len(grid.train), size=count, p=weights)]
    return prompts, grid.random_solutions(rng, prompts)

  unusual = ~grid.is_usual(grid.held_out)

  def measure(
    path_probabilities: Float[np.ndarray, ' m'], phase: int
  ) -> Measured:
    del phase
    measures = grid.coverage(grid.held_out, path_probabilities)
    values = {name: float(each.mean()) for name, each in measures.items()}
    values['unusual'] = float(measures['accuracy'][unusual].mean())
    values['unusual_pass64'] = float(measures['pass64'][unusual].mean())
    values['usual'] = float(measures['accuracy'][~unusual].mean())
    return values

  return StudyTask(
    name='out_of_distribution',
    title='D4, out of distribution',
    metric='unusual',
    draw=draw,
    demonstrate=demonstrate,
    score=grid.score,
    phases=(iterations,),
    warm_start=500,
    probes=grid.probes(grid.held_out),
    measure=measure,
    evaluate_every=10,
  )


TASKS: dict[str, Callable[[], StudyTask]] = {
  'changed_rule': changed_rule,
  'lock': lock,
  'many_solutions': many_solutions,
  'out_of_distribution': out_of_distribution,
}
"""Tasks on which all variants are tuned and compared."""
ALL_TASKS: Mapping[str, Callable[[], StudyTask]] = TASKS | {
  'rates_and_passes': rates_and_passes
}
