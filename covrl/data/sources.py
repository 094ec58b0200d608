# SPDX-License-Identifier: Apache-2.0
"""Problems from files and from memory, some of them, and several together.

Each is random access, so that a stream can shuffle it and resume anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int

from covrl.data.columns import Row, kind_of
from covrl.data.problems import Problem, ProblemSource, fingerprint_of
from covrl.data.readers import Records, open_records
from covrl.data.schemas import Layout, layout_named, layout_of


class FileSource:
  """Problems of one file, every row of which is read and checked at once.

  Args:
    file: its name, see `open_records`, or its rows.
    layout: of its columns, by name or not; recognised from the first row
      unless given.
    name: of the source, where rows do not say their own; the file's unless
      given.

  Raises:
    ValueError: there is no such file or no row in it, a row lacks a column, or
      a column holds something else than it should, or than it does in the
      first row. The sentence says file, row and column.

  Attributes:
    file: what it was opened by.
    layout: of its columns.
    names: as `ProblemSource` has it.
    kinds: of the problems of each of these names.
  """

  def __init__(
    self,
    file: epath.PathLike | Records,
    *,
    layout: Layout | str | None = None,
    name: str | None = None,
  ) -> None:
    self._records = file if isinstance(file, Records) else open_records(file)
    self.file = self._records.file
    self._name = name or epath.Path(self.file).name
    if layout is None:
      layout = layout_of(self._row(0, self._records[0]))
    self.layout = layout_named(layout) if isinstance(layout, str) else layout
    self.kinds = self._check()
    self.names = tuple(self.kinds)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Problem:
    row = self._row(index, self._records[index])
    return self.layout.problem(row, self._name)

  def __iter__(self) -> Iterator[Problem]:
    for index, columns in enumerate(self._records):
      yield self.layout.problem(self._row(index, columns), self._name)

  def _row(self, index: int, columns: object) -> Row:
    return Row(columns, self._records.place(index))

  def _check(self) -> dict[str, str]:
    """Reads everything once; the kind of problems of every source there is."""
    kinds: dict[str, tuple[str, str]] = {}
    types: dict[str, tuple[str, str]] = {}
    for index, columns in enumerate(self._records):
      row = self._row(index, columns)
      problem = self.layout.problem(row, self._name)
      _check_same(
        kinds,
        problem.source,
        (problem.kind, row.place),
        f'The source {problem.source!r} must be of one kind of problems, which'
        " a column 'data_source' may tell apart",
      )
      for column in self.layout.columns(row):
        _check_same(
          types,
          column,
          (kind_of(row.value(column)), row.place),
          f'Column {column!r} must hold the same type throughout',
        )
    return {name: kind for name, (kind, _) in kinds.items()}


def _check_same(
  seen: dict[str, tuple[str, str]],
  name: str,
  found: tuple[str, str],
  wanted: str,
) -> None:
  """Refuses what is otherwise than where it was seen first."""
  first, place = seen.setdefault(name, found)
  if first != found[0]:
    raise ValueError(
      f'{wanted}, got {first} in {place} and {found[0]} in {found[1]}.'
    )


class ListSource:
  """Problems in memory."""

  def __init__(self, problems: Sequence[Problem]) -> None:
    self._problems = tuple(problems)
    self.names = tuple(dict.fromkeys(p.source for p in self._problems))

  def __len__(self) -> int:
    return len(self._problems)

  def __getitem__(self, index: int) -> Problem:
    return self._problems[index]


class SubsetSource:
  """Some problems of a source, in an order of one's own.

  Args:
    source: the problems.
    indices: which of them.
    fingerprint: of what the chosen ones say, see `Fingerprinted`.
  """

  def __init__(
    self,
    source: ProblemSource,
    indices: Int[np.ndarray, ' N'],
    fingerprint: str = '',
  ) -> None:
    self._source = source
    self._indices = indices
    self.names = source.names
    self.fingerprint = fingerprint

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Problem:
    return self._source[int(self._indices[index])]


class ConcatenatedSource:
  """Several sources, one after the other; a shuffled stream mixes them.

  >>> problem = Problem(prompt='1 + 1', reference=2, source='sums')
  >>> both = ConcatenatedSource([ListSource([problem]), ListSource([problem])])
  >>> len(both), both.names
  (2, ('sums',))
  """

  def __init__(self, sources: Sequence[ProblemSource]) -> None:
    self.sources = tuple(sources)
    names = (name for source in self.sources for name in source.names)
    self.names = tuple(dict.fromkeys(names))
    self.fingerprint = ' '.join(map(fingerprint_of, self.sources)).strip()

  def __len__(self) -> int:
    return sum(map(len, self.sources))

  def __getitem__(self, index: int) -> Problem:
    start = 0
    for source in self.sources:
      if 0 <= index - start < len(source):
        return source[index - start]
      start += len(source)
    raise IndexError(f'There are problems 0 to {start - 1}, got {index}.')


class MixtureSource(ConcatenatedSource):
  """Several sources, of which a stream takes given shares, however long each.

  A stream interleaves them by these shares, each in an order and with epochs
  of its own: any run of its problems has of each source what is its share.

  Args:
    sources: at least one problem in each.
    weights: positive; only their ratios matter, to a hundredth of the least.

  Raises:
    ValueError: there is not one weight per source, or one is not positive.
  """

  def __init__(
    self, sources: Sequence[ProblemSource], weights: Sequence[float]
  ) -> None:
    super().__init__(sources)
    if len(weights) != len(sources) or not all(w > 0 for w in weights):
      raise ValueError(
        f'A mixture of {len(sources)} sources needs as many positive weights,'
        f' got {list(weights)}.'
      )
    self.weights = tuple(map(float, weights))
