# SPDX-License-Identifier: Apache-2.0
"""The global order of a source, and which rows of each draw are whose."""

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
class DrawnRows:
  """Problems of one draw; their places in the order and in the source."""

  draw: int
  problems: tuple[Problem, ...]
  indices: Int[np.ndarray, ' P']
  places: tuple[int, ...]


class _Numbered:
  """A source that also says which problem each one is."""

  def __init__(self, source: ProblemSource) -> None:
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> tuple[int, Problem]:
    return index, self._source[index]


class Draws(Generic[Batch]):
  """A process's rows of each draw, as a Grain source."""

  def __init__(
    self,
    order: grain.MapDataset[tuple[int, Problem]],
    build: Callable[[DrawnRows], Batch],
    draw_size: int,
    own_rows: range,
  ) -> None:
    self._order = order
    self._build = build
    self._draw_size = draw_size
    self._own_rows = own_rows

  def __len__(self) -> int:
    return len(self._order) // self._draw_size

  def __getitem__(self, index: int) -> Batch:
    indices = [index * self._draw_size + row for row in self._own_rows]
    places, problems = zip(
      *(self._order[place] for place in indices), strict=True
    )
    return self._build(
      DrawnRows(
        draw=index,
        problems=problems,
        indices=np.array(indices, np.int64),
        places=places,
      )
    )


def global_order(
  source: ProblemSource, seed: int, shuffle: bool
) -> grain.MapDataset[tuple[int, Problem]]:
  """Every epoch of a source, one after the other; of a mixture, interleaved."""
  if not isinstance(source, MixtureSource):
    return _epochs(source, seed, shuffle)
  import grain

  # Sources of equal length must not be in step with one another.
  seeds = np.random.SeedSequence(seed).generate_state(len(source.sources))
  orders = [
    _epochs(each, int(own), shuffle)
    for each, own in zip(source.sources, seeds, strict=True)
  ]
  return grain.MapDataset.mix(orders, source.weights)


def _epochs(
  source: ProblemSource, seed: int, shuffle: bool
) -> grain.MapDataset[tuple[int, Problem]]:
  import grain

  if len(source) == 0:
    raise ValueError(
      'A source with at least one problem is required, got an empty one'
      f' ({", ".join(source.names)}).'
    )
  epoch = grain.MapDataset.source(_Numbered(source)).seed(seed)
  return (epoch.shuffle() if shuffle else epoch).repeat()


def own_rows(draw_size: int, process_index: int, process_count: int) -> range:
  """The rows of each draw that are this process's: a contiguous share."""
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index must lie in [0, {process_count}), got {process_index}.'
    )
  if draw_size <= 0 or draw_size % process_count:
    raise ValueError(
      f'A draw must be a positive multiple of the {process_count} processes'
      f' that share it, got {draw_size}.'
    )
  share = draw_size // process_count
  return range(process_index * share, (process_index + 1) * share)
