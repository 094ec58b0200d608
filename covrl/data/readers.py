# SPDX-License-Identifier: Apache-2.0
"""Rows of files: JSON lines, Parquet, ArrayRecord and TFDS.

Each is random access, so that a stream can shuffle it and resume anywhere, and
knows where in a file a row is, so that a sentence about it can say so. None
needs TensorFlow, TFDS included: it reads ArrayRecord files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from etils import epath

from covrl import storage

TFDS = 'tfds:'
"""Begins the name of a prepared TFDS dataset: `tfds:gsm8k/test`."""


@runtime_checkable
class Records(Protocol):
  """Rows by index; `records[index]` may be called from several threads.

  A row is an object with named columns, or whatever else the file holds.
  """

  @property
  def file(self) -> str:
    """What it was opened by."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Any: ...

  def __iter__(self) -> Iterator[Any]: ...

  def place(self, index: int) -> str:
    """Where a row is, for sentences: `row 3 of sums.jsonl`."""
    ...


def open_records(name: epath.PathLike) -> Records:
  """Opens a file by the end of its name.

  Args:
    name: of a `.jsonl`, `.parquet` or `.array_record` file, or of a prepared
      TFDS dataset in the ArrayRecord format, `tfds:NAME/SPLIT`.

  Raises:
    ValueError: there is no such file, it is empty, or of another kind.
  """
  if str(name).startswith(TFDS):
    dataset, _, split = str(name).removeprefix(TFDS).rpartition('/')
    return TfdsRecords(dataset or split, split=split if dataset else 'train')
  for suffix, kind in _KINDS.items():
    # Shards may have their number behind: x.array_record-00000-of-00002.
    if re.fullmatch(rf'.*{re.escape(suffix)}(-\d+-of-\d+)?', str(name)):
      return kind(name)
  raise ValueError(
    f'A file of problems must be one of {", ".join(_KINDS)} or {TFDS}NAME/SPLIT,'
    f' got {name}.'
  )


class JsonlRecords:
  """JSON objects, one a line; blank lines do not count.

  Args:
    path: the file.

  Raises:
    ValueError: there is no such file, or no line in it. While reading: a line
      is no JSON. Rows count from 1, as editors do.
  """

  def __init__(self, path: epath.PathLike) -> None:
    file = _existing(path)
    self.file = str(file)
    lines = file.read_bytes().split(b'\n')
    self._rows = [n for n, line in enumerate(lines, start=1) if line.strip()]
    self._lines = [lines[row - 1] for row in self._rows]
    _check_rows(self)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Any:
    return _parse(self._lines[index], self.place(index))

  def __iter__(self) -> Iterator[Any]:
    return _in_order(self)

  def place(self, index: int) -> str:
    """`row 3 of sums.jsonl`: the line's number."""
    return f'row {self._rows[index]} of {self.file}'


class ParquetRecords:
  """Rows of a Parquet file.

  Args:
    path: the file.

  Raises:
    ValueError: there is no such file, it is no Parquet, or has no row.
  """

  def __init__(self, path: epath.PathLike) -> None:
    import pyarrow
    import pyarrow.parquet

    file = _existing(path)
    self.file = str(file)
    try:
      reader = pyarrow.BufferReader(file.read_bytes())
      self._table: Any = pyarrow.parquet.read_table(reader)
    except pyarrow.ArrowInvalid as error:
      reason = str(error).partition('. ')[0]
      raise ValueError(
        f'{file} must be a Parquet file, and is none: {reason}.'
      ) from None
    _check_rows(self)

  def __len__(self) -> int:
    return self._table.num_rows

  def __getitem__(self, index: int) -> Any:
    return self._table.slice(index, 1).to_pylist()[0]

  def __iter__(self) -> Iterator[Any]:
    for batch in self._table.to_batches(max_chunksize=1024):
      yield from batch.to_pylist()

  def place(self, index: int) -> str:
    """`row 3 of sums.parquet`, from 0."""
    return f'row {index} of {self.file}'


class ArrayRecordRecords:
  """JSON objects in an ArrayRecord file.

  Args:
    path: the file.

  Raises:
    ValueError: there is no such file, or no record in it. While reading: a
      record is no JSON.
  """

  def __init__(self, path: epath.PathLike) -> None:
    import grain

    file = _existing(path)
    self.file = str(file)
    self._records: Any = grain.sources.ArrayRecordDataSource(
      [str(storage.local(file))]
    )
    _check_rows(self)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Any:
    return _parse(self._records[index], self.place(index))

  def __iter__(self) -> Iterator[Any]:
    return _in_order(self)

  def place(self, index: int) -> str:
    """`row 3 of sums.array_record`, from 0."""
    return f'row {index} of {self.file}'


class TfdsRecords:
  """Examples of a prepared TFDS dataset in the ArrayRecord format.

  Args:
    name: of the dataset, with its config and version if need be.
    split: `train`, `test[:100]`, ….
    data_dir: where it was prepared; TFDS's own default unless given.

  Raises:
    ValueError: the dataset or the split is not there, or is empty.
  """

  def __init__(
    self, name: str, *, split: str, data_dir: epath.PathLike | None = None
  ) -> None:
    import tensorflow_datasets as tfds

    self.file = f'{TFDS}{name}/{split}'
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
    _check_rows(self)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Any:
    return _plain(self._records[index])

  def __iter__(self) -> Iterator[Any]:
    return _in_order(self)

  def place(self, index: int) -> str:
    """`row 3 of tfds:gsm8k/test`, from 0."""
    return f'row {index} of {self.file}'


_KINDS = {
  '.jsonl': JsonlRecords,
  '.parquet': ParquetRecords,
  '.array_record': ArrayRecordRecords,
}


def _existing(path: epath.PathLike) -> epath.Path:
  path = storage.path_of(path)
  if not path.is_file():
    raise ValueError(
      f'A file of problems is required, got {path}, which is none.'
    )
  return path


def _check_rows(records: Records) -> None:
  """Refuses an empty file."""
  if len(records) == 0:
    raise ValueError(
      'A file with at least one problem is required, got'
      f' {records.file}, which is empty.'
    )


def _in_order(records: Records) -> Iterator[Any]:
  return (records[index] for index in range(len(records)))


def _parse(text: bytes, place: str) -> Any:
  try:
    return json.loads(text)
  except ValueError as error:
    raise ValueError(
      f'{place[0].upper()}{place[1:]} must be a JSON object, got {text[:40]!r}.'
    ) from error


def _plain(value: Any) -> Any:
  """A value as JSON has it: text from bytes, numbers and lists from NumPy."""
  if isinstance(value, bytes):
    return value.decode()
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, list):
    return [_plain(item) for item in value]
  if isinstance(value, Mapping):
    return {name: _plain(item) for name, item in value.items()}
  return value
