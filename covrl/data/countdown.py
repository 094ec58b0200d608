# SPDX-License-Identifier: Apache-2.0
"""Countdown: combine all the numbers, once each, into the target.

The problems to train and to evaluate on come from reasoning-gym's generator;
its long English question is replaced by a compact prompt, one word for each
number: `3 7 12 5 = 45 :`. An answer reads `( 3 + 7 ) * 12 - 5`.

The solved examples of the warm start are made here instead, a hundred times
faster, because they carry solutions and thousands of them are needed.

Three streams never share a problem by accident: each draws from its own
random numbers, and the two that are trained on redraw whatever is held out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
from collections.abc import Sequence
from typing import Any

from covrl.data._arithmetic import OPERATORS, random_expression
from covrl.data.problems import Problem
from covrl.data.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
)

NAME = 'countdown'

# Redraws move this far along a stream, which is beyond any index in use.
_STRIDE = 1 << 40
_MAX_REDRAWS = 100

Key = tuple[tuple[int, ...], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountdownConfig:
  """Which Countdown problems there are.

  Attributes:
    seed: of the problems to train on; held-out problems do not depend on it,
      so that runs with different seeds are measured on the same ones.
    min_numbers: fewest numbers in a problem.
    max_numbers: most numbers in a problem.
    min_value: smallest number.
    max_value: largest number.
    min_target: smallest target.
    max_target: largest target.
    held_out: how many problems are kept for evaluation.
    size: how many problems an epoch has.
  """

  seed: int = 0
  min_numbers: int = 3
  max_numbers: int = 4
  min_value: int = 1
  max_value: int = 20
  min_target: int = 1
  max_target: int = 100
  held_out: int = 1024
  size: int = 1 << 20

  def __post_init__(self) -> None:
    for low, high in (
      ('min_numbers', 'max_numbers'),
      ('min_value', 'max_value'),
      ('min_target', 'max_target'),
    ):
      if not 1 <= getattr(self, low) <= getattr(self, high):
        raise ValueError(
          f'Countdown needs 1 <= {low} <= {high}, got'
          f' {low}={getattr(self, low)} and {high}={getattr(self, high)}.'
        )
    if self.min_numbers < 2:
      raise ValueError(
        f'Countdown needs min_numbers >= 2, got {self.min_numbers}.'
      )
    if not 0 < self.size < 1 << 31:
      raise ValueError(
        f'Countdown needs 0 < size < 2**31, got size={self.size}.'
      )


def prompt_text(numbers: Sequence[int], target: int) -> str:
  """The compact question.

  >>> prompt_text([3, 7, 12, 5], 115)
  '3 7 12 5 = 115 :'
  """
  return f'{" ".join(map(str, numbers))} = {target} :'


def problem_key(problem: Problem) -> Key:
  """What makes two problems the same: their numbers, sorted, and target.

  >>> problem_key(_problem([3, 7, 5], 15))
  ((3, 5, 7), 15)
  """
  reference = problem.reference
  return tuple(sorted(reference['numbers'])), reference['target']


def vocabulary(config: CountdownConfig) -> list[str]:
  """Every word that prompts and sensible answers are made of."""
  largest = max(config.max_value, config.max_target)
  numbers = [str(number) for number in range(largest + 1)]
  return [*numbers, *OPERATORS, '(', ')', '=', ':']


def countdown_tokenizer(config: CountdownConfig) -> SentencePieceTokenizer:
  """One token for each number, operator and parenthesis of Countdown.

  >>> tokenizer = countdown_tokenizer(CountdownConfig())
  >>> tokenizer.vocab_size, len(tokenizer.encode('( 3 + 7 ) * 12 - 5'))
  (113, 9)
  """
  return train_sentencepiece(vocabulary(config))


class CountdownSource:
  """Problems to train on, from reasoning-gym's generator; none is held out.

  A problem depends on the seed and its index alone. Making one takes some
  milliseconds; the first also makes the held-out set, which takes seconds.
  """

  names = (NAME,)

  def __init__(self, config: CountdownConfig) -> None:
    self._config = config
    self._stream = _stream('train', config.seed)

  def __len__(self) -> int:
    return self._config.size

  def __getitem__(self, index: int) -> Problem:
    for attempt in range(_MAX_REDRAWS):
      place = _check_index(index, len(self)) + attempt * _STRIDE
      problem = _generate(self._config, self._stream, place)
      if problem_key(problem) not in _held_out_keys(self._config):
        return problem
    raise _too_few(self._config)


class SolvedCountdownSource:
  """Problems with a solution each, for the warm start; none is held out.

  Random numbers are joined from left to right by random operators, a division
  only where it leaves no remainder, until the value is a target within bounds:
  the distribution of reasoning-gym's generator in kind.

  >>> SolvedCountdownSource(CountdownConfig(held_out=0))[0].solution
  '17 + ( 1 - 15 ) / 7'
  """

  names = (NAME,)

  def __init__(self, config: CountdownConfig) -> None:
    self._config = config
    self._stream = _stream('solved', config.seed)

  def __len__(self) -> int:
    return self._config.size

  def __getitem__(self, index: int) -> Problem:
    config = self._config
    rng = random.Random(self._stream + _check_index(index, len(self)))
    # About every second draw of the usual bounds is a problem within them.
    for _ in range(100 * _MAX_REDRAWS):
      numbers, target, solution = random_expression(
        rng,
        count=rng.randint(config.min_numbers, config.max_numbers),
        min_value=config.min_value,
        max_value=config.max_value,
      )
      if config.min_target <= target <= config.max_target:
        rng.shuffle(numbers)
        problem = _problem(numbers, target, solution)
        if problem_key(problem) not in _held_out_keys(config):
          return problem
    raise _too_few(self._config)


def held_out(config: CountdownConfig) -> tuple[Problem, ...]:
  """The problems kept for evaluation: all distinct, none ever trained on.

  They do not depend on `config.seed`. Making them takes about 5 ms each, once
  in a process.

  Args:
    config: the bounds of the problems, and how many to keep.

  Returns:
    `config.held_out` problems.

  Raises:
    ValueError: the bounds do not allow as many distinct problems.
  """
  return _held_out(dataclasses.replace(config, seed=0, size=1))


@functools.lru_cache(maxsize=4)
def _held_out(config: CountdownConfig) -> tuple[Problem, ...]:
  stream = _stream('held_out', 0)
  kept: dict[Key, Problem] = {}
  draws = 0
  while len(kept) < config.held_out:
    if draws > 10 * config.held_out + _MAX_REDRAWS:
      raise _too_few(config)
    problem = _generate(config, stream, draws)
    kept.setdefault(problem_key(problem), problem)
    draws += 1
  return tuple(kept.values())


@functools.lru_cache(maxsize=16)
def _held_out_keys(config: CountdownConfig) -> frozenset[Key]:
  return frozenset(map(problem_key, held_out(config)))


def _generate(config: CountdownConfig, stream: int, place: int) -> Problem:
  metadata = _generator(
    min_numbers=config.min_numbers,
    max_numbers=config.max_numbers,
    min_value=config.min_value,
    max_value=config.max_value,
    min_target=config.min_target,
    max_target=config.max_target,
    seed=stream,
  )[place]['metadata']
  return _problem(metadata['numbers'], metadata['target'])


@functools.lru_cache(maxsize=8)
def _generator(**settings: int) -> Any:
  import reasoning_gym

  return reasoning_gym.create_dataset(NAME, size=1, **settings)


def _problem(
  numbers: Sequence[int], target: int, solution: str | None = None
) -> Problem:
  return Problem(
    prompt=prompt_text(numbers, target),
    reference={'numbers': list(numbers), 'target': target},
    source=NAME,
    solution=solution,
  )


def _stream(name: str, seed: int) -> int:
  """The first random seed of a stream, far from every other stream's."""
  digest = hashlib.sha256(f'countdown {name} {seed}'.encode()).digest()
  return int.from_bytes(digest[:16], 'big')


def _check_index(index: int, size: int) -> int:
  if not 0 <= index < size:
    raise IndexError(f'Countdown has problems 0 to {size - 1}, got {index}.')
  return index


def _too_few(config: CountdownConfig) -> ValueError:
  return ValueError(
    'The Countdown bounds allow too few distinct problems beside'
    f' {config.held_out} held-out ones: {config}.'
  )
