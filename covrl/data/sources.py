# SPDX-License-Identifier: Apache-2.0
"""Problem sources: files, lists, subsets, concatenations and mixtures."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int

from covrl.data.columns import Row, type_name
from covrl.data.fingerprints import problems_fingerprint, text_fingerprint
from covrl.data.problems import Problem, ProblemSource, source_fingerprint
from covrl.data.readers import Records, open_records
from covrl.data.schemas import Schema, detect_schema, schema_by_name
from covrl.data.unread_columns import UnreadColumns


class FileSource:
  """Problems of one file, all rows of which are validated at construction.

  Args:
    file: name of the file, see `open_records`, or its records.
    schema: schema of the columns, or its name; detected from the first row
      unless given.
    name: `Problem.source` of rows without a `data_source`; the file's name
      unless given.

  Raises:
    ValueError: the file is missing or empty, a row lacks a column, or a column
      is invalid or changes its type. The message names file, row and column.

  Attributes:
    file: name of the file.
    schema: schema of the columns.
    names: all values of `Problem.source`.
    kinds: `Problem.kind` of each of these names.
    warnings: sentences on parts of questions that the schema does not read.
  """

  def __init__(
    self,
    file: epath.PathLike | Records,
    *,
    schema: Schema | str | None = None,
    name: str | None = None,
  ) -> None:
    self._records = file if isinstance(file, Records) else open_records(file)
    self.file = self._records.file
    self._name = name or epath.Path(self.file).name
    if schema is None:
      schema = detect_schema(self._row(0, self._records[0]))
    self.schema = schema_by_name(schema) if isinstance(schema, str) else schema
    unread_columns = UnreadColumns(self.schema)
    self.kinds = self._validate(unread_columns)
    self.warnings = unread_columns.warnings()
    self.names = tuple(self.kinds)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Problem:
    return self.schema.parse(self._row(index, self._records[index]), self._name)

  def __iter__(self) -> Iterator[Problem]:
    for index, columns in enumerate(self._records):
      yield self.schema.parse(self._row(index, columns), self._name)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the problems."""
    return problems_fingerprint(self)

  def _row(self, index: int, columns: object) -> Row:
    """The parsed row with its location."""
    return Row(columns, self._records.location(index))

  def _validate(self, unread_columns: UnreadColumns) -> dict[str, str]:
    """Parses and counts all rows; returns the kind of each source's problems."""
    kinds: dict[str, tuple[str, str]] = {}
    types: dict[str, tuple[str, str]] = {}
    column_of_part: dict[str, tuple[str, str]] = {}
    for index, columns in enumerate(self._records):
      row = self._row(index, columns)
      problem = self.schema.parse(row, self._name)
      unread_columns.add(row, problem)
      _check_consistent(
        kinds,
        problem.source,
        (problem.kind, row.location),
        f'the source {problem.source!r} must be of one kind of problems (a column'
        " 'data_source' divides a file into sources)",
      )
      column_names = self.schema.columns(row)
      for part, column in zip(
        ('questions', 'answers'), column_names, strict=False
      ):
        _check_consistent(
          column_of_part,
          part,
          (repr(column), row.location),
          f'the {part} of a file must be in one column',
        )
      for column in column_names:
        _check_consistent(
          types,
          column,
          (type_name(row.value(column)), row.location),
          f'column {column!r} must hold the same type throughout',
        )
    return {name: kind for name, (kind, _) in kinds.items()}


def _check_consistent(
  first_values: dict[str, tuple[str, str]],
  name: str,
  value: tuple[str, str],
  requirement: str,
) -> None:
  """Checks that a value equals the first one of the same name.

  Args:
    first_values: first value and its location, by name; updated.
    name: a source or a column.
    value: the value and its location.
    requirement: first part of the error message.
  """
  first, location = first_values.setdefault(name, value)
  if first != value[0]:
    raise ValueError(
      f'{requirement}, got {first} in {location} and {value[0]} in {value[1]}'
    )


class ListSource:
  """Problems in memory.

  Raises:
    TypeError: an entry is not a `Problem`.
  """

  def __init__(self, problems: Sequence[Problem]) -> None:
    self._problems = tuple(problems)
    for problem in self._problems:
      entry: object = problem
      if not isinstance(entry, Problem):
        raise TypeError(
          f'a source must hold Problem objects, got {entry!r:.200}'
        )
    self.names = tuple(dict.fromkeys(p.source for p in self._problems))

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the problems; empty if one has a reference that is not JSON."""
    return problems_fingerprint(self._problems)

  def __len__(self) -> int:
    return len(self._problems)

  def __getitem__(self, index: int) -> Problem:
    return self._problems[index]


class SubsetSource:
  """Selected problems of a source.

  Args:
    source: all problems.
    indices: indices into `source`, in the order of the subset.
    fingerprint: digest of the selected problems, see `Fingerprinted`; made of
      that of `source` and the indices unless given.

  Raises:
    TypeError: the indices are not a vector of integers, but a mask for example,
      or the source is a mixture, whose weights would be lost.
    ValueError: an index is not one of the source.
  """

  def __init__(
    self,
    source: ProblemSource,
    indices: Int[np.ndarray, ' N'],
    fingerprint: str = '',
  ) -> None:
    check_outermost(source, 'SubsetSource')
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.dtype.kind not in 'iu':
      raise TypeError(
        'indices must be a vector of integers, got'
        f' {indices.dtype}{list(indices.shape)}'
      )
    size = len(source)
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
      raise ValueError(
        f'indices must lie in [0, {size}), the problems of the source, got'
        f' {indices.min()} to {indices.max()}'
      )
    self._source = source
    self._indices = indices
    self.names = source.names
    self._fingerprint = fingerprint

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the selected problems."""
    return self._fingerprint or text_fingerprint(
      source_fingerprint(self._source), str(self._indices.tolist())
    )

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Problem:
    return self._source[int(self._indices[index])]


class ConcatenatedSource:
  """Several sources in sequence; a shuffled stream mixes them.

  Raises:
    TypeError: a source is a mixture, whose weights would be lost.

  >>> problem = Problem(prompt='1 + 1', reference=2, source='sums')
  >>> both = ConcatenatedSource([ListSource([problem]), ListSource([problem])])
  >>> len(both), both.names
  (2, ('sums',))
  """

  def __init__(self, sources: Sequence[ProblemSource]) -> None:
    self.sources = tuple(sources)
    for source in self.sources:
      check_outermost(source, type(self).__name__)
    names = (name for source in self.sources for name in source.names)
    self.names = tuple(dict.fromkeys(names))

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of all problems; empty if a source has none."""
    return text_fingerprint(*map(source_fingerprint, self.sources))

  def __len__(self) -> int:
    return sum(map(len, self.sources))

  def __getitem__(self, index: int) -> Problem:
    start = 0
    for source in self.sources:
      if 0 <= index - start < len(source):
        return source[index - start]
      start += len(source)
    raise IndexError(f'index must lie in [0, {start}), got {index}')


class MixtureSource(ConcatenatedSource):
  """Several sources that a stream samples in given proportions.

  A stream interleaves the sources by their weights, whatever their lengths.
  Each source is shuffled and repeated separately.

  Args:
    sources: the sources; none may be empty.
    weights: positive proportions, one per source; Grain rounds their ratios to
      a hundredth of the smallest.

  Raises:
    TypeError: a source is a mixture itself, whose weights would be lost.
    ValueError: there are no sources, the number of weights differs from theirs,
      or a weight is not positive.
  """

  def __init__(
    self, sources: Sequence[ProblemSource], weights: Sequence[float]
  ) -> None:
    super().__init__(sources)
    is_positive = all(w > 0 and math.isfinite(w) for w in weights)
    if not sources or len(weights) != len(sources) or not is_positive:
      raise ValueError(
        f'weights must be one positive number for each of {len(sources)} sources,'
        f' got {list(weights)}'
      )
    self.weights = tuple(map(float, weights))


def check_outermost(source: ProblemSource, owner: str) -> None:
  """Refuses a mixture within another source: streams would ignore its weights.

  Args:
    source: the inner source.
    owner: name of the type of the outer one, for the error.

  Raises:
    TypeError: the source is a mixture.
  """
  if isinstance(source, MixtureSource):
    raise TypeError(
      f'a MixtureSource must be the outermost source, got one in a {owner}'
    )
