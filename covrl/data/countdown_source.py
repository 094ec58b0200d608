# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the Countdown variants: prompts, held-out set, sources.

A variant defines how problems are drawn and how solutions are written; see
`covrl.data.countdown` and `covrl.data.countdown_steps`. Training, solved and
held-out problems use separate random seeds; training and solved problems are
redrawn if they are among the held-out ones.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypeAlias

from covrl.config import CountdownConfig
from covrl.data._arithmetic import OPERATORS
from covrl.data.fingerprints import text_fingerprint
from covrl.data.problems import Problem

MAX_REDRAWS = 100

Key: TypeAlias = tuple[tuple[int, ...], int]
Draws: TypeAlias = Callable[[CountdownConfig], Iterator[Problem]]
"""Draws a set's problems one after the other, without end."""


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


class GeneratedSource(abc.ABC):
  """Generated problems, without held-out ones.

  A problem depends on the seed and its index alone.

  Args:
    config: bounds, seed and number of the problems.

  Attributes:
    names: name of the variant.
    seed_name: name of the set, from which its seed is derived.
    held_out_draws: draws the held-out problems.
  """

  names: ClassVar[tuple[str, ...]]
  seed_name: ClassVar[str]
  held_out_draws: ClassVar[Draws]

  def __init__(self, config: CountdownConfig) -> None:
    self._config = dataclasses.replace(config)
    self._seed = first_seed(self.seed_name, config.seed)

  @property
  @abc.abstractmethod
  def generator(self) -> str:
    """Name of the set's generator, with its version if it can change."""

  @abc.abstractmethod
  def draws(self, index: int) -> Iterator[Problem]:
    """Draws candidates for a problem, of which the first usable one is taken."""

  @property
  def fingerprint(self) -> str:
    """Digest of what the problems depend on."""
    return text_fingerprint(self.generator, repr(self._config))

  def __len__(self) -> int:
    return self._config.size

  def __getitem__(self, index: int) -> Problem:
    if not 0 <= index < len(self):
      raise IndexError(
        f'Countdown has problems 0 to {len(self) - 1}, got {index}.'
      )
    excluded = _held_out_keys(
      type(self).held_out_draws, **_bounds(self._config)
    )
    for problem in self.draws(index):
      if problem_key(problem) not in excluded:
        return problem
    raise too_few_problems(self._config)


def held_out_problems(
  draws: Draws, config: CountdownConfig
) -> tuple[Problem, ...]:
  """Takes distinct problems for evaluation, once per process and bounds.

  They do not depend on `config.seed` and `config.size`.

  Args:
    draws: draws the problems.
    config: bounds and number of the problems.

  Returns:
    `config.held_out` problems.

  Raises:
    ValueError: the bounds allow too few distinct problems.
  """
  return _held_out(draws, **_bounds(config))


@functools.lru_cache(maxsize=8)
def _held_out(draws: Draws, **bounds: int) -> tuple[Problem, ...]:
  config = CountdownConfig(**bounds)
  kept: dict[Key, Problem] = {}
  problems = draws(config)
  remaining = 10 * config.held_out + MAX_REDRAWS
  while len(kept) < config.held_out:
    if not remaining:
      raise too_few_problems(config)
    remaining -= 1
    problem = next(problems)
    kept.setdefault(problem_key(problem), problem)
  return tuple(kept.values())


@functools.lru_cache(maxsize=16)
def _held_out_keys(draws: Draws, **bounds: int) -> frozenset[Key]:
  return frozenset(map(problem_key, _held_out(draws, **bounds)))


def _bounds(config: CountdownConfig) -> dict[str, int]:
  """Returns the fields that held-out problems depend on, the others fixed."""
  return dataclasses.asdict(dataclasses.replace(config, seed=0, size=1))


def first_seed(name: str, seed: int) -> int:
  """First of the consecutive seeds of a problem set, far from other sets."""
  digest = hashlib.sha256(f'countdown {name} {seed}'.encode()).digest()
  return int.from_bytes(digest[:16], 'big')


def too_few_problems(config: CountdownConfig) -> ValueError:
  """Error of bounds that allow too few distinct problems."""
  return ValueError(
    'The Countdown bounds allow too few distinct problems beside'
    f' {config.held_out} held-out ones: {config}.'
  )
