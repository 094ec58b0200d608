# SPDX-License-Identifier: Apache-2.0
"""Countdown with written steps: each step joins two numbers into a new one.

The prompt is that of `covrl.data.generated.countdown`, `3 7 4 2 = 42 :`. A response writes
every step with its result: `7 + 3 = 10 , 10 * 4 = 40 , 40 + 2 = 42`. After n − 1
steps all n numbers are used, and the last result is the target.

Problems are drawn together with a solution, a random chain of steps, which the
training and held-out problems leave out.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from covrl.config import CountdownConfig
from covrl.data.generated.base import (
  MAX_REDRAWS,
  GeneratedSource,
  HeldOut,
  first_seed,
  too_few_problems,
)
from covrl.data.generated.countdown_problem import (
  countdown_problem,
  problem_key,
  vocabulary,
)
from covrl.data.problems import Problem
from covrl.data.tokenizers.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
)

SOURCE_NAME = 'countdown_steps'


def steps_tokenizer(config: CountdownConfig) -> SentencePieceTokenizer:
  """Tokenizer with one token per number, operator, equals sign and comma.

  >>> tokenizer = steps_tokenizer(CountdownConfig())
  >>> len(tokenizer.encode('7 + 3 = 10 , 10 * 4 = 40'))
  11
  """
  return train_sentencepiece([*vocabulary(config), ','])


def _generate_held_out(config: CountdownConfig) -> Iterator[Problem]:
  rng = random.Random(first_seed('countdown steps, held out', 0))
  while True:
    yield dataclasses.replace(_draw(rng, config), solution=None)


held_out_steps = HeldOut[CountdownConfig](
  generate=_generate_held_out, key=problem_key
)
"""Generates the evaluation problems; see `HeldOut`."""


class SolvedCountdownStepsSource(GeneratedSource[CountdownConfig]):
  """Problems with solutions for the warm start, without held-out ones.

  They are distributed as those of `CountdownStepsSource`.

  >>> SolvedCountdownStepsSource(CountdownConfig(held_out=0))[0].solution
  '18 + 2 = 20 , 20 + 20 = 40 , 40 - 5 = 35'
  """

  names = (SOURCE_NAME,)
  seed_name = 'countdown steps, solved'
  excluded = held_out_steps

  @property
  def generator(self) -> str:
    """Name of the generator of these problems."""
    return f'{SOURCE_NAME}, solved'

  def candidates(self, index: int) -> Iterator[Problem]:
    """Yields problems with a random chain of steps."""
    rng = random.Random(self._seed + index)
    for _ in range(MAX_REDRAWS):
      yield _draw(rng, self._config)


class CountdownStepsSource(SolvedCountdownStepsSource):
  """Training problems without solutions and without held-out ones.

  >>> CountdownStepsSource(CountdownConfig(held_out=0))[0].prompt
  '10 13 14 = 17 :'
  """

  seed_name = 'countdown steps, train'

  @property
  def generator(self) -> str:
    """Name of the generator of these problems."""
    return SOURCE_NAME

  def candidates(self, index: int) -> Iterator[Problem]:
    """Yields problems as for the warm start, without their solutions."""
    for problem in super().candidates(index):
      yield dataclasses.replace(problem, solution=None)


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
      return countdown_problem(
        numbers, target, source=SOURCE_NAME, solution=solution
      )
  raise too_few_problems(config)


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
