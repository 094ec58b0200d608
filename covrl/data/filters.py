# SPDX-License-Identifier: Apache-2.0
"""Filters problems by length, pass rate, duplication and contamination.

The result depends on files and settings alone, so that all processes and a
resumed run select the same problems.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from covrl.data.decontamination import NgramIndex
from covrl.data.fingerprints import problems_fingerprint
from covrl.data.problems import Problem, ProblemSource
from covrl.data.prompt_faults import PromptFaults
from covrl.data.prompts import PromptFormat
from covrl.data.sources import SubsetSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemFilter:
  """Criteria that a problem must meet.

  Attributes:
    format_prompt: returns a problem with its formatted prompt.
    prompt_texts: returns the texts of a problem that its formatted prompt holds,
      all of which are compared with evaluation sets.
    prompt_length: length of a formatted problem's prompt in tokens.
    max_prompt_length: longest prompt that is kept, in tokens; `None` for any.
    deduplicate: whether only the first of equal questions is kept, of those that
      meet the other criteria.
    evaluation_ngrams: evaluation sets whose questions are dropped.
    pass_rates: measured pass rates by `Problem.key`; they take precedence over
      `Problem.pass_rate`.
    min_pass_rate: smallest pass rate. If either bound is set, problems without
      a measured pass rate are dropped.
    max_pass_rate: largest pass rate.
    prompt_faults: returns a counter of faults of the prompts of one source;
      `None` to count none.

  Raises:
    ValueError: the bounds are not in order within [0, 1].
  """

  format_prompt: Callable[[Problem], Problem] = lambda problem: problem
  prompt_texts: Callable[[Problem], Sequence[str]] = PromptFormat().texts
  prompt_length: Callable[[Problem], int] = lambda problem: 0
  max_prompt_length: int | None = None
  deduplicate: bool = True
  evaluation_ngrams: NgramIndex | None = None
  pass_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
  min_pass_rate: float = 0.0
  max_pass_rate: float = 1.0
  prompt_faults: Callable[[], PromptFaults] | None = None

  def __post_init__(self) -> None:
    if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
      raise ValueError(
        'pass rates must be bounded by 0 <= min_pass_rate <= max_pass_rate <='
        f' 1, got {self.min_pass_rate:g} and {self.max_pass_rate:g}'
      )

  def drop_reason(self, problem: Problem) -> str | None:
    """Reason for dropping a problem, duplicates and length aside, or `None`."""
    if self.min_pass_rate > 0 or self.max_pass_rate < 1:
      rate = self.pass_rates.get(problem.key, problem.pass_rate)
      if rate is None or math.isnan(rate):
        return 'without a measured pass rate'
      if rate < self.min_pass_rate:
        return f'with a pass rate below {self.min_pass_rate:g}'
      if rate > self.max_pass_rate:
        return f'with a pass rate above {self.max_pass_rate:g}'
    name = self._evaluation_set(problem)
    return f'also in {name}' if name else None

  def length_reason(self, problem: Problem) -> str | None:
    """Reason for dropping a formatted problem for its length, or `None`."""
    limit = self.max_prompt_length
    if limit is not None and self.prompt_length(problem) > limit:
      return f'longer than {limit:,} tokens'
    return None

  def _evaluation_set(self, problem: Problem) -> str | None:
    """Name of an evaluation set with a question in the prompt, or `None`."""
    ngrams = self.evaluation_ngrams
    if ngrams is None:
      return None
    if name := ngrams.find(problem.prompt, problem.key):
      return name
    texts = (t for t in self.prompt_texts(problem) if t != problem.prompt)
    return next(filter(None, map(ngrams.find, texts)), None)


@dataclasses.dataclass
class NoneAnswers:
  """Counts answers that are the text 'None', Python's name of a missing value.

  It may also be an answer, unlike the names that `SCHEMAS` refuse, such as 'nan'.

  Attributes:
    count: number of problems with that answer.
    total: number of problems.
    first: column and location of the first one.
  """

  count: int = 0
  total: int = 0
  first: str = ''

  def add(self, problem: Problem) -> None:
    """Counts a problem."""
    self.total += 1
    if problem.reference == 'None':
      self.count += 1
      self.first = (
        self.first or f'column {problem.column!r} of {problem.location}'
      )

  def warnings(self) -> list[str]:
    """A sentence if there are any."""
    if not self.count:
      return []
    return [
      f"{self.count:,} of {self.total:,} answers are the text 'None', as which Python"
      f' writes a missing value; they are taken as answers (first: {self.first})'
    ]


@dataclasses.dataclass(frozen=True)
class FilteredSource:
  """The kept problems of a source, and counts of the dropped ones.

  Attributes:
    source: the kept problems.
    total: number of problems before filtering.
    dropped: number of dropped problems by reason.
    examples: location of the first dropped problem by reason.
    none_answers: kept problems with the answer 'None'.
    prompt_faults: faults of the kept problems' prompts; `None` if not counted.
  """

  source: SubsetSource
  total: int
  dropped: Mapping[str, int]
  examples: Mapping[str, str]
  none_answers: NoneAnswers
  prompt_faults: PromptFaults | None = None

  def warnings(self) -> list[str]:
    """Sentences on the kept problems."""
    faults = self.prompt_faults
    return [
      *self.none_answers.warnings(),
      *(() if faults is None else faults.warnings()),
    ]

  def __str__(self) -> str:
    """Summary of the counts."""
    text = f'{len(self.source):,} of {self.total:,} problems'
    parts = [
      f'{count:,} {reason} (first: {self.examples[reason]})'
      for reason, count in self.dropped.items()
    ]
    return f'{text}; left out: {", ".join(parts)}' if parts else text


def filter_sources(
  sources: Sequence[ProblemSource], criteria: ProblemFilter
) -> list[FilteredSource]:
  """Filters sources; duplicates are detected across all of them.

  Args:
    sources: sources of problems with keys.
    criteria: criteria that problems must meet.

  Returns:
    The kept problems of each source.

  Raises:
    ValueError: all problems of a source are dropped.
  """
  reference_digests: dict[str, str] = {}
  return [
    _filter_source(source, criteria, reference_digests) for source in sources
  ]


def _filter_source(
  source: ProblemSource,
  criteria: ProblemFilter,
  reference_digests: dict[str, str],
) -> FilteredSource:
  """Filters one source.

  Args:
    source: the problems.
    criteria: criteria that problems must meet.
    reference_digests: digest of the reference by question key, of all problems
      kept so far; updated. A copy of a problem that was dropped is judged itself.
  """
  kept_indices: list[int] = []
  dropped: dict[str, int] = {}
  examples: dict[str, str] = {}
  none_answers = NoneAnswers()
  faults = criteria.prompt_faults and criteria.prompt_faults()
  digest = hashlib.sha256()
  for index in range(len(source)):
    problem = source[index]
    reference = json.dumps(problem.reference, sort_keys=True)
    reason = None
    if criteria.deduplicate:
      reason = _duplicate_reason(problem, reference, reference_digests)
    reason = reason or criteria.drop_reason(problem)
    if reason is None:
      formatted = criteria.format_prompt(problem)
      reason = criteria.length_reason(formatted)
      if reason is None and faults is not None:
        faults.add(problem, formatted.prompt)
    if reason is not None:
      dropped[reason] = dropped.get(reason, 0) + 1
      examples.setdefault(reason, problem.location)
      continue
    kept_indices.append(index)
    none_answers.add(problem)
    if criteria.deduplicate and problem.key:
      reference_digests[problem.key] = _digest(reference)
    digest.update(problems_fingerprint([problem]).encode())
  subset = SubsetSource(
    source, np.array(kept_indices, np.int64), digest.hexdigest()
  )
  filtered = FilteredSource(
    subset, len(source), dropped, examples, none_answers, faults
  )
  if not kept_indices:
    raise ValueError(
      'a source must have at least one problem to use, got'
      f' {", ".join(source.names)}: {filtered}'
    )
  return filtered


def _duplicate_reason(
  problem: Problem, reference: str, reference_digests: Mapping[str, str]
) -> str | None:
  """Reason for dropping a problem whose question is that of a kept one."""
  first_digest = reference_digests.get(problem.key) if problem.key else None
  if first_digest is None:
    return None
  is_same = first_digest == _digest(reference)
  return 'repeated' if is_same else 'repeated, with another answer'


def _digest(reference: str) -> str:
  """Digest of a reference's text."""
  return hashlib.blake2b(reference.encode(), digest_size=8).hexdigest()
