# SPDX-License-Identifier: Apache-2.0
"""Countdown with written steps: each step joins two numbers into a new one.

The prompt is that of `covrl.data.countdown`, `3 7 4 2 = 42 :`. A response writes
every step with its result: `7 + 3 = 10 , 10 * 4 = 40 , 40 + 2 = 42`. After n − 1
steps all n numbers are used, and the last result is the target.

Problems are drawn together with a solution, a random chain of steps, which the
training and held-out problems leave out.
"""

from __future__ import annotations

import dataclasses
import functools
import random

from covrl.config import CountdownConfig
from covrl.data.countdown import (
  MAX_REDRAWS,
  Key,
  bounds,
  check_index,
  first_seed,
  problem_key,
  prompt_text,
  too_few,
  vocabulary,
)
from covrl.data.fingerprints import text_fingerprint
from covrl.data.problems import Problem
from covrl.data.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
)

NAME = 'countdown_steps'


def steps_tokenizer(config: CountdownConfig) -> SentencePieceTokenizer:
  """Tokenizer with one token per number, operator, equals sign and comma.

  >>> tokenizer = steps_tokenizer(CountdownConfig())
  >>> len(tokenizer.encode('7 + 3 = 10 , 10 * 4 = 40'))
  11
  """
  return train_sentencepiece([*vocabulary(config), ','])


class CountdownStepsSource:
  """Training problems without solutions and without held-out ones.

  A problem depends on the seed and its index alone.

  >>> CountdownStepsSource(CountdownConfig(held_out=0))[0].prompt
  '10 13 14 = 17 :'
  """

  names = (NAME,)

  def __init__(self, config: CountdownConfig) -> None:
    self._config = dataclasses.replace(config)
    self._seed = first_seed('steps, train', config.seed)

  @property
  def fingerprint(self) -> str:
    """Digest of what the problems depend on."""
    return text_fingerprint(NAME, repr(self._config))

  def __len__(self) -> int:
    return self._config.size

  def __getitem__(self, index: int) -> Problem:
    problem = _training_problem(self._config, self._seed, index)
    return dataclasses.replace(problem, solution=None)


class SolvedCountdownStepsSource:
  """Problems with solutions for the warm start, without held-out ones.

  They are distributed as those of `CountdownStepsSource`.

  >>> SolvedCountdownStepsSource(CountdownConfig(held_out=0))[0].solution
  '18 + 2 = 20 , 20 + 20 = 40 , 40 - 5 = 35'
  """

  names = (NAME,)

  def __init__(self, config: CountdownConfig) -> None:
    self._config = dataclasses.replace(config)
    self._seed = first_seed('steps, solved', config.seed)

  @property
  def fingerprint(self) -> str:
    """Digest of what the problems depend on."""
    return text_fingerprint(f'{NAME}, solved', repr(self._config))

  def __len__(self) -> int:
    return self._config.size

  def __getitem__(self, index: int) -> Problem:
    return _training_problem(self._config, self._seed, index)


def held_out_steps(config: CountdownConfig) -> tuple[Problem, ...]:
  """Generates the evaluation problems, which are distinct and not trained on.

  They do not depend on `config.seed`.

  Args:
    config: bounds and number of the problems.

  Returns:
    `config.held_out` problems.

  Raises:
    ValueError: the bounds allow too few distinct problems.
  """
  return _held_out(**bounds(config))


@functools.lru_cache(maxsize=4)
def _held_out(**limits: int) -> tuple[Problem, ...]:
  config = CountdownConfig(**limits)
  rng = random.Random(first_seed('steps, held out', 0))
  kept: dict[Key, Problem] = {}
  for _ in range(10 * config.held_out + MAX_REDRAWS):
    if len(kept) == config.held_out:
      break
    problem = dataclasses.replace(_draw(rng, config), solution=None)
    kept.setdefault(problem_key(problem), problem)
  if len(kept) < config.held_out:
    raise too_few(config)
  return tuple(kept.values())


@functools.lru_cache(maxsize=16)
def _held_out_keys(**limits: int) -> frozenset[Key]:
  return frozenset(map(problem_key, _held_out(**limits)))


def _training_problem(
  config: CountdownConfig, seed: int, index: int
) -> Problem:
  rng = random.Random(seed + check_index(index, config.size))
  excluded = _held_out_keys(**bounds(config))
  for _ in range(MAX_REDRAWS):
    problem = _draw(rng, config)
    if problem_key(problem) not in excluded:
      return problem
  raise too_few(config)


def _draw(rng: random.Random, config: CountdownConfig) -> Problem:
  """Draws numbers and a chain of steps to a valid target."""
  for _ in range(100 * MAX_REDRAWS):
    count = rng.randint(config.min_numbers, config.max_numbers)
    numbers = [
      rng.randint(config.min_value, config.max_value) for _ in range(count)
    ]
    steps = random_steps(rng, numbers, config.max_target)
    if steps is None:
      continue
    target, solution = steps
    if target >= config.min_target:
      rng.shuffle(numbers)
      return Problem(
        prompt=prompt_text(numbers, target),
        reference={'numbers': numbers, 'target': target},
        source=NAME,
        solution=solution,
      )
  raise too_few(config)


def random_steps(
  rng: random.Random, numbers: list[int], max_result: int
) -> tuple[int, str] | None:
  """Joins numbers from left to right, by an operator drawn in each step.

  A step writes the larger number first. Its operator is drawn from those whose
  result is an integer from 1 to `max_result`.

  >>> random_steps(random.Random(0), [3, 7, 4], 100)
  (16, '7 - 3 = 4 , 4 * 4 = 16')

  Args:
    rng: random number generator.
    numbers: at least two positive integers.
    max_result: largest result of a step.

  Returns:
    The last result and the written steps; `None` if a step has no operator.
  """
  result, *rest = numbers
  steps: list[str] = []
  for number in rest:
    large, small = max(result, number), min(result, number)
    results = {
      '+': large + small,
      '-': large - small,
      '*': large * small,
      '/': large // small if large % small == 0 else 0,
    }
    operators = [o for o, r in results.items() if 1 <= r <= max_result]
    if not operators:
      return None
    operator = rng.choice(operators)
    result = results[operator]
    steps.append(f'{large} {operator} {small} = {result}')
  return result, ' , '.join(steps)
