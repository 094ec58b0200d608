# SPDX-License-Identifier: Apache-2.0
"""Responses to scores: every reward that applies, each in its own workers."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.pool import RewardPool
from covrl.rewards.reward import Overlong, Reward, RewardPart


@dataclasses.dataclass(frozen=True)
class Scores:
  """What responses are worth, in order.

  Attributes:
    rewards: the parts, in the order given.
    outcomes: of each part, by its name; `None` where it does not apply.
  """

  rewards: tuple[RewardPart, ...]
  outcomes: Mapping[str, Sequence[Outcome | None]]

  def totals(self) -> list[float]:
    """Weighted sums of all parts; NaN where one could not be judged."""
    return self._sums(self.rewards)

  def marks(self) -> list[float]:
    """Weighted sums over the parts that are no shaping, relative to full marks.

    1 is a right answer, whatever its length and format; NaN where it could not
    be judged.
    """
    answers = [part for part in self.rewards if not part.shaping]
    full = self._sums(answers, full_marks=True)
    return [
      mark / most for mark, most in zip(self._sums(answers), full, strict=True)
    ]

  def counts(self) -> dict[str, int]:
    """How many outcomes there are of each kind, by `name/status`."""
    counts: dict[str, int] = {}
    for name, outcomes in self.outcomes.items():
      seen = Counter(o.status for o in outcomes if o is not None)
      counts |= {f'{name}/{s.value}': seen[s] for s in Status}
    return counts

  def failures(self) -> list[str]:
    """A sentence for every outcome that is no judgement."""
    return [
      f'{name} ended with {outcome.status.value}: {outcome.detail}'
      for name, outcomes in self.outcomes.items()
      for outcome in outcomes
      if outcome is not None and not outcome.is_judged
    ]

  def gathered(self) -> Scores:
    """Those of all processes, in the order of the processes."""
    from covrl.parallel import distributed

    if distributed.count() == 1:
      return self
    own = {
      name: [
        None if o is None else [o.score, o.status.value, o.detail]
        for o in column
      ]
      for name, column in self.outcomes.items()
    }
    everyones = distributed.gather_objects(own)
    return Scores(
      self.rewards,
      {
        name: [
          None if o is None else Outcome(o[0], Status(o[1]), o[2])
          for theirs in everyones
          for o in theirs[name]
        ]
        for name in own
      },
    )

  def _sums(
    self, parts: Sequence[RewardPart], *, full_marks: bool = False
  ) -> list[float]:
    columns = [
      [
        part.weight * (1.0 if full_marks else outcome.score) if outcome else 0.0
        for outcome in self.outcomes[part.name]
      ]
      for part in parts
      if part.weight
    ]
    return [math.fsum(row) for row in zip(*columns, strict=True)]


@dataclasses.dataclass(frozen=True)
class PendingScores:
  """Scores that workers are still at.

  Attributes:
    rewards: see `Scores`.
    count: of the responses.
    futures: of the outcomes of each part, with the places they belong to.
  """

  rewards: tuple[RewardPart, ...]
  count: int
  futures: Mapping[str, tuple[Sequence[int], Future[list[Outcome]]]]

  def result(self) -> Scores:
    """Waits for them.

    Raises:
      RuntimeError: workers could not be started, or the scoring was closed.
    """
    from covrl.parallel import distributed

    outcomes: dict[str, list[Outcome | None]] = {}
    for name, (places, future) in self.futures.items():
      column: list[Outcome | None] = [None] * self.count
      for place, outcome in zip(
        places, distributed.result(future), strict=True
      ):
        column[place] = outcome
      outcomes[name] = column
    return Scores(self.rewards, outcomes)


class Scoring:
  """All rewards of a task, and the worker processes that compute them.

  Every reward has a pool of its own, so that one whose workers die, hang or
  grow disturbs no other. It is closed with `close` or by a `with` block.

  Args:
    rewards: the parts.
    sources: names of all data sources; a reward that names another one, and a
      source without a reward, is refused.
    workers: processes of each reward.
    timeout: most seconds for a response, where the reward does not say.

  Raises:
    ValueError: two rewards have the same name, or rewards and sources do not
      fit.
  """

  def __init__(
    self,
    rewards: Sequence[RewardPart],
    *,
    sources: Sequence[str],
    workers: int = 2,
    timeout: float = 5.0,
  ) -> None:
    _check(rewards, sources)
    self.rewards = tuple(rewards)
    self._pools = {
      part.name: RewardPool(
        part.score,
        workers=workers,
        timeout=timeout if part.timeout is None else part.timeout,
        example=part.example,
      )
      for part in rewards
      if isinstance(part, Reward)
    }

  def __enter__(self) -> Scoring:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def warm(self) -> None:
    """Waits until every worker is ready.

    Raises:
      RuntimeError: one of them could not be started.
    """
    for name, pool in self._pools.items():
      try:
        pool.warm()
      except RuntimeError as error:
        raise RuntimeError(f'the reward {name!r}: {error}') from error

  def submit(
    self,
    responses: Sequence[str],
    references: Sequence[Any],
    *,
    sources: Sequence[str],
    lengths: Sequence[int],
    shaping: bool = True,
  ) -> PendingScores:
    """Begins to score responses.

    Args:
      responses: what the policy answered.
      references: what the rewards need for each, JSON-able.
      sources: name of the data source of each.
      lengths: of the responses, in tokens.
      shaping: whether parts that steer training alone are computed, too.

    Raises:
      ValueError: there are not as many of one as of the others.
      RuntimeError: a pool is closed, or could not start a worker.
    """
    if not len(responses) == len(references) == len(sources) == len(lengths):
      raise ValueError(
        'As many references, sources and lengths as responses are required, '
        f'got {len(references)}, {len(sources)} and {len(lengths)} for'
        f' {len(responses)}.'
      )
    rewards = [part for part in self.rewards if shaping or not part.shaping]
    futures: dict[str, tuple[Sequence[int], Future[list[Outcome]]]] = {}
    for part in rewards:
      places = [
        place
        for place, source in enumerate(sources)
        if not part.sources or source in part.sources
      ]
      if isinstance(part, Overlong):
        done: Future[list[Outcome]] = Future()
        scores = (part(lengths[place]) for place in places)
        done.set_result([Outcome(score, Status.SCORED) for score in scores])
        futures[part.name] = places, done
      else:
        futures[part.name] = (
          places,
          self._pools[part.name].submit(
            [responses[place] for place in places],
            [references[place] for place in places],
          ),
        )
    return PendingScores(tuple(rewards), len(responses), futures)

  def close(self) -> None:
    """Kills the workers; what is not scored by now never will be."""
    for pool in self._pools.values():
      pool.close()


def _check(rewards: Sequence[RewardPart], sources: Sequence[str]) -> None:
  names = [part.name for part in rewards]
  for name, count in Counter(names).items():
    if count > 1:
      raise ValueError(f'Rewards need different names, {count} are {name!r}.')
  for part in rewards:
    for source in part.sources:
      if source not in sources:
        near = difflib.get_close_matches(source, sources, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else '.'
        raise ValueError(
          f'The reward {part.name!r} is for the source {source!r}, the sources'
          f' are {", ".join(map(repr, sources))}{hint}'
        )
  judged = [part for part in rewards if not part.shaping and part.weight]
  for source in sources:
    if not any(not p.sources or source in p.sources for p in judged):
      raise ValueError(
        'Every source needs a reward that judges its answers (no shaping, a'
        f' weight other than 0), {source!r} has none.'
      )
