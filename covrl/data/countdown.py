# SPDX-License-Identifier: Apache-2.0
"""Countdown problems: combine all numbers, once each, to reach a target.

Training and evaluation problems come from reasoning-gym's generator; its long
English question is replaced by a compact prompt with one word per number:
`3 7 12 5 = 45 :`. A response reads `( 3 + 7 ) * 12 - 5`.

Solved examples for the warm start are generated here, with their solutions, a
hundred times faster.

Training, solved and held-out problems use separate random seeds; training and
solved problems are redrawn if they are among the held-out ones.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import random
from collections.abc import Sequence
from typing import Any

from covrl.config import CountdownConfig
from covrl.data._arithmetic import OPERATORS, random_expression
from covrl.data.fingerprints import text_fingerprint
from covrl.data.problems import Problem
from covrl.data.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
)

NAME = 'countdown'

# Offset of the generator's index per redraw, beyond any index in use.
_REDRAW_STRIDE = 1 << 40
MAX_REDRAWS = 100

Key = tuple[tuple[int, ...], int]


def prompt_text(numbers: Sequence[int], target: int) -> str:
  """Prompt of a problem.

  >>> prompt_text([3, 7, 12, 5], 115)
  '3 7 12 5 = 115 :'
  """
  return f'{" ".join(map(str, numbers))} = {target} :'


def problem_key(problem: Problem) -> Key:
  """Identity of a problem: its sorted numbers and its target.

  >>> problem_key(_problem([3, 7, 5], 15))
  ((3, 5, 7), 15)
  """
  reference = problem.reference
  return tuple(sorted(reference['numbers'])), reference['target']


def vocabulary(config: CountdownConfig) -> list[str]:
  """All words of prompts and well-formed responses."""
  largest = max(config.max_value, config.max_target)
  numbers = [str(number) for number in range(largest + 1)]
  return [*numbers, *OPERATORS, '(', ')', '=', ':']


def countdown_tokenizer(config: CountdownConfig) -> SentencePieceTokenizer:
  """Tokenizer with one token per number, operator and parenthesis.

  >>> tokenizer = countdown_tokenizer(CountdownConfig())
  >>> tokenizer.vocab_size, len(tokenizer.encode('( 3 + 7 ) * 12 - 5'))
  (113, 9)
  """
  return train_sentencepiece(vocabulary(config))


class CountdownSource:
  """Training problems from reasoning-gym's generator, without held-out ones.

  A problem depends on the seed and its index alone. Generating one takes some
  milliseconds; the first also generates the held-out set, which takes seconds.
  """

  names = (NAME,)

  def __init__(self, config: CountdownConfig) -> None:
    self._config = dataclasses.replace(config)
    self._seed = first_seed('train', config.seed)

  @property
  def fingerprint(self) -> str:
    """Digest of what the problems depend on, reasoning-gym's version included."""
    version = importlib.metadata.version('reasoning-gym')
    return text_fingerprint(f'{NAME} {version}', repr(self._config))

  def __len__(self) -> int:
    return self._config.size

  def __getitem__(self, index: int) -> Problem:
    for attempt in range(MAX_REDRAWS):
      position = check_index(index, len(self)) + attempt * _REDRAW_STRIDE
      problem = _generate(self._config, self._seed, position)
      if problem_key(problem) not in _held_out_keys(**bounds(self._config)):
        return problem
    raise too_few(self._config)


class SolvedCountdownSource:
  """Problems with solutions for the warm start, without held-out ones.

  Random numbers are joined from left to right by random operators, divisions
  only without remainder, until the value is a valid target. The distribution
  resembles that of reasoning-gym's generator.

  >>> SolvedCountdownSource(CountdownConfig(held_out=0))[0].solution
  '17 + ( 1 - 15 ) / 7'
  """

  names = (NAME,)

  def __init__(self, config: CountdownConfig) -> None:
    self._config = dataclasses.replace(config)
    self._seed = first_seed('solved', config.seed)

  @property
  def fingerprint(self) -> str:
    """Digest of what the problems depend on."""
    return text_fingerprint(f'{NAME}, solved', repr(self._config))

  def __len__(self) -> int:
    return self._config.size

  def __getitem__(self, index: int) -> Problem:
    config = self._config
    rng = random.Random(self._seed + check_index(index, len(self)))
    # With the default bounds about every second draw is a valid problem.
    for _ in range(100 * MAX_REDRAWS):
      numbers, target, solution = random_expression(
        rng,
        count=rng.randint(config.min_numbers, config.max_numbers),
        min_value=config.min_value,
        max_value=config.max_value,
      )
      if config.min_target <= target <= config.max_target:
        rng.shuffle(numbers)
        problem = _problem(numbers, target, solution)
        if problem_key(problem) not in _held_out_keys(**bounds(config)):
          return problem
    raise too_few(self._config)


def held_out(config: CountdownConfig) -> tuple[Problem, ...]:
  """Generates the evaluation problems, which are distinct and not trained on.

  They do not depend on `config.seed`. Generating them takes about 5 ms each,
  once per process.

  Args:
    config: bounds and number of the problems.

  Returns:
    `config.held_out` problems.

  Raises:
    ValueError: the bounds allow too few distinct problems.
  """
  return _held_out(**bounds(config))


@functools.lru_cache(maxsize=4)
def _held_out(**bounds: int) -> tuple[Problem, ...]:
  config = CountdownConfig(**bounds)
  seed = first_seed('held_out', 0)
  kept: dict[Key, Problem] = {}
  draws = 0
  while len(kept) < config.held_out:
    if draws > 10 * config.held_out + MAX_REDRAWS:
      raise too_few(config)
    problem = _generate(config, seed, draws)
    kept.setdefault(problem_key(problem), problem)
    draws += 1
  return tuple(kept.values())


@functools.lru_cache(maxsize=16)
def _held_out_keys(**bounds: int) -> frozenset[Key]:
  return frozenset(map(problem_key, _held_out(**bounds)))


def bounds(config: CountdownConfig) -> dict[str, int]:
  """Returns the fields that held-out problems depend on, the others fixed."""
  return dataclasses.asdict(dataclasses.replace(config, seed=0, size=1))


def _generate(config: CountdownConfig, seed: int, position: int) -> Problem:
  metadata = _generator(
    min_numbers=config.min_numbers,
    max_numbers=config.max_numbers,
    min_value=config.min_value,
    max_value=config.max_value,
    min_target=config.min_target,
    max_target=config.max_target,
    seed=seed,
  )[position]['metadata']
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


def first_seed(name: str, seed: int) -> int:
  """First of the consecutive seeds of a problem set, far from other sets."""
  digest = hashlib.sha256(f'countdown {name} {seed}'.encode()).digest()
  return int.from_bytes(digest[:16], 'big')


def check_index(index: int, size: int) -> int:
  """Returns `index` if it is one of an epoch's problems, else raises."""
  if not 0 <= index < size:
    raise IndexError(f'Countdown has problems 0 to {size - 1}, got {index}.')
  return index


def too_few(config: CountdownConfig) -> ValueError:
  """Error of bounds that allow too few distinct problems."""
  return ValueError(
    'The Countdown bounds allow too few distinct problems beside'
    f' {config.held_out} held-out ones: {config}.'
  )
