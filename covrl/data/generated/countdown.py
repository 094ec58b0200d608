# SPDX-License-Identifier: Apache-2.0
"""Countdown problems: combine all numbers, once each, to reach a target.

Training and evaluation problems come from reasoning-gym's generator; its long
English question is replaced by a compact prompt with one word per number:
`3 7 12 5 = 45 :`. A response reads `( 3 + 7 ) * 12 - 5`.

Solved examples for the warm start are generated here, with their solutions, a
hundred times faster.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import random
from collections.abc import Iterator
from typing import Any

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
from covrl.data.generated.expressions import random_expression
from covrl.data.problems import Problem
from covrl.data.tokenizers.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
)

SOURCE_NAME = 'countdown'

# Offset of the generator's index per redraw, beyond any index in use.
_REDRAW_STRIDE = 1 << 40


def countdown_tokenizer(config: CountdownConfig) -> SentencePieceTokenizer:
  """Tokenizer with one token per number, operator and parenthesis.

  >>> tokenizer = countdown_tokenizer(CountdownConfig())
  >>> tokenizer.vocab_size, len(tokenizer.encode('( 3 + 7 ) * 12 - 5'))
  (113, 9)
  """
  return train_sentencepiece(vocabulary(config))


def _generate_held_out(config: CountdownConfig) -> Iterator[Problem]:
  seed, failures = first_seed('countdown held_out', 0), 0
  for position in itertools.count():
    problem = _generate(config, seed, position)
    failures = failures + 1 if problem is None else 0
    if problem is not None:
      yield problem
    elif failures == MAX_REDRAWS:
      raise too_few_problems(config)


held_out_countdown = HeldOut[CountdownConfig](
  generate=_generate_held_out, key=problem_key
)
"""Generates the evaluation problems, in about 5 ms each; see `HeldOut`."""


class CountdownSource(GeneratedSource[CountdownConfig]):
  """Training problems from reasoning-gym's generator, without held-out ones.

  Generating a problem takes some milliseconds; the first also generates the
  held-out set, which takes seconds.
  """

  names = (SOURCE_NAME,)
  seed_name = 'countdown train'
  excluded = held_out_countdown

  @property
  def generator(self) -> str:
    """reasoning-gym's version, on which the problems depend."""
    return f'{SOURCE_NAME} {importlib.metadata.version("reasoning-gym")}'

  def candidates(self, index: int) -> Iterator[Problem]:
    """Yields problems of reasoning-gym, at distant indices of its generator."""
    for attempt in range(MAX_REDRAWS):
      position = index + attempt * _REDRAW_STRIDE
      problem = _generate(self._config, self._seed, position)
      if problem is not None:
        yield problem


class SolvedCountdownSource(GeneratedSource[CountdownConfig]):
  """Problems with solutions for the warm start, without held-out ones.

  Random numbers are joined from left to right by random operators, divisions
  only without remainder, until the value is a valid target. The distribution
  resembles that of reasoning-gym's generator.

  >>> SolvedCountdownSource(CountdownConfig(held_out=0))[0].solution
  '17 + ( 1 - 15 ) / 7'
  """

  names = (SOURCE_NAME,)
  seed_name = 'countdown solved'
  excluded = held_out_countdown

  @property
  def generator(self) -> str:
    """Name of the generator of these problems."""
    return f'{SOURCE_NAME}, solved'

  def candidates(self, index: int) -> Iterator[Problem]:
    """Yields random expressions with a valid target."""
    config = self._config
    rng = random.Random(self._seed + index)
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
        yield countdown_problem(
          numbers, target, source=SOURCE_NAME, solution=solution
        )


def _generate(
  config: CountdownConfig, seed: int, position: int
) -> Problem | None:
  """Returns a problem; `None` where the generator finds none within the bounds."""
  generator = _generator(
    min_numbers=config.min_numbers,
    max_numbers=config.max_numbers,
    min_value=config.min_value,
    max_value=config.max_value,
    min_target=config.min_target,
    max_target=config.max_target,
    seed=seed,
  )
  try:
    metadata = generator[position]['metadata']
  except ValueError:
    # None of the hundred expressions that the generator draws has a valid target.
    return None
  return countdown_problem(
    metadata['numbers'], metadata['target'], source=SOURCE_NAME
  )


@functools.lru_cache(maxsize=8)
def _generator(**settings: int) -> Any:
  """reasoning-gym's generator with these settings."""
  import reasoning_gym

  return reasoning_gym.create_dataset(SOURCE_NAME, size=1, **settings)
