# SPDX-License-Identifier: Apache-2.0
"""Problems from files: TFDS, ArrayRecord and JSON lines, and from memory.

Each is random access, so that a stream can shuffle it and resume anywhere.
None needs TensorFlow, TFDS included: it reads ArrayRecord files.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.data.problems import Problem, ProblemSource

_PathLike = str | pathlib.Path


@dataclasses.dataclass(frozen=True)
class _Columns:
  """Which columns of a record hold what."""

  prompt: str
  answer: str
  solution: str | None

  def problem(
    self, record: Any, *, source: str, file: str, row: int
  ) -> Problem:
    if not isinstance(record, Mapping):
      raise ValueError(
        f'Row {row} of {file} must be an object with named columns, got'
        f' {type(record).__name__}.'
      )

    def read(column: str) -> Any:
      if column not in record:
        raise ValueError(
          f'Row {row} of {file} must have the column {column!r}, got'
          f' {", ".join(map(repr, record)) or "none"}.'
        )
      return _plain(record[column])

    return Problem(
      prompt=str(read(self.prompt)),
      reference=read(self.answer),
      source=source,
      solution=None if self.solution is None else str(read(self.solution)),
    )


class TfdsSource:
  """A prepared TFDS dataset in the ArrayRecord format.

  Args:
    name: of the dataset, with its config and version if need be.
    split: `train`, `test[:100]`, ….
    data_dir: where it was prepared; TFDS's own default unless given.
    prompt_field: the feature to ask.
    answer_field: the feature the scorer needs.
    solution_field: the feature to imitate, if there is one.

  Raises:
    ValueError: the dataset is not there, is empty or lacks a feature.
  """

  def __init__(
    self,
    name: str,
    *,
    split: str,
    data_dir: _PathLike | None = None,
    prompt_field: str,
    answer_field: str,
    solution_field: str | None = None,
  ) -> None:
    import tensorflow_datasets as tfds

    self.names = (name,)
    self._columns = _Columns(prompt_field, answer_field, solution_field)
    self._file = f'{name} ({split})'
    try:
      builder: Any = tfds.builder(
        name, data_dir=None if data_dir is None else str(data_dir)
      )
    except tfds.core.DatasetNotFoundError as error:
      place = 'the default folder' if data_dir is None else str(data_dir)
      raise ValueError(
        f'A prepared TFDS dataset is required, got {name!r}, which is not in'
        f' {place}.'
      ) from error
    # TFDS has no empty data source.
    self._records: Any = ()
    if builder.info.splits[split].num_examples:
      self._records = builder.as_data_source(split=split)
    _check_first(self, self._file)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Problem:
    return self._columns.problem(
      self._records[index], source=self.names[0], file=self._file, row=index
    )


class ArrayRecordSource:
  """JSON objects in ArrayRecord files.

  Args:
    paths: one file, or several that follow each other.
    name: of the source; the first file's name unless given.
    prompt_field: the column to ask.
    answer_field: the column the scorer needs.
    solution_field: the column to imitate, if there is one.

  Raises:
    ValueError: there is no record, or the first lacks a column.
  """

  def __init__(
    self,
    paths: _PathLike | Sequence[_PathLike],
    *,
    name: str | None = None,
    prompt_field: str = 'prompt',
    answer_field: str = 'answer',
    solution_field: str | None = None,
  ) -> None:
    import grain

    paths = [paths] if isinstance(paths, _PathLike) else paths
    files = [_existing(path) for path in paths]
    self._file = ', '.join(map(str, files))
    if not files:
      raise ValueError('Files of problems are required, got no path.')
    self.names = (name or files[0].name,)
    self._columns = _Columns(prompt_field, answer_field, solution_field)
    self._records: Any = grain.sources.ArrayRecordDataSource(
      list(map(str, files))
    )
    _check_first(self, self._file)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Problem:
    record = _parse(self._records[index], file=self._file, row=index)
    return self._columns.problem(
      record, source=self.names[0], file=self._file, row=index
    )


class JsonlSource:
  """JSON objects, one a line; the file is read and checked at once.

  Args:
    path: the file.
    name: of the source; the file's name unless given.
    prompt_field: the column to ask.
    answer_field: the column the scorer needs.
    solution_field: the column to imitate, if there is one.

  Raises:
    ValueError: there is no line, or one is no object or lacks a column. Rows
      count from 1, as editors do.
  """

  def __init__(
    self,
    path: _PathLike,
    *,
    name: str | None = None,
    prompt_field: str = 'prompt',
    answer_field: str = 'answer',
    solution_field: str | None = None,
  ) -> None:
    file = _existing(path)
    self.names = (name or file.name,)
    columns = _Columns(prompt_field, answer_field, solution_field)
    with file.open('rb') as lines:
      self._problems = [
        columns.problem(
          _parse(line, file=str(file), row=row),
          source=self.names[0],
          file=str(file),
          row=row,
        )
        for row, line in enumerate(lines, start=1)
        if line.strip()
      ]
    _check_first(self, str(file))

  def __len__(self) -> int:
    return len(self._problems)

  def __getitem__(self, index: int) -> Problem:
    return self._problems[index]


class ListSource:
  """Problems in memory."""

  def __init__(self, problems: Sequence[Problem]) -> None:
    self._problems = tuple(problems)
    self.names = tuple(dict.fromkeys(p.source for p in self._problems))

  def __len__(self) -> int:
    return len(self._problems)

  def __getitem__(self, index: int) -> Problem:
    return self._problems[index]


class ConcatenatedSource:
  """Several sources, one after the other; a shuffled stream mixes them.

  >>> problem = Problem(prompt='1 + 1', reference=2, source='sums')
  >>> both = ConcatenatedSource([ListSource([problem]), ListSource([problem])])
  >>> len(both), both.names
  (2, ('sums',))
  """

  def __init__(self, sources: Sequence[ProblemSource]) -> None:
    self._sources = tuple(sources)
    names = (name for source in self._sources for name in source.names)
    self.names = tuple(dict.fromkeys(names))

  def __len__(self) -> int:
    return sum(map(len, self._sources))

  def __getitem__(self, index: int) -> Problem:
    start = 0
    for source in self._sources:
      if 0 <= index - start < len(source):
        return source[index - start]
      start += len(source)
    raise IndexError(f'There are problems 0 to {start - 1}, got {index}.')


def _check_first(source: ProblemSource, file: str) -> None:
  """Says at once what would otherwise come up while training."""
  if len(source) == 0:
    raise ValueError(
      f'A source with at least one problem is required, got {file}, which is'
      ' empty.'
    )
  source[0]


def _existing(path: _PathLike) -> pathlib.Path:
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(
      f'A file of problems is required, got {path}, which is none.'
    )
  return path


def _parse(text: bytes, *, file: str, row: int) -> Any:
  try:
    return json.loads(text)
  except ValueError as error:
    raise ValueError(
      f'Row {row} of {file} must be a JSON object, got {text[:40]!r}.'
    ) from error


def _plain(value: Any) -> Any:
  """A value as JSON has it: text from bytes, numbers and lists from NumPy."""
  if isinstance(value, bytes):
    return value.decode()
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, list):
    return [_plain(item) for item in value]
  return value
