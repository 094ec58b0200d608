# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the Countdown variants: prompts, keys, vocabulary.

A variant defines how problems are drawn and how their solutions are written; see
`covrl.data.generated.countdown` and `covrl.data.generated.countdown_steps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from covrl.config import CountdownConfig
from covrl.data.generated.expressions import OPERATORS
from covrl.data.problems import Problem

Key: TypeAlias = tuple[tuple[int, ...], int]


def prompt_text(numbers: Sequence[int], target: int) -> str:
  """Prompt of a problem.

  >>> prompt_text([3, 7, 12, 5], 115)
  '3 7 12 5 = 115 :'
  """
  return f'{" ".join(map(str, numbers))} = {target} :'


def countdown_problem(
  numbers: Sequence[int],
  target: int,
  *,
  source: str,
  solution: str | None = None,
) -> Problem:
  """Problem with the given numbers and target.

  Args:
    numbers: the numbers, in the order of the prompt.
    target: the number to reach.
    source: name of the variant.
    solution: a correct response, if known.
  """
  return Problem(
    prompt=prompt_text(numbers, target),
    reference={'numbers': list(numbers), 'target': target},
    source=source,
    solution=solution,
  )


def problem_key(problem: Problem) -> Key:
  """Identity of a problem: its sorted numbers and its target.

  >>> problem_key(countdown_problem([3, 7, 5], 15, source='countdown'))
  ((3, 5, 7), 15)
  """
  reference = problem.reference
  return tuple(sorted(reference['numbers'])), reference['target']


def vocabulary(config: CountdownConfig) -> list[str]:
  """All words of prompts and well-formed responses."""
  largest = max(config.max_value, config.max_target)
  numbers = [str(number) for number in range(largest + 1)]
  return [*numbers, *OPERATORS, '(', ')', '=', ':']
