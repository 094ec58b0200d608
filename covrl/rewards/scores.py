# SPDX-License-Identifier: Apache-2.0
"""Scores of responses by all reward parts, and scores that are being computed."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.reward import RewardPart

GRADE_TOLERANCE = 1e-6
"""Largest difference of a correct response's grade from 1."""


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of responses, in order.

  Attributes:
    rewards: the reward parts.
    outcomes: outcomes by the name of the part; `None` where it does not apply.
  """

  rewards: tuple[RewardPart, ...]
  outcomes: Mapping[str, Sequence[Outcome | None]]

  @classmethod
  def join(
    cls, rewards: Sequence[RewardPart], calls: Sequence[Scores]
  ) -> Scores:
    """Joins scores of several calls, in order.

    Args:
      rewards: the reward parts of all of them.
      calls: the scores of each call.
    """
    return cls(
      tuple(rewards),
      {
        part.name: [o for call in calls for o in call.outcomes[part.name]]
        for part in rewards
      },
    )

  def totals(self) -> list[float]:
    """Returns weighted sums of all parts; NaN where one has no score."""
    return self._sums(self.rewards)

  def grades(self) -> list[float]:
    """Returns the grade of each response: its score over the highest possible one.

    Scores are weighted sums of the parts that are not shaping. A grade is 1 for a
    correct answer of any length and format, and NaN for a missing score.
    """
    grading_parts = [part for part in self.rewards if not part.shaping]
    highest_scores = self._sums(grading_parts, highest_possible=True)
    return [
      score / highest if highest else math.nan
      for score, highest in zip(
        self._sums(grading_parts), highest_scores, strict=True
      )
    ]

  def correctness(self) -> list[float]:
    """Returns 1 for each correct response, 0 for others, NaN without a score.

    Grades of a correct response may be rounded, as sums of tenths are.
    """
    return [
      grade if math.isnan(grade) else float(grade > 1 - GRADE_TOLERANCE)
      for grade in self.grades()
    ]

  def counts(self) -> dict[str, int]:
    """Returns the number of outcomes by `name/status`."""
    counts: dict[str, int] = {}
    for name, outcomes in self.outcomes.items():
      status_counts = Counter(o.status for o in outcomes if o is not None)
      counts |= {f'{name}/{s.value}': status_counts[s] for s in Status}
    return counts

  def failures(self) -> list[str]:
    """Returns a sentence for every outcome without a score."""
    return [
      f'{name} ended with {outcome.status.value}: {outcome.detail}'
      for name, outcomes in self.outcomes.items()
      for outcome in outcomes
      if outcome is not None and not outcome.has_score
    ]

  def gather(self) -> Scores:
    """Returns the scores of all processes, in the order of the processes."""
    from covrl.parallel import distributed

    if distributed.process_count() == 1:
      return self
    values = {
      name: [
        None if o is None else [o.score, o.status.value, o.detail]
        for o in column
      ]
      for name, column in self.outcomes.items()
    }
    gathered = distributed.gather_objects(values)
    return Scores(
      self.rewards,
      {
        name: [
          None if o is None else Outcome(o[0], Status(o[1]), o[2])
          for outcomes in gathered
          for o in outcomes[name]
        ]
        for name in values
      },
    )

  def _sums(
    self, parts: Sequence[RewardPart], *, highest_possible: bool = False
  ) -> list[float]:
    """Returns weighted sums of parts; with `highest_possible` the highest possible."""
    count = max(map(len, self.outcomes.values()), default=0)
    columns = [
      [
        (
          max(part.weight, 0)
          if highest_possible
          else part.weight * outcome.score
        )
        if outcome
        else 0.0
        for outcome in self.outcomes[part.name]
      ]
      for part in parts
      if part.weight
    ]
    rows = zip(*columns, strict=True) if columns else [()] * count
    return [math.fsum(row) for row in rows]


@dataclasses.dataclass(frozen=True)
class PendingScores:
  """Scores that are being computed.

  Attributes:
    rewards: the reward parts.
    count: number of responses.
    futures: for each part, indices of responses and a future of their outcomes.
  """

  rewards: tuple[RewardPart, ...]
  count: int
  futures: Mapping[str, tuple[Sequence[int], Future[list[Outcome]]]]

  @property
  def is_done(self) -> bool:
    """Whether all scores are known, so that `result` does not wait."""
    return all(future.done() for _, future in self.futures.values())

  def result(self) -> Scores:
    """Waits for the scores.

    Raises:
      RuntimeError: if workers could not be started or the scoring was closed.
    """
    from covrl.parallel import distributed

    outcomes: dict[str, list[Outcome | None]] = {}
    for name, (indices, future) in self.futures.items():
      column: list[Outcome | None] = [None] * self.count
      try:
        computed = distributed.wait_for(future)
      except RuntimeError as error:
        if future.done() and future.exception() is error:
          raise RuntimeError(f'the reward {name!r}: {error}') from error
        raise
      for index, outcome in zip(indices, computed, strict=True):
        column[index] = outcome.checked()
      outcomes[name] = column
    return Scores(self.rewards, outcomes)
