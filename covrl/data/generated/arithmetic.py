# SPDX-License-Identifier: Apache-2.0
"""Arithmetic problems: sums and differences of integers, such as `37 + 12 - 5`.

The prompt is the expression, to which a prompt format adds the rest. The answer
is never negative. Problems whose terms differ in their order only are the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from covrl.config import ArithmeticConfig
from covrl.data.generated.base import (
  MAX_REDRAWS,
  GeneratedSource,
  HeldOut,
  first_seed,
  too_few_problems,
)
from covrl.data.problems import Problem, question_key

SOURCE_NAME = 'arithmetic'


def arithmetic_problem(terms: list[int], *, is_solved: bool = False) -> Problem:
  """Makes the problem of adding integers, of which the first is positive.

  >>> problem = arithmetic_problem([37, 12, -5], is_solved=True)
  >>> problem.prompt, problem.reference, problem.solution
  ('37 + 12 - 5', 44, ' 44')

  Args:
    terms: the terms with their signs.
    is_solved: whether the problem has its solution, which begins with a space.
  """
  rest = (f'{"+" if term >= 0 else "-"} {abs(term)}' for term in terms[1:])
  prompt = ' '.join([str(terms[0]), *rest])
  return Problem(
    prompt=prompt,
    reference=sum(terms),
    source=SOURCE_NAME,
    solution=f' {sum(terms)}' if is_solved else None,
    key=question_key(prompt),
  )


def problem_terms(problem: Problem) -> tuple[int, ...]:
  """Identity of a problem: its terms with their signs, sorted.

  >>> problem_terms(arithmetic_problem([37, 12, -5]))
  (-5, 12, 37)
  """
  text = problem.prompt.replace('+ ', '').replace('- ', '-')
  return tuple(sorted(map(int, text.split())))


def random_terms(rng: random.Random, config: ArithmeticConfig) -> list[int]:
  """Draws terms whose sum is not negative.

  The number of terms, their sizes and signs are uniform, before sums below 0 are
  redrawn.

  Raises:
    ValueError: the bounds allow too few problems.
  """
  for _ in range(100 * MAX_REDRAWS):
    count = rng.randint(config.min_terms, config.max_terms)
    values = [rng.randint(1, config.max_value) for _ in range(count)]
    terms = [values[0], *(rng.choice((-1, 1)) * each for each in values[1:])]
    if sum(terms) >= 0:
      return terms
  raise too_few_problems(config)


def _generate_held_out(config: ArithmeticConfig) -> Iterator[Problem]:
  rng = random.Random(first_seed('arithmetic, held out', 0))
  while True:
    yield arithmetic_problem(random_terms(rng, config))


held_out_arithmetic: HeldOut[ArithmeticConfig] = HeldOut(
  generate=_generate_held_out, key=problem_terms
)
"""The evaluation problems."""


class ArithmeticSource(GeneratedSource[ArithmeticConfig]):
  """Training problems without solutions and without held-out ones.

  >>> ArithmeticSource(ArithmeticConfig(held_out=0))[0].prompt
  '13 + 43'
  """

  names = (SOURCE_NAME,)
  seed_name = 'arithmetic, training'
  excluded = held_out_arithmetic
  is_solved = False

  @property
  def generator(self) -> str:
    """Name of the generator."""
    return self.seed_name

  def candidates(self, index: int) -> Iterator[Problem]:
    """Yields random sums and differences."""
    rng = random.Random(self._seed + index)
    for _ in range(MAX_REDRAWS):
      terms = random_terms(rng, self._config)
      yield arithmetic_problem(terms, is_solved=self.is_solved)


class SolvedArithmeticSource(ArithmeticSource):
  """Problems with solutions for a warm start, without held-out ones."""

  seed_name = 'arithmetic, solved'
  is_solved = True
