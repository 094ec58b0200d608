# SPDX-License-Identifier: Apache-2.0
"""The global order of a source's problems, and each process's share of it.

A draw is a batch of consecutive problems of the global order, over all
processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from jaxtyping import Int

from covrl.data.problems import Problem, ProblemSource
from covrl.data.sources import MixtureSource

if TYPE_CHECKING:
  import grain

Batch = TypeVar('Batch')


@dataclasses.dataclass(frozen=True)
class ProblemDraw:
  """One process's problems of a draw.

  Attributes:
    draw: index of the draw.
    problems: P problems.
    order_indices: index of each problem in the global order.
    source_indices: index of each problem in the source.
  """

  draw: int
  problems: tuple[Problem, ...]
  order_indices: Int[np.ndarray, ' P']
  source_indices: tuple[int, ...]


class _IndexedSource:
  """A source that returns each problem with its index, and keeps its length.

  Raises:
    ValueError: when a problem is read, the source has none at its index, or another
      length than before: the order of the problems would change within an epoch.
  """

  def __init__(self, source: ProblemSource) -> None:
    self._source = source
    self._length = len(source)

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> tuple[int, Problem]:
    size = len(self._source)
    if size != self._length:
      raise ValueError(
        f'a source must keep its length, {self._length} problems, got {size}'
      )
    try:
      return index, self._source[index]
    except (LookupError, StopIteration) as error:
      # A generator would take the latter for its own end.
      raise ValueError(
        f'a source of {size} problems must have one at every index below, got'
        f' {type(error).__name__} at {index}: {error}'
      ) from error


class DrawSource(Generic[Batch]):
  """One process's batches by the index of the draw, as a Grain source.

  Args:
    order: the global order, see `global_order`.
    build: makes a batch of the problems.
    draw_size: problems in a draw, over all processes.
    rows: this process's rows of a draw, see `process_rows`.
  """

  def __init__(
    self,
    order: grain.MapDataset[tuple[int, Problem]],
    build: Callable[[ProblemDraw], Batch],
    draw_size: int,
    rows: range,
  ) -> None:
    self._order = order
    self._build = build
    self._draw_size = draw_size
    self._rows = rows

  def __len__(self) -> int:
    return len(self._order) // self._draw_size

  def __getitem__(self, index: int) -> Batch:
    order_indices = [index * self._draw_size + row for row in self._rows]
    source_indices, problems = zip(
      *(self._order[position] for position in order_indices), strict=True
    )
    return self._build(
      ProblemDraw(
        draw=index,
        problems=problems,
        order_indices=np.array(order_indices, np.int64),
        source_indices=source_indices,
      )
    )


def global_order(
  source: ProblemSource, seed: int, shuffle: bool
) -> grain.MapDataset[tuple[int, Problem]]:
  """Endless epochs of a source; the sources of a mixture are interleaved.

  Args:
    source: the problems.
    seed: seed of the order.
    shuffle: whether each epoch is shuffled.

  Raises:
    ValueError: a source is empty.
  """
  if not isinstance(source, MixtureSource):
    return _epochs(source, seed, shuffle)
  import grain

  # With one seed, sources of equal length would be shuffled in the same order.
  seeds = np.random.SeedSequence(seed).generate_state(len(source.sources))
  orders = [
    _epochs(part, int(part_seed), shuffle)
    for part, part_seed in zip(source.sources, seeds, strict=True)
  ]
  return grain.MapDataset.mix(orders, source.weights)


def _epochs(
  source: ProblemSource, seed: int, shuffle: bool
) -> grain.MapDataset[tuple[int, Problem]]:
  """Endless epochs of one source, as (index in the source, problem)."""
  import grain

  if len(source) == 0:
    raise ValueError(
      'a source must have at least one problem, got an empty one'
      f' ({", ".join(source.names)})'
    )
  epoch = grain.MapDataset.source(_IndexedSource(source)).seed(seed)
  return (epoch.shuffle() if shuffle else epoch).repeat()


def process_rows(
  draw_size: int, process_index: int, process_count: int
) -> range:
  """The contiguous rows of each draw that one process takes.

  Raises:
    ValueError: the processes cannot share a draw evenly.
  """
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index must lie in [0, {process_count}), got {process_index}'
    )
  if draw_size <= 0 or draw_size % process_count:
    raise ValueError(
      f'a draw must be a positive multiple of the {process_count} processes'
      f' that share it, got {draw_size}'
    )
  share = draw_size // process_count
  return range(process_index * share, (process_index + 1) * share)
