# SPDX-License-Identifier: Apache-2.0
"""Scoring of responses by all rewards that apply, each in its own workers."""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from covrl.rewards._worker_isolation import isolation
from covrl.rewards._worker_process import Modules
from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.pool import PoolCall, RewardPool
from covrl.rewards.reward import Overlong, Reward, RewardPart
from covrl.rewards.scores import PendingScores

# `(index, response, reference, length)`: starts scoring one response.
_AddResponse = Callable[[int, str, Any, int], None]


def _no_op() -> None:
  """No-op: nothing has to be cancelled."""


@dataclasses.dataclass(frozen=True)
class ScoringCall:
  """Responses that are scored as they are added.

  Attributes:
    scores: their pending scores; complete once every response is added.
    references: the reference of each response.
    adders: for each reward part, its index of each response that it applies to,
      and the function that starts scoring one.
    cancel: drops the call; no further response is scored, and the scores never
      complete.
  """

  scores: PendingScores
  references: Sequence[Any]
  adders: Sequence[tuple[Mapping[int, int], _AddResponse]]
  cancel: Callable[[], None] = _no_op

  def add(self, index: int, response: str, length: int) -> None:
    """Starts scoring a response.

    Args:
      index: index of the response in the call; each is added once.
      response: the policy's response.
      length: its length in tokens.

    Raises:
      IndexError: if the call has no such response.
      RuntimeError: if a pool is closed or could not start a worker.
    """
    if not 0 <= index < len(self.references):
      raise IndexError(
        f'index must lie in [0, {len(self.references)}), got {index}'
      )
    for part_indices, add in self.adders:
      if index in part_indices:
        add(part_indices[index], response, self.references[index], length)


class Scoring:
  """All rewards of a task, and the worker processes that compute them.

  Every reward has its own pool, so that workers that die, hang or grow do not
  affect other rewards. Closed by `close` or by a `with` block.

  Args:
    rewards: the reward parts.
    sources: names of all data sources; a reward for another source, and a source
      without a reward, are refused.
    workers: number of processes per reward.
    timeout: time limit per response in seconds, unless the reward has its own.
    environment: names of environment variables that workers receive besides
      those of `ENVIRONMENT`.
    network: whether all rewards may use the network, and not only those
      whose own `network` is true.
    modules: see `RewardPool`.

  Attributes:
    rewards: the reward parts.
    notes: sentences on the isolation that this machine cannot give to workers.

  Raises:
    TypeError: if the sources are a text, of which every letter would be one.
    ValueError: if two rewards have the same name, or rewards and sources do not
      match.
  """

  def __init__(
    self,
    rewards: Sequence[RewardPart],
    *,
    sources: Sequence[str],
    workers: int = 2,
    timeout: float = 5.0,
    environment: Sequence[str] = (),
    network: bool = False,
    modules: Modules | None = None,
  ) -> None:
    if isinstance(sources, str):
      raise TypeError(f'sources must be a list of names, got {sources!r:.80}')
    _check_rewards(rewards, sources)
    self.rewards = tuple(rewards)
    self._sources = frozenset(sources)
    self._pools = {
      part.name: RewardPool(
        part.score,
        workers=workers,
        timeout=timeout if part.timeout is None else part.timeout,
        example=part.example,
        environment=environment,
        network=network or part.network,
        modules=modules,
      )
      for part in rewards
      if isinstance(part, Reward)
    }
    self.notes: list[str] = []
    if self._pools and isolation() == 'none':
      self.notes.append(
        'reward functions can use the network and send signals to the trainer:'
        ' this machine allows neither namespaces nor seccomp filters'
      )

  def __enter__(self) -> Scoring:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def warm_up(self) -> None:
    """Waits until every worker is ready.

    Raises:
      RuntimeError: if a worker could not be started.
    """
    for name, pool in self._pools.items():
      try:
        pool.warm_up()
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
    """Starts scoring responses.

    Args:
      responses: the policy's responses.
      references: the reference of each, JSON-serialisable.
      sources: name of the data source of each.
      lengths: length of each response in tokens.
      shaping: whether to compute the parts used in training only, too.

    Raises:
      ValueError: if the lengths of the arguments differ, or a source is unknown.
      RuntimeError: if a pool is closed or could not start a worker.
    """
    if not len(responses) == len(references) == len(sources) == len(lengths):
      raise ValueError(
        'references, sources and lengths must be as many as responses, '
        f'got {len(references)}, {len(sources)} and {len(lengths)} for'
        f' {len(responses)}'
      )
    call = self.open(references, sources=sources, shaping=shaping)
    for index, (response, length) in enumerate(
      zip(responses, lengths, strict=True)
    ):
      call.add(index, response, length)
    return call.scores

  def open(
    self,
    references: Sequence[Any],
    *,
    sources: Sequence[str],
    shaping: bool = True,
  ) -> ScoringCall:
    """Starts a call whose responses are added one by one, in any order.

    Args:
      references: the reference of each response, JSON-serialisable.
      sources: name of the data source of each.
      shaping: whether to compute the parts used in training only, too.

    Raises:
      ValueError: if there is not one source per reference, or a source is not one
        of the constructor's: no part would score its responses.
      RuntimeError: if a pool is closed or could not start a worker.
    """
    if len(sources) != len(references):
      raise ValueError(
        f'sources must be as many as references, got {len(sources)} for'
        f' {len(references)}'
      )
    if unknown := set(sources) - self._sources:
      raise ValueError(
        f'the source of a response must be one of {sorted(self._sources)}, got'
        f' {min(unknown)!r}'
      )
    adders: list[tuple[dict[int, int], _AddResponse]] = []
    pool_calls: list[tuple[RewardPool, PoolCall]] = []
    futures: dict[str, tuple[Sequence[int], Future[list[Outcome]]]] = {}
    rewards = [part for part in self.rewards if shaping or not part.shaping]
    for part in rewards:
      indices = [
        index
        for index, source in enumerate(sources)
        if not part.sources or source in part.sources
      ]
      if isinstance(part, Overlong):
        add, future = _length_adder(part, len(indices))
      else:
        pool = self._pools[part.name]
        call = pool.open(len(indices))
        add, future = _pool_adder(pool, call), call.future
        pool_calls.append((pool, call))
      futures[part.name] = indices, future
      adders.append(
        ({index: position for position, index in enumerate(indices)}, add)
      )
    scores = PendingScores(tuple(rewards), len(references), futures)

    def cancel() -> None:
      for pool, call in pool_calls:
        pool.cancel(call)

    return ScoringCall(scores, tuple(references), adders, cancel)

  def close(self) -> None:
    """Kills the workers; no further response is scored."""
    for pool in self._pools.values():
      pool.close()


def _pool_adder(pool: RewardPool, call: PoolCall) -> _AddResponse:
  """Returns the function that adds a response to a call of a pool."""

  def add(index: int, response: str, reference: Any, length: int) -> None:
    del length
    pool.add(call, index, response, reference)

  return add


def _length_adder(
  part: Overlong, size: int
) -> tuple[_AddResponse, Future[list[Outcome]]]:
  """Returns the function that scores a response by its length, and the scores."""
  future: Future[list[Outcome]] = Future()
  outcomes: dict[int, Outcome] = {}

  def finish() -> None:
    if len(outcomes) == size:
      future.set_result([outcomes[index] for index in range(size)])

  def add(index: int, response: str, reference: Any, length: int) -> None:
    del response, reference
    outcomes[index] = Outcome(part(length), Status.SCORED)
    finish()

  finish()
  return add, future


def _check_rewards(
  rewards: Sequence[RewardPart], sources: Sequence[str]
) -> None:
  """Checks that names differ and that rewards and sources match."""
  names = [part.name for part in rewards]
  for name, count in Counter(names).items():
    if count > 1:
      raise ValueError(
        f'names of rewards must differ, got {name!r} {count} times'
      )
  for part in rewards:
    for source in part.sources:
      if source not in sources:
        close_matches = difflib.get_close_matches(source, sources, n=1)
        hint = f'; did you mean {close_matches[0]!r}?' if close_matches else ''
        raise ValueError(
          f'the source of the reward {part.name!r} must be one of'
          f' {", ".join(map(repr, sources))}, got {source!r}{hint}'
        )
  grading_rewards = [
    part for part in rewards if not part.shaping and part.weight > 0
  ]
  for source in sources:
    if not any(not p.sources or source in p.sources for p in grading_rewards):
      raise ValueError(
        'every source must have a reward that grades its answers (without shaping,'
        f' with a weight above 0), got none for {source!r}'
      )
