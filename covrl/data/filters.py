# SPDX-License-Identifier: Apache-2.0
"""Which problems of some sources are used: of a length, difficult enough, new.

The choice depends on the files and the numbers alone, so that every process,
and a run that is resumed, makes the same one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from covrl.data.decontamination import Overlap
from covrl.data.problems import Problem, ProblemSource
from covrl.data.sources import SubsetSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sieve:
  """What a problem must be to be used.

  Attributes:
    length: the length of a prompt, in tokens.
    max_length: the most it may be; `None` for no limit.
    deduplicate: whether only the first of equal questions is used.
    overlap: evaluation sets that it must not be of.
    pass_rates: measured shares of right responses by `Problem.key`, which go
      before the problems' own.
    min_pass_rate: the least that it may be; with a bound, problems whose pass
      rate nobody measured are left out.
    max_pass_rate: the most.

  Raises:
    ValueError: the bounds are not in order within [0, 1].
  """

  length: Callable[[Problem], int] = lambda problem: 0
  max_length: int | None = None
  deduplicate: bool = True
  overlap: Overlap | None = None
  pass_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
  min_pass_rate: float = 0.0
  max_pass_rate: float = 1.0

  def __post_init__(self) -> None:
    if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
      raise ValueError(
        'Pass rates must be bounded by 0 <= min_pass_rate <= max_pass_rate <='
        f' 1, got {self.min_pass_rate:g} and {self.max_pass_rate:g}.'
      )

  def objection(self, problem: Problem) -> str | None:
    """Why a problem is not used, `None` if it is."""
    if self.min_pass_rate > 0 or self.max_pass_rate < 1:
      rate = self.pass_rates.get(problem.key, problem.pass_rate)
      if rate is None:
        return 'without a measured pass rate'
      if rate < self.min_pass_rate:
        return f'with a pass rate below {self.min_pass_rate:g}'
      if rate > self.max_pass_rate:
        return f'with a pass rate above {self.max_pass_rate:g}'
    if self.overlap is not None and (name := self.overlap.of(problem.prompt)):
      return f'also in {name}'
    if self.max_length is not None and self.length(problem) > self.max_length:
      return f'longer than {self.max_length:,} tokens'
    return None


@dataclasses.dataclass(frozen=True)
class Sifted:
  """What a sieve left of a source.

  Attributes:
    source: the problems that are used.
    total: how many there were.
    objections: how many were left out for which reason.
    examples: where the first of them stands.
  """

  source: SubsetSource
  total: int
  objections: Mapping[str, int]
  examples: Mapping[str, str]

  def __str__(self) -> str:
    """How many were used, and why the others were not."""
    text = f'{len(self.source):,} of {self.total:,} problems'
    parts = [
      f'{count:,} {reason} (first: {self.examples[reason]})'
      for reason, count in self.objections.items()
    ]
    return f'{text}; left out: {", ".join(parts)}' if parts else text


def sift(sources: Sequence[ProblemSource], sieve: Sieve) -> list[Sifted]:
  """Puts sources through a sieve; of equal questions the first one stays.

  Args:
    sources: whose problems have keys.
    sieve: what they must be.

  Returns:
    What is left of each.

  Raises:
    ValueError: nothing is left of a source.
  """
  seen: dict[str, str] = {}
  return [_sift(source, sieve, seen) for source in sources]


def _sift(source: ProblemSource, sieve: Sieve, seen: dict[str, str]) -> Sifted:
  """One source; `seen` has the reference of every question so far."""
  kept: list[int] = []
  objections: dict[str, int] = {}
  examples: dict[str, str] = {}
  digest = hashlib.sha256()
  for index in range(len(source)):
    problem = source[index]
    reference = json.dumps(problem.reference, sort_keys=True)
    objection = None
    if sieve.deduplicate:
      objection = _duplicate(problem, reference, seen)
    objection = objection or sieve.objection(problem)
    if objection is not None:
      objections[objection] = objections.get(objection, 0) + 1
      examples.setdefault(objection, problem.place)
      continue
    kept.append(index)
    digest.update(f'{problem.key}\0{reference}\0'.encode())
  chosen = SubsetSource(source, np.array(kept, np.int64), digest.hexdigest())
  sifted = Sifted(chosen, len(source), objections, examples)
  if not kept:
    raise ValueError(
      f'A source with at least one problem to use is required, got'
      f' {", ".join(source.names)}: {sifted}.'
    )
  return sifted


def _duplicate(
  problem: Problem, reference: str, seen: dict[str, str]
) -> str | None:
  """Why a question that was there before is not used again; notes it if not."""
  digest = hashlib.blake2b(reference.encode(), digest_size=8).hexdigest()
  before = seen.get(problem.key)
  if before is None:
    seen[problem.key] = digest
    return None
  return 'twice' if before == digest else 'twice, with another answer'
