# SPDX-License-Identifier: Apache-2.0
"""Sources of generated problems, and the problems held out for evaluation.

Each set of problems has a random seed of its own. Training problems are redrawn
if they are among the held-out ones.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

from covrl.config import ArithmeticConfig, CountdownConfig, MazeConfig
from covrl.data.fingerprints import text_fingerprint
from covrl.data.problems import Problem

# Largest number of candidates that are drawn for a problem.
MAX_REDRAWS = 100

GeneratorConfig = TypeVar(
  'GeneratorConfig', ArithmeticConfig, CountdownConfig, MazeConfig
)


@dataclasses.dataclass(frozen=True)
class HeldOut(Generic[GeneratorConfig]):
  """The problems of a task that are held out for evaluation.

  They do not depend on `config.seed` and `config.size`, and are generated once
  per process and bounds.

  Attributes:
    generate: yields random problems without end; they may repeat.
    key: returns a problem's identity; problems with equal keys are the same.
  """

  generate: Callable[[GeneratorConfig], Iterator[Problem]]
  key: Callable[[Problem], Hashable]

  def __call__(self, config: GeneratorConfig) -> tuple[Problem, ...]:
    """Generates distinct problems.

    Args:
      config: bounds and number of the problems.

    Returns:
      `config.held_out` problems.

    Raises:
      ValueError: the bounds allow too few distinct problems.
    """
    return _problems(self, type(config), **_bounds(config))

  def keys(self, config: GeneratorConfig) -> frozenset[Hashable]:
    """Returns the keys of the problems."""
    return _keys(self, type(config), **_bounds(config))


@functools.lru_cache(maxsize=8)
def _problems(
  held_out: HeldOut[Any], config_type: type[Any], /, **bounds: int
) -> tuple[Problem, ...]:
  """Generates the problems of `HeldOut`; cached per task and bounds."""
  config = config_type(**bounds)
  distinct_problems: dict[Hashable, Problem] = {}
  problems = held_out.generate(config)
  attempts_left = 10 * config.held_out + MAX_REDRAWS
  while len(distinct_problems) < config.held_out:
    if not attempts_left:
      raise too_few_problems(config)
    attempts_left -= 1
    problem = next(problems)
    distinct_problems.setdefault(held_out.key(problem), problem)
  return tuple(distinct_problems.values())


@functools.lru_cache(maxsize=16)
def _keys(
  held_out: HeldOut[Any], config_type: type[Any], /, **bounds: int
) -> frozenset[Hashable]:
  """Keys of the problems of `HeldOut`; cached per task and bounds."""
  return frozenset(
    map(held_out.key, _problems(held_out, config_type, **bounds))
  )


def _bounds(config: GeneratorConfig) -> dict[str, int]:
  """Returns the fields that held-out problems depend on, the others fixed."""
  return dataclasses.asdict(dataclasses.replace(config, seed=0, size=1))


class GeneratedSource(abc.ABC, Generic[GeneratorConfig]):
  """Generated problems, without held-out ones.

  A problem depends on the seed and its index alone.

  Args:
    config: bounds, seed and number of the problems.

  Attributes:
    names: the name of the task alone; see `ProblemSource.names`.
    seed_name: name of the set, from which its seed is derived.
    excluded: the held-out problems, which the source leaves out.
  """

  names: ClassVar[tuple[str, ...]]
  seed_name: ClassVar[str]
  excluded: ClassVar[HeldOut[Any]]

  def __init__(self, config: GeneratorConfig) -> None:
    self._config = dataclasses.replace(config)
    self._seed = first_seed(self.seed_name, config.seed)

  @property
  @abc.abstractmethod
  def generator(self) -> str:
    """Name of the problems' generator, with its version if it can change."""

  @abc.abstractmethod
  def candidates(self, index: int) -> Iterator[Problem]:
    """Yields random problems, of which the first that is not held out is taken."""

  @property
  def fingerprint(self) -> str:
    """Digest of the generator and the configuration, which determine the problems."""
    return text_fingerprint(self.generator, repr(self._config))

  def __len__(self) -> int:
    return self._config.size

  def __getitem__(self, index: int) -> Problem:
    if not 0 <= index < len(self):
      raise IndexError(f'index must lie in [0, {len(self)}), got {index}')
    key, excluded = self.excluded.key, self.excluded.keys(self._config)
    for problem in self.candidates(index):
      if key(problem) not in excluded:
        return problem
    raise too_few_problems(self._config)


def first_seed(name: str, seed: int) -> int:
  """First of the consecutive seeds of a problem set, far from those of other sets."""
  digest = hashlib.sha256(f'{name} {seed}'.encode()).digest()
  return int.from_bytes(digest[:16], 'big')


def too_few_problems(config: GeneratorConfig) -> ValueError:
  """Error of bounds that allow too few distinct problems."""
  return ValueError(
    'the bounds must allow more distinct problems beside the'
    f' {config.held_out} held-out ones, got {config}'
  )
