# SPDX-License-Identifier: Apache-2.0
"""Batches of an evaluation's responses, and their correctness once they are scored.

Correctness is 1 for a correct response, 0 for a wrong one, and NaN for one without a
score.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from covrl.rewards import PendingScores


@dataclasses.dataclass(frozen=True)
class ProblemGroup:
  """Responses to one problem that are sampled together.

  Attributes:
    suite: index of the suite.
    problem: index of the problem in the suite.
    first: index of the first response among the problem's samples.
  """

  suite: int
  problem: int
  first: int


class GradedResponse(NamedTuple):
  """A response whose score is known.

  Attributes:
    correctness: 1 if it is correct, 0 if it is wrong, NaN without a score.
    text: the response.
    is_truncated: whether the length limit ended it.
  """

  correctness: float
  text: str
  is_truncated: bool


@dataclasses.dataclass(frozen=True)
class PendingBatch:
  """The responses of a batch whose scores are still being computed.

  Attributes:
    groups: the groups of the batch.
    texts: the responses of all groups, in order.
    scores: the scores of this process's responses.
    nll: sum of −log π over all sampled tokens, in nats.
    tokens: number of sampled tokens.
    truncated: whether the length limit ended each response.
  """

  groups: Sequence[ProblemGroup]
  texts: Sequence[str]
  scores: PendingScores
  nll: float
  tokens: int
  truncated: Sequence[bool]

  @functools.cached_property
  def local_correctness(self) -> list[float]:
    """Correctness of this process's responses; waits for their scores."""
    return self.scores.result().correctness()


def graded_responses(
  batches: Sequence[PendingBatch], failures: list[str], grades: list[float]
) -> Iterator[tuple[tuple[int, int, int], GradedResponse]]:
  """Waits for the scores of all processes, and yields every response.

  Args:
    batches: the batches.
    failures: receives a reason for each response without a score.
    grades: receives the grade of each response.

  Yields:
    Indices of suite, problem and sample, and the response.
  """
  for batch in batches:
    scores = batch.scores.result().gather()
    failures += scores.failures()
    grades += scores.grades()
    correctness = scores.correctness()
    size = len(correctness) // len(batch.groups)
    for row, fields in enumerate(
      zip(correctness, batch.texts, batch.truncated, strict=True)
    ):
      group = batch.groups[row // size]
      sample = group.first + row % size
      yield (group.suite, group.problem, sample), GradedResponse(*fields)


def accuracies(**batches: Sequence[PendingBatch]) -> dict[str, float]:
  """Returns the accuracy of this process's responses that are scored by now.

  Args:
    **batches: batches by the name of the accuracy.
  """
  means: dict[str, float] = {}
  for name, pending in batches.items():
    correctness = [
      is_correct
      for batch in pending
      if batch.scores.is_done
      for is_correct in batch.local_correctness
      if not np.isnan(is_correct)
    ]
    if correctness:
      means[name] = float(np.mean(correctness))
  return means
